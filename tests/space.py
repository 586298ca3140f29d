"""The laws of space as assertions, for networks of molecules and crystals, and the structures they are tried on.

Inputs are those of `tests.laws`: "position" (B, N, 3) is Cartesian, or fractional where the state has a "cell" (B, 6).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.laws import Inputs, exists
from unisci.lattice import cell_matrix, cell_numbers
from unisci.order import Order

AXES = {
    "atom": 1,
    "position": 1,
    "cell": 0,
    "bond": 2,
    "rank": 1,
    "sites": 0,
    "template_position": 1,
    "template_cell": 0,
    "template_distance": 0,
}
MASK_STATE = 100
BONDS = 4


def structures(
    sizes: list[int],
    seed: int = 0,
    periodic: bool = True,
    order: str = "",
    templates: bool = False,
    bonds: bool = False,
) -> Inputs:
    """Random atoms, some unknown, in random cells, double precision, a time for each field of each sample, or, with an
    order ("blocks" or "doubled", the latter with noised copies), for each site. bonds: random ones, some unknown, and
    ranks, some of them not told."""
    g = torch.Generator().manual_seed(seed)
    b, n = len(sizes), max(sizes)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    mask = torch.arange(n) < torch.tensor(sizes)[:, None]
    atom = torch.where(rand(b, n) < 0.2, MASK_STATE, torch.randint(100, (b, n), generator=g))
    state = {"atom": atom, "position": rand(b, n, 3) * (1 if periodic else 4)}
    t = {"atom": rand(b), "position": rand(b)}
    if periodic:
        state["cell"], t["cell"] = torch.randn(b, 6, generator=g, dtype=torch.float64), rand(b)
    given = {}
    if templates:
        none = torch.where(torch.arange(b) % 2 == 1, -1.0, 1.0).double()
        cell = torch.randn(b, 6, generator=g, dtype=torch.float64)
        given = {"template_position": rand(b, n, 3), "template_cell": cell, "template_distance": rand(b) * none}
    if bonds:
        state["bond"], t["bond"] = symmetric(torch.randint(BONDS + 1, (b, n, n), generator=g)), rand(b)
        given = {"rank": torch.randint(-1, 4, (b, n), generator=g)}
    inputs = Inputs(state, t, mask, given)
    return _ordered(inputs, order, rand) if order else inputs


def symmetric(pairs: Tensor) -> Tensor:
    """(B, N, N, ...) with the lower triangle of each sample in both."""
    n = pairs.shape[1]
    low = (torch.arange(n)[:, None] >= torch.arange(n)).reshape(n, n, *(1,) * (pairs.ndim - 3))
    return torch.where(low, pairs, pairs.transpose(1, 2))


def _ordered(inputs: Inputs, order: str, rand: Callable[..., Tensor]) -> Inputs:
    mask, n = inputs.mask, inputs.mask.shape[1]
    rank = torch.where(mask, (torch.arange(n) // 2).expand_as(mask), -1)
    noisy = None
    if order == "doubled":
        double = lambda fields: {
            k: v.repeat(1, *(2,) * AXES[k], *(1,) * (v.ndim - 1 - AXES[k])) for k, v in fields.items()
        }
        noisy = (torch.arange(2 * n) >= n).expand(len(mask), -1)
        state, rank, mask = double(inputs.state), rank.repeat(1, 2), mask.repeat(1, 2)
        state["position"] = state["position"] + 0.2 * rand(*state["position"].shape) * noisy[..., None]
        inputs = inputs._replace(state=state, given=double(inputs.given))
    t = {k: rand(*mask.shape) if AXES[k] == 1 else v for k, v in inputs.t.items()}
    if "bond" in t:
        t["bond"], other = (symmetric(rand(*mask.shape, mask.shape[1])) for _ in range(2))
        if noisy is not None:
            copied = noisy[:, :, None] | noisy[:, None]
            state["bond"] = torch.where(copied, (other * (BONDS + 1)).long(), state["bond"])
    return inputs._replace(t=t, mask=mask, order=Order(rank, noisy))


def randomised(net: torch.nn.Module, scale: float = 0.3, seed: int = 0) -> torch.nn.Module:
    """The network in double precision with no weight at 0, as trained ones have none: a head at 0 obeys any law. A row
    of an embedding that stands for nothing stays 0, as in training."""
    g = torch.Generator().manual_seed(seed)
    for p in net.double().parameters():
        fan = p.shape[-1] if p.ndim > 1 else 1
        p.data += scale * torch.randn(p.shape, generator=g, dtype=p.dtype) / fan**0.5
    for m in net.modules():
        if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None:
            m.weight.data[m.padding_idx] = 0
    return net.eval()


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], mask: Tensor, tol: float) -> None:
    """Fields agree at the sites that exist, and where a sample has four are not all 0: by inversion the forces on two
    atoms of a crystal vanish, and three may be out of reach of each other."""
    assert got.keys() == expected.keys()
    for k, value in expected.items():
        there = exists(mask, AXES[k])
        a, b = got[k][there], value[there]
        torch.testing.assert_close(a, b, rtol=0, atol=tol, msg=lambda m, k=k: f"field {k!r}: {m}")
        assert int(mask.sum(1).max()) < 4 or float(b.detach().abs().max()) > 1e-6, f"field {k!r} is 0 anyhow"


def assert_translates(net: Callable, inputs: Inputs, tol: float = 1e-9) -> None:
    """A shift of all sites, each sample by its own, changes nothing; nor does one by cells, each site by its own."""
    g = torch.Generator().manual_seed(1)
    position = inputs.state["position"]
    shift = torch.randn(len(position), 1, 3, generator=g, dtype=position.dtype)
    if "cell" in inputs.state:
        shift = shift + torch.randint(-2, 3, position.shape, generator=g)
    moved = inputs._replace(state=inputs.state | {"position": position + shift})
    assert_close(net(*moved), net(*inputs), inputs.mask, tol)


def assert_turns(net: Callable, inputs: Inputs, tol: float = 1e-9) -> None:
    """Molecules: a rotation, and a reflection, of the input turns "position" and leaves all else."""
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    out = net(*inputs)
    for turn in (q, -q):
        turned = inputs._replace(state=inputs.state | {"position": inputs.state["position"] @ turn})
        assert_close(net(*turned), out | {"position": out["position"] @ turn}, inputs.mask, tol)


def change_basis(cell: Tensor, sites: Tensor, matrix: Tensor) -> Tensor:
    """Cell numbers of M L, turned back to lower triangular; M (3, 3) integer with determinant 1 or -1."""
    lattice = matrix @ cell_matrix(cell, sites)
    return cell_numbers(torch.linalg.cholesky(lattice @ lattice.transpose(1, 2)), sites)


def in_basis(inputs: Inputs, matrix: Tensor) -> Inputs:
    """The same crystals in the basis M L: fractional coordinates f M^-1."""
    sites = inputs.mask.sum(1)
    state = inputs.state | {
        "position": inputs.state["position"] @ matrix.inverse(),
        "cell": change_basis(inputs.state["cell"], sites, matrix),
    }
    return inputs._replace(state=state)


def assert_basis_free(net: Callable, inputs: Inputs, matrix: Tensor, tol: float = 1e-8) -> None:
    """In another basis of the same lattice: the same logits, vectors f M^-1, and the same lattice after the move."""
    out, new, sites = net(*inputs), in_basis(inputs, matrix), inputs.mask.sum(1)
    there = change_basis(inputs.state["cell"] + out["cell"], sites, matrix) - new.state["cell"]
    expected = out | {"position": out["position"] @ matrix.inverse(), "cell": there}
    assert_close(net(*new), expected, inputs.mask, tol)
