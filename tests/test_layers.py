"""Imports inside the package point left only, and the heavy packages stay out until they are asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unisci

ROOT = Path(unisci.__file__).parent
LAYERS = """
state < rng < batch < order lattice < domains processes networks < denoiser < solvers < latents training metrics
< guidance inverse discrete theory < autoregression < scales frames < design forecasting planning < jobs < __main__
"""
LAYER = {name: k for k, names in enumerate(LAYERS.split("<")) for name in names.split()}


def imports(path: Path) -> set[str]:
    """First names below unisci of all that a file imports from it, inside functions and type checks too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        found |= {n.split(".")[1] for n in names if n.startswith("unisci.")}
    return found


def test_every_module_has_a_layer():
    there = {p.relative_to(ROOT).with_suffix("").parts[0] for p in ROOT.rglob("*.py")}
    assert there - {"__init__"} <= set(LAYER)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left(path):
    """To a lower layer or into the same package. The package's own front door may open onto everything."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts == ("__init__",):
        return
    wrong = {n for n in imports(path) - {parts[0]} if LAYER.get(n, 99) >= LAYER[parts[0]]}
    assert not wrong, f"{'.'.join(parts)} imports {sorted(wrong)}, which lie to its right or beside it"


HEAVY = ("torch_geometric", "e3nn", "pymatgen", "fcd_torch", "matplotlib", "typer")


def loaded(statement: str) -> list[str]:
    code = f"import sys\n{statement}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.split()


def test_importing_unisci_imports_nothing_heavy():
    assert loaded("import unisci") == []


def test_no_module_below_the_command_line_imports_anything_heavy():
    """Extras that are not installed are missed where they are used, not before."""
    modules = [p.relative_to(ROOT.parent).with_suffix("").parts for p in ROOT.rglob("*.py")]
    names = sorted({".".join(m).removesuffix(".__init__") for m in modules if m[1] not in ("jobs", "__main__")})
    assert loaded("\n".join(f"import {n}" for n in names)) == []
