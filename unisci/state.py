"""State and Time: what every process, solver and guidance term passes around.

A state is one tensor or a dict of named fields. Axis 0 is the sample; a field is laid out by its kind:
whole (B, ...), site (B, N, ...), pair (B, N, N, ...). A time lies in [0, 1], 0 = data, 1 = noise, and is a scalar,
(B,), or has a field's leading axes, so that (B, N) gives each atom or frame a time of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
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


def beside(t: Time, x: State) -> Time:
    """t on the device of x. A scalar is filled in place: a copy from the CPU to another device would wait for it, and
    so would `torch.where` by a scalar on the CPU."""
    if isinstance(t, dict):
        return {name: beside(v, pick(x, name)) for name, v in t.items()}
    device = next(iter(x.values())).device if isinstance(x, dict) else x.device
    if t.ndim == 0 and t.device.type == "cpu" and device.type != "cpu":
        return torch.full((), float(t), dtype=t.dtype, device=device)
    return t.to(device)


def place(v: Tensor, x: Tensor) -> Tensor:
    """v, of a time's shape, ready to multiply x (B, ...): of its dtype, broadcasting from the left. A scalar stays one:
    from the CPU it then multiplies a tensor on any device without a copy."""
    return v.to(x.dtype) if v.ndim == 0 else pad(v, x).to(x.dtype)
