"""The laws as assertions, for every network and every generator: each takes a callable and dicts of tensors by field.

A network is called as net(state, t, mask, given, order) and returns fields named as those of the state; `axes` says how
many site axes a field has: 0 whole, 1 site, 2 pair.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unisci.order import Order

Axes = dict[str, int]
aten = torch.ops.aten
READS = (aten._local_scalar_dense, aten.nonzero, aten.equal, aten.is_nonzero, aten.masked_select, aten._unique2)


class Inputs(NamedTuple):
    """What a network is called with. t: a time for each entry of each field, or (B,), or ()."""

    state: dict[str, Tensor]
    t: dict[str, Tensor]
    mask: Tensor
    given: dict[str, Tensor]
    order: Order | None = None


def take(x: Tensor, axes: int, index: Tensor) -> Tensor:
    """Entries of the sites index (B, M) of a field with that many site axes."""
    rows = torch.arange(len(x))
    if axes == 0 or x.ndim < 1 + axes:
        return x
    if axes == 1:
        return x[rows[:, None], index]
    return x[rows[:, None, None], index[:, :, None], index[:, None, :]]


def take_all(inputs: Inputs, axes: Axes, index: Tensor) -> Inputs:
    """The same samples with their sites picked by index (B, M)."""
    pick = lambda fields: {k: take(v, axes[k], index) for k, v in fields.items()}
    order = inputs.order
    if order is not None:
        noisy = None if order.noisy is None else take(order.noisy, 1, index)
        order = Order(take(order.rank, 1, index), noisy)
    return Inputs(pick(inputs.state), pick(inputs.t), take(inputs.mask, 1, index), pick(inputs.given), order)


def rows_of(inputs: Inputs, rows: Tensor) -> Inputs:
    """The samples `rows` alone."""
    cut = lambda fields: {k: v[rows] if v.ndim else v for k, v in fields.items()}
    order = inputs.order
    if order is not None:
        order = Order(order.rank[rows], None if order.noisy is None else order.noisy[rows])
    return Inputs(cut(inputs.state), cut(inputs.t), inputs.mask[rows], cut(inputs.given), order)


def exists(mask: Tensor, axes: int) -> Tensor:
    """Where entries of a field exist."""
    return (mask.any(1), mask, mask[:, :, None] & mask[:, None, :])[axes]


def assert_permutes(net: Callable, inputs: Inputs, axes: Axes, times: int = 3, tol: float = 1e-10) -> None:
    """Permuting the sites permutes the outputs, each sample by a permutation of its own."""
    out = net(*inputs)
    for seed in range(times):
        generator = torch.Generator().manual_seed(seed)
        index = torch.rand(inputs.mask.shape, generator=generator).argsort(1)
        moved = take_all(inputs, axes, index)
        for k, value in net(*moved).items():
            there = exists(moved.mask, axes[k])
            torch.testing.assert_close(value[there], take(out[k], axes[k], index)[there], rtol=0, atol=tol)


def assert_padding_free(net: Callable, inputs: Inputs, axes: Axes, extra: int = 3, tol: float = 1e-12) -> None:
    """A sample alone, with other padding of arbitrary content, and in its batch: one and the same output."""
    out = net(*inputs)
    for row, mask in enumerate(inputs.mask):
        rows = torch.tensor([row])
        sites = mask.nonzero()[:, 0]
        for padding in (0, extra):
            index = torch.cat([sites, sites.new_full((padding,), int(sites[0]))])[None]
            alone = take_all(rows_of(inputs, rows), axes, index)
            keep = torch.arange(len(index[0])) < len(sites)
            order = alone.order and Order(torch.where(keep, alone.order.rank, -1), alone.order.noisy)
            alone = alone._replace(mask=keep[None], order=order)
            for k, value in net(*alone).items():
                same = take(out[k][rows], axes[k], sites[None])
                cut = (slice(None), *(slice(len(sites)),) * axes[k])
                message = f"sample {row}, field {k!r}, {padding} sites of padding"
                torch.testing.assert_close(value[cut], same, rtol=0, atol=tol, msg=lambda m, s=message: f"{s}: {m}")


@torch.no_grad()
def leaks(net: Callable, inputs: Inputs, axes: Axes, classes: dict[str, int]) -> tuple[float, float]:
    """Change all of one site, each in turn: the largest change of outputs that do not see it, and of those that do.

    A pair sees what either of its sites sees. classes: of each discrete field; other fields are shifted.
    """
    out, sees = net(*inputs), inputs.order.visible()
    hidden, seen = 0.0, 0.0
    for k in range(inputs.mask.shape[1]):
        changed = inputs._replace(
            state={f: _change(v, axes[f], k, classes.get(f)) for f, v in inputs.state.items()},
            given={f: _change(v, axes[f], k, classes.get(f)) for f, v in inputs.given.items()},
            t={f: _change(v, axes[f], k, None) for f, v in inputs.t.items()},
        )
        # A field of the whole sees all.
        for f, value in ((f, v) for f, v in net(*changed).items() if axes[f]):
            change = (value - out[f]).abs()
            change = change.flatten(1 + axes[f]).amax(-1) if change.ndim > 1 + axes[f] else change
            by_site = sees[:, :, k]
            allowed = by_site if axes[f] == 1 else by_site[:, :, None] | by_site[:, None, :]
            there = exists(inputs.mask, axes[f])
            hidden = max(hidden, float((change * (there & ~allowed)).max()))
            seen = max(seen, float((change * (there & allowed)).max()))
    return hidden, seen


def assert_causal(net: Callable, inputs: Inputs, axes: Axes, classes: dict[str, int]) -> None:
    """No output depends on a site that it does not see, to the last bit; and some depends on one that it sees."""
    hidden, seen = leaks(net, inputs, axes, classes)
    assert hidden == 0, f"outputs change by {hidden:.3g} with sites that they do not see"
    assert seen > 1e-6, "no output changes with any site: this proves nothing"


def assert_same_samples(
    generate: Callable[[int, Tensor], dict[str, Tensor]],
    seeds: Sequence[int] = (0, 1),
    batch_sizes: Sequence[int] = (1, 7, 64),
    chunks: int = 2,
) -> None:
    """generate(seed, ids) gives an id the same values, bit for bit, whatever the batch; other ids and seeds others."""
    ids = torch.arange(100, 100 + max(batch_sizes))
    reference = [generate(seed, ids) for seed in seeds]
    for seed, whole in zip(seeds, reference, strict=True):
        for size in batch_sizes:
            for rows in torch.randperm(len(ids), generator=torch.Generator().manual_seed(size)).split(size)[:chunks]:
                for k, value in generate(seed, ids[rows]).items():
                    assert torch.equal(value, whole[k][rows]), f"field {k!r} depends on the batch of {size}"
    differ = lambda a, b: any(not torch.equal(a[k], b[k]) for k in a)
    repeated = {k: v[:1].expand_as(v) for k, v in reference[0].items()}
    assert differ(repeated, reference[0]), "every id gives the same sample"
    if len(seeds) > 1:
        assert differ(reference[0], reference[1]), "every seed gives the same samples"


def _change(x: Tensor, axes: int, site: int, classes: int | None) -> Tensor:
    """x with every entry of one site changed."""
    if axes == 0 or x.ndim < 1 + axes:
        return x
    there = torch.arange(x.shape[1]) == site
    there = there[None] if axes == 1 else there[None, :, None] | there[None, None, :]
    there = there.reshape(there.shape + (1,) * (x.ndim - there.ndim))
    other = (x + 1) % classes if classes else x + 0.37 if x.is_floating_point() else x + 1
    return torch.where(there, other, x)


class _NoHostReads(TorchDispatchMode):
    """Refuses operations on tensors off the CPU for which a real device would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, inside = func.overloadpacket, tensors((args, kwargs))
        there = [v.device.type != "cpu" for v in inside]
        if any(there):
            assert name not in READS, f"{func} reads a tensor of the device"
            self._check_mixed(name, args, [v.ndim for v in inside if v.device.type == "cpu"])
        target = (kwargs or {}).get("device")
        if name == aten._to_copy and target is not None:
            assert inside[0].device.type == target.type, f"{func} copies from or to the host"
        return func(*args, **kwargs or {})

    @staticmethod
    def _check_mixed(name: Any, args: tuple, here: list[int]) -> None:
        """here: the numbers of axes of the inputs on the CPU."""
        scalars = name not in (aten.where, aten.cat, aten.stack, aten.copy_)  # which copy even a scalar
        assert not here or (scalars and max(here) == 0), f"{name} copies what lies on the CPU"
        if name in (aten.index, aten.index_put, aten.index_put_):
            indices = tensors(args[1])
            assert all(v.dtype != torch.bool for v in indices), f"{name} counts the true entries of a mask"


def tensors(tree: Any) -> list[Tensor]:
    """Those in nested tuples, lists and dicts."""
    return [v for v in tree_leaves(tree) if isinstance(v, Tensor)]


@contextlib.contextmanager
def no_host_reads(device: str) -> Iterator[None]:
    """Fails where code on tensors of `device` waits for it: by reading a value, its count or a mask, or by a copy from
    or to the host. "meta" tensors, which hold no values, stand for a device on a machine without one; numbers that
    become a tensor there, as torch.tensor(1.0, device=device), pass unseen."""
    if device == "meta":
        with _NoHostReads():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
