"""State and Time: what every process, solver and guidance term passes around.

A state is one tensor or a dict of named fields. Axis 0 is the sample; a field is laid out by its kind:
whole (B, ...), site (B, N, ...), pair (B, N, N, ...). A time lies in [0, 1], 0 = data, 1 = noise, and is a scalar,
(B,), or has a field's leading axes, so that (B, N) gives each atom or frame a time of its own.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

State = Tensor | dict[str, Tensor]
Time = Tensor | dict[str, Tensor]


def pick(value: Any, name: str) -> Any:
    """The entry of one field where `value` is a dict by field, else `value` itself (shared by all fields)."""
    return value[name] if isinstance(value, dict) else value


def fieldwise(function: Callable[..., Tensor], x: State, *args: Any) -> State:
    """Apply `function(field, *args)` to a bare tensor or to each field; dict arguments are picked by field."""
    if not isinstance(x, dict):
        return function(x, *args)
    return {name: function(x[name], *(pick(a, name) for a in args)) for name in x}


def pad(t: Tensor, x: Tensor) -> Tensor:
    """Append axes of length 1 to `t` until it broadcasts against `x` from the left."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
