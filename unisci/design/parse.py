"""Wants as text, for the command line: a call of each want, joined by &, as in

    Between(logp, 1, 2) & Above(qed, .55) & Without(F) & Keep("c1ccccc1")

The first argument of a call is text, whose quotes may be left out where it is one word; the others are numbers. The
text is read as a syntax tree and never evaluated.
"""

import ast
from collections.abc import Callable
from inspect import signature

from unisci.design.atoms import Composition, Contains, Formula, Keep, Without
from unisci.design.targets import Above, Below, Between, Maximize, Target
from unisci.design.wants import Want, Wants, wants

WANTS: dict[str, Callable[..., Want]] = {
    f.__name__: f for f in (Between, Above, Below, Target, Maximize, Contains, Without, Formula, Composition, Keep)
}
ALLOWED = f'write {", ".join(WANTS)}, joined by &, as in: Between(logp, 1, 2) & Keep("c1ccoc1")'
LARGEST = 1e300  # of a number

Call = tuple[str, tuple[str | float, ...]]


def parse(text: str) -> Wants:
    """The wants of a text. Raises ValueError that names the first word that cannot be read and what may stand there,
    or that says why a want makes no sense."""
    return wants([WANTS[name](*values) for name, values in _calls(text)])


def spelled(text: str) -> str:
    """The text in one spelling of its quotes, spaces, numbers and defaults: equal where the wants are."""
    return " & ".join(f"{name}({', '.join(map(repr, values))})" for name, values in _calls(text))


def _calls(text: str) -> list[Call]:
    """The name and all values of each call, in order."""
    try:
        nodes = [ast.parse(text.strip(), mode="eval").body]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"where: cannot read {_short(text)} ({getattr(error, 'msg', error)}): {ALLOWED}") from None
    calls: list[Call] = []
    while nodes:  # rather than by recursion, so that no text is too deep
        node = nodes.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
            nodes += [node.right, node.left]
        else:
            calls.append(_call(node, text))
    return calls


def _call(node: ast.AST, text: str) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError(f"where: {_source(node, text)} is no want: {ALLOWED}")
    if not isinstance(node.func, ast.Name) or node.func.id not in WANTS:
        raise ValueError(f"where: {_source(node.func, text)} is not known: {ALLOWED}")
    form = signature(WANTS[node.func.id])
    usage = f"{node.func.id}({', '.join(form.parameters)})"
    if any(k.arg is None for k in node.keywords):
        raise ValueError(f"where: {_source(node, text)}: ** is not allowed; write {usage}")
    try:
        bound = form.bind(*node.args, **{k.arg: k.value for k in node.keywords})
    except TypeError as error:
        raise ValueError(f"where: {_source(node, text)}: {error}; write {usage}") from None
    for k, (name, value) in enumerate(bound.arguments.items()):
        bound.arguments[name] = (_number if k else _word)(value, text, usage)
    bound.apply_defaults()
    return node.func.id, bound.args


def _word(node: ast.AST, text: str, usage: str) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError(f"where: {_source(node, text)} is no name: write {usage}, the first of them a word or in quotes")


def _number(node: ast.AST, text: str, usage: str) -> float:
    sign, inner = 1, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        sign, inner = -1 if isinstance(node.op, ast.USub) else 1, node.operand
    value = inner.value if isinstance(inner, ast.Constant) else None
    if type(value) not in (int, float) or not -LARGEST < value < LARGEST:
        raise ValueError(f"where: {_source(node, text)} is no number: write {usage}, all but the first of them numbers")
    value = float(sign * value)
    return int(value) if value.is_integer() else value


def _source(node: ast.AST, text: str) -> str:
    return _short(ast.get_source_segment(text.strip(), node) or "")


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
