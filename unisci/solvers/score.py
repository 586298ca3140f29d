"""The score of a denoiser by Tweedie's formula, s = (alpha D - x) / sigma^2, and the entries that a density counts."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from unisci.batch import pair_mask
from unisci.processes.gaussian import Gaussian, level_for, to_score
from unisci.solvers.sample import Denoise, processes
from unisci.state import State, Time, beside, fieldwise, pick


def check_gaussian(denoise: Denoise, who: str, besides: tuple[type, ...] = ()) -> None:
    """Raise ValueError where a field's noise is not Gaussian, as then s is not the score, or there is none; fields of
    the processes `besides` may be there too."""
    for name, process in processes(denoise).items():
        gaussian = isinstance(process, Gaussian) and process.is_gaussian
        if not (gaussian or isinstance(process, besides)):
            raise ValueError(
                f"{who} needs the score, which field {name!r} does not have: its process {process} adds no Gaussian "
                "noise; leave the field out, or give it a Gaussian process"
            )


def check_start(denoise: Denoise, t: Time) -> None:
    """Raise ValueError where alpha of a Gaussian field is 0 at the first time t: x then says nothing of the data, and a
    change of log(alpha / sigma) from there is infinite. Times on another device than the CPU are not read."""
    for name, process, at in _gaussian_times(denoise, t):
        if bool((process.level(at)[0] == 0).any()):
            raise ValueError(f"alpha of field {name!r} is 0 at the first time {at.tolist()}; start below, say at 0.999")


def check_end(denoise: Denoise, s: Time) -> None:
    """Raise ValueError where a Gaussian field steps to s = 0, where its law has no density to follow. Times on another
    device than the CPU are not read."""
    for name, _, at in _gaussian_times(denoise, s):
        if bool((at == 0).all()):
            raise ValueError(
                f"field {name!r} has no density at t = 0; end the grid above, as grid(process, n, end=1e-2)"
            )


def _gaussian_times(denoise: Denoise, t: Time) -> Iterator[tuple[str, Gaussian, Tensor]]:
    """The Gaussian fields and their times, as far as these are known without waiting for a device."""
    for name, process in processes(denoise).items():
        at = pick(t, name)
        if isinstance(process, Gaussian) and at.device.type == "cpu":
            yield name, process, at


def score_of(clean: Tensor, x: Tensor, process: Gaussian, t: Tensor) -> Tensor:
    """s (B, ...) where clean = E[x_0 | x_t = x]; 0 where there is no noise, sigma = 0."""
    alpha, sigma = level_for(process, t, x)
    noised = sigma > 0
    return torch.where(noised, to_score(clean, x, alpha, torch.where(noised, sigma, 1.0)), 0.0)


def time_for(t: Time, x: State) -> Time:
    """t as the denoiser should get it: on the device of x, and in its dtype where that is a float."""
    if isinstance(t, dict):
        return {name: time_for(v, pick(x, name)) for name, v in t.items()}
    fields = x.values() if isinstance(x, dict) else [x]
    return beside(t, x).to(next((v.dtype for v in fields if v.is_floating_point()), t.dtype))


def site_axes(denoise: Denoise, x: State) -> Any:
    """The number of site axes of each field, 0 for a bare tensor. Raises ValueError for a dict without a layout."""
    if not isinstance(x, dict):
        return 0
    if denoise.schema is None:
        raise ValueError(f"fields {sorted(x)} have no layout; denoise.schema must give it")
    return {name: denoise.schema[name].axes for name in x}


def exists(x: Tensor, axes: int, mask: Tensor | None) -> Tensor:
    """Where entries exist, to broadcast against x (B, ...). mask: (B, N), which sites exist; None, all do."""
    if axes == 0 or (mask is None and axes == 1):
        return torch.ones((1,) * x.ndim, dtype=torch.bool, device=x.device)
    mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    there = mask if axes == 1 else pair_mask(mask)
    return there.reshape(there.shape + (1,) * (x.ndim - there.ndim))


def counted(x: State, axes: Any, mask: Tensor | None) -> State:
    """1 or 0 for every entry of x, in its shape: 1 where it exists, and for a pair of sites once."""

    def once(x: Tensor, axes: int) -> Tensor:
        there = exists(x, axes, mask).expand(x.shape)
        if axes < 2:
            return there.to(x.dtype)
        n = x.shape[1]
        lower = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        return (there & lower.reshape(1, n, n, *(1,) * (x.ndim - 3))).to(x.dtype)

    return fieldwise(once, x, axes)


def total(values: State) -> Tensor:
    """The sum over all entries of all fields of each sample, (B,)."""
    return sum(v.reshape(len(v), -1).sum(1) for v in (values.values() if isinstance(values, dict) else [values]))
