"""One model of molecules in space: what is given stays, noise that is turned turns the molecule, and it learns one."""

import math

import numpy as np
import pytest
import torch

from tests.oracles import GaussianOracle
from unisci.autoregression import structure_fields, structure_times, structures
from unisci.autoregression.structure_fields import Profiles, centred, structure_product
from unisci.autoregression.structure_times import ASSIGN, FOLD, NEAR, training_times
from unisci.autoregression.structures import POLISHING, StructureModel
from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.domains.molecule import BONDS, POSITION, Molecule, schema
from unisci.networks.atom_transformer import AtomTransformer, AtomTransformerConfig
from unisci.networks.egnn import EGNN, EGNNConfig
from unisci.networks.equivariant import E3Net, E3NetConfig
from unisci.order import Order
from unisci.processes.gaussian import Cosine
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.training.fit import FitConfig, fit


def molecule(atoms: str, bonds: dict[tuple[int, int], int], positions: list[list[float]]) -> Molecule:
    matrix = np.zeros((len(atoms), len(atoms)), np.int8)
    for (i, j), order in bonds.items():
        matrix[i, j] = matrix[j, i] = order
    return Molecule(tuple(atoms), matrix, np.array(positions)[None])


CLASSES = ("C", "O", "H")
WATER = molecule("OHH", {(0, 1): 1, (0, 2): 1}, [[0, 0, 0.117], [0, 0.757, -0.47], [0, -0.757, -0.47]])
FORMALDEHYDE = molecule(
    "COHH", {(0, 1): 2, (0, 2): 1, (0, 3): 1}, [[0, 0, -0.53], [0, 0, 0.67], [0, 0.93, -1.11], [0, -0.93, -1.11]]
)
METHANOL = molecule(
    "COHHHH",
    {(0, 1): 1, (0, 2): 1, (0, 3): 1, (0, 4): 1, (1, 5): 1},
    [[-0.05, 0.66, 0], [-0.05, -0.76, 0], [-1.09, 0.98, 0], [0.44, 1.07, 0.89], [0.44, 1.07, -0.89], [0.86, -1.06, 0]],
)
MOLECULES = [METHANOL, WATER, FORMALDEHYDE]
SIZES = torch.tensor([0, 0, 0, 1, 1, 0, 2])


def batch_of(molecules=MOLECULES) -> Batch:
    return Molecule.batch(molecules, CLASSES)


def transformer(width: int = 16) -> AtomTransformer:
    sizes = {"width": width, "edge": width, "layers": 2, "heads": 4, "radial": 8}
    return AtomTransformer(AtomTransformerConfig(classes=3, bonds=len(BONDS), **sizes))


def egnn() -> EGNN:
    return EGNN(EGNNConfig(classes=3, width=16, layers=2, frequencies=1, bonds=len(BONDS)))


def e3net() -> E3Net:
    return E3Net(E3NetConfig(classes=3, scalars=8, tensors=3, bonds=len(BONDS)))


def model(make=transformer, untrained: bool = False, parts: float = 0.3) -> StructureModel:
    torch.manual_seed(0)
    net = make()
    for p in () if untrained else net.parameters():  # the heads start at zero, which would hide what they read
        torch.nn.init.normal_(p, std=0.1)
    fields = schema(CLASSES) | {"position": POSITION}
    denoiser = Denoiser(net, structure_product(fields), {"position": 1.0})
    return StructureModel(denoiser, SIZES, Profiles.of(batch_of()), parts).eval()


class Watched(torch.nn.Module):
    """A network that keeps what it is asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, []

    def forward(self, state, t, mask, given, order=None, cache=None):
        self.asked.append(({k: v.clone() for k, v in state.items()}, t, given))
        return self.network(state, t, mask, given, order, cache)


def watched(**options) -> tuple[StructureModel, list]:
    m = model(**options)
    m.denoiser.network = Watched(m.denoiser.network)
    return m, m.denoiser.network.asked


# Frames and profiles


def test_positions_are_centred_about_what_is_known():
    x = torch.tensor([[[1.0, 0, 0], [3, 0, 0], [9, 9, 9]], [[1, 1, 0], [4, 1, 0], [7, 1, 3]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    known = torch.tensor([[0, 0, 0], [0, 1, 1]]).bool()
    plain = [[[-1, 0, 0], [1, 0, 0], [0, 0, 0]], [[-3, 0, -1], [0, 0, -1], [3, 0, 2]]]
    about = [plain[0], [[-4.5, 0, -1.5], [-1.5, 0, -1.5], [1.5, 0, 1.5]]]
    torch.testing.assert_close(centred(x, mask), torch.tensor(plain).float())
    torch.testing.assert_close(centred(x, mask, known), torch.tensor(about).float())


def graphs(*edges: list[tuple[int, int]]) -> Batch:
    """Those of five sites at most."""
    bond = torch.zeros(len(edges), 5, 5, dtype=torch.long)
    mask = torch.zeros(len(edges), 5).bool()
    for row, pairs in enumerate(edges):
        for i, j in pairs:
            bond[row, i, j] = bond[row, j, i] = 1
            mask[row, [i, j]] = True
    return Batch({"bond": Field("pair", classes=BONDS)}, {"bond": bond}, mask)


STAR, RING, PATH = [(0, 1), (0, 2)], [(0, 1), (1, 2), (2, 0)], [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_profiles_are_the_block_sizes_of_graphs_by_frequency(monkeypatch):
    batch = graphs(PATH, STAR, RING, STAR, RING, STAR)
    found = Profiles.of(batch)
    assert found.sizes.tolist() == [[1, 2, 0], [3, 0, 0], [1, 2, 2]] and found.counts.tolist() == [3, 2, 1]
    monkeypatch.setattr(structure_fields, "PROFILES", 2)
    found = Profiles.of(batch)
    assert found.sizes.tolist() == [[1, 2, 0], [3, 0, 0]] and found.counts.tolist() == [3, 2]


def test_orders_are_drawn_as_often_as_the_graphs_have_them():
    profiles = Profiles.of(graphs(PATH, STAR, RING, STAR, RING, STAR))
    ids = torch.arange(3000)
    rank = profiles.order(Rng(0, ids)).rank
    rows = [tuple(r) for r in rank.tolist()]
    expected = {(0, 1, 1, -1, -1): 1 / 2, (0, 0, 0, -1, -1): 1 / 3, (0, 1, 1, 2, 2): 1 / 6}
    assert set(rows) == set(expected)
    assert {k: rows.count(k) / 3000 for k in expected} == pytest.approx(expected, abs=0.03)
    assert not torch.equal(profiles.order(Rng(1, ids)).rank, rank)
    for i in (5, 17, 1234):
        alone = profiles.order(Rng(0, torch.tensor([i]))).rank[0]
        assert alone.tolist() == rank[i][: len(alone)].tolist() and not bool((rank[i][len(alone) :] >= 0).any())


# Training


def tasks(m: StructureModel, n: int = 6000):
    batch = batch_of([METHANOL, WATER] * (n // 2))
    t, told = training_times(batch, Rng(0, batch.ids), m.parts)
    return batch, t, told


def test_training_times_are_of_the_tasks():
    batch, t, told = tasks(model(parts=0.4))
    mask, atom, position = batch.mask, t["atom"], t["position"]
    rank = torch.where(mask, torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, -1, -1, -1]]).repeat(len(mask) // 2, 1), -1)
    fold, assign = (atom == 0).all(1), (position.masked_fill(~mask, 0) == 0).all(1)
    same = atom.masked_fill(~mask, 0).amax(1) == torch.where(mask, atom, 1).amin(1)
    both, told_any = ~fold & ~assign, (told >= 0).any(1)
    whole, structural, random = both & same & ~told_any, both & told_any, both & ~same & ~told_any
    rest = 1 - FOLD - ASSIGN
    # Of the random parts one in n + 1 or so is all there is, and looks whole.
    shares = [(fold, FOLD), (assign, ASSIGN), (structural, rest * 0.2), (random | whole, rest * 0.8)]
    for rows, share in shares:
        assert float(rows.float().mean()) == pytest.approx(share, abs=0.02)
    assert 0.6 * rest - 0.02 < float(whole.float().mean()) < 0.7 * rest

    assert bool(((t["bond"] == 0).flatten(1).all(1) == fold).all())
    folding = position[fold].masked_fill(~mask[fold], 0).amax(1)
    assert torch.equal(torch.where(mask[fold], position[fold], folding[:, None]), folding[:, None].expand(-1, 6))
    assert float(folding.mean()) == pytest.approx(1 / (1 + NEAR), abs=0.02) and float(folding.min()) > 0
    pairs = batch.exists("bond")
    assert bool((t["bond"][assign][pairs[assign]] > 0).all()) and bool((atom[assign][mask[assign]] > 0).all())
    assert float(atom[whole][:, 0].mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(atom[both][mask[both]], position[both][mask[both]])
    later = torch.maximum(atom[:, :, None], atom[:, None])
    assert torch.equal(t["bond"][whole][pairs[whole]], later[whole][pairs[whole]])
    assert not bool(t["bond"].diagonal(dim1=1, dim2=2).any())

    assert torch.equal(told[structural], rank[structural]) and bool((told[~structural] == -1).all())
    first = (atom[structural].masked_fill(rank[structural] != 0, 0)).amax(1)
    last = torch.where(rank[structural] == 1, atom[structural], 0.0).amax(1)
    assert bool((((first > 0) & (last == 1)) | ((first == 0) & (last > 0) & (last < 1))).all())
    assert float((first == 0).float().mean()) == pytest.approx(0.5, abs=0.06)
    assert bool((atom[random].masked_fill(~mask[random], 0) == 1).any(1).float().mean() > 0.3)


def test_a_model_of_no_parts_makes_everything_or_one_of_the_two():
    batch, t, told = tasks(model(parts=0.0), 400)
    values = torch.where(batch.mask, t["atom"], t["atom"][:, :1])
    assert bool((values == values[:, :1]).all()) and bool((told == -1).all())


def test_a_known_part_is_where_it_is_told_and_nothing_else_has_an_origin(monkeypatch):
    monkeypatch.setattr(structure_times, "FOLD", 0.0)
    monkeypatch.setattr(structure_times, "ASSIGN", 0.0)
    m, asked = watched(parts=1.0)
    batch = batch_of([METHANOL] * 200)
    m.loss(batch, Rng(0, batch.ids))
    (state, t, given), clean = asked[0], batch.state["position"]
    known = t["position"] == 0
    some = known.any(1)
    assert 0.4 < float(some.float().mean()) < 0.9
    mean = lambda x, where: (x * where[..., None]).sum(1) / where.sum(1, keepdim=True)
    where = clean - mean(clean, known)[:, None]
    torch.testing.assert_close(state["position"][some][known[some]], where[some][known[some]], atol=1e-5, rtol=0)
    assert torch.equal(state["atom"][known], batch.state["atom"][known])
    moved = (state["position"][some] * ~known[some][..., None]).sum(1)
    assert float(moved.abs().mean()) > 0.5, "noise about a known part has a mean"
    late = t["position"][some] == 1
    assert float(state["position"][some][late].mean(0).abs().max()) < 0.15  # and no place but that part's
    # Each site is scaled for the network by its own time.
    alpha, sigma = Cosine().level(t["position"][~some])
    raw = state["position"][~some] * (alpha**2 + sigma**2).sqrt()[..., None]
    assert float(raw.mean(1).abs().max()) < 1e-5
    assert torch.equal(given["rank"], training_times(batch, Rng(0, batch.ids), m.parts)[1])


def test_the_loss_has_no_origin_and_is_a_mean_of_samples():
    m, batch = model(), batch_of(MOLECULES * 8)
    loss = m.loss(batch, Rng(0, batch.ids)).detach()
    moved = batch.replace(position=batch.state["position"] + torch.tensor([3.0, -2, 1]))
    torch.testing.assert_close(m.loss(moved, Rng(0, batch.ids)).detach(), loss, rtol=1e-4, atol=0)
    alone = [m.loss(batch[k : k + 1], Rng(0, batch.ids[k : k + 1])).detach() for k in range(len(batch))]
    torch.testing.assert_close(torch.stack(alone).mean(), loss, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "task, learned",
    [((1.0, 0.0), {"position"}), ((0.0, 1.0), {"atom", "bond"}), ((0.0, 0.0), {"atom", "bond", "position"})],
)
def test_what_is_held_is_not_learned(monkeypatch, task, learned):
    monkeypatch.setattr(structure_times, "FOLD", task[0])
    monkeypatch.setattr(structure_times, "ASSIGN", task[1])
    m, batch = model(), batch_of(MOLECULES * 4)
    m.loss(batch, Rng(0, batch.ids)).backward()
    net = m.denoiser.network
    heads = {"atom": net.to_atom.weight, "bond": net.to_bond.out.weight, "position": net.to_position.weight.weight}
    moved = {k for k, w in heads.items() if w.grad is not None and bool(w.grad.abs().sum() > 0)}
    assert moved == learned


# Drawing


def same(a: Batch, b: Batch, *fields: str) -> bool:
    return all(torch.equal(a.state[k], b.state[k]) for k in fields)


def assert_in_place(batch: Batch) -> None:
    """Centred, 0 at padding."""
    x, there = batch.state["position"], batch.mask[..., None]
    assert float((x * there).sum(1).abs().max()) < 1e-4 and not bool((x * ~there).any())
    assert bool(x.isfinite().all())


def assert_is_a_graph(batch: Batch) -> None:
    """Of known classes, symmetric, nothing at padding or on the diagonal."""
    atom, bond, exists = batch.state["atom"], batch.state["bond"], batch.exists("bond")
    assert int(atom.max()) < len(CLASSES) and not bool(atom[~batch.mask].any())
    assert int(bond.max()) < len(BONDS) and not bool(bond[~exists].any()) and torch.equal(bond, bond.transpose(1, 2))
    assert len(set(bond[exists].tolist())) > 1


def test_folding_keeps_the_graph():
    m, asked = watched()
    batch = batch_of()
    out = m.fold(batch, Rng(1, batch.ids), steps=4)
    assert same(out, batch, "atom", "bond") and torch.equal(out.mask, batch.mask)
    assert_in_place(out)
    times = torch.linspace(1, 0, 5)[:-1] ** 2
    for (state, t, given), time in zip(asked, times, strict=True):
        assert torch.equal(state["atom"], batch.state["atom"]) and torch.equal(state["bond"], batch.state["bond"])
        assert float(t["atom"]) == float(t["bond"]) == 0 and float(t["position"]) == pytest.approx(float(time))
        assert "rank" not in given
    far = batch.replace(position=batch.state["position"] + 10 * torch.rand(3, 6, 3))
    assert same(m.fold(far, Rng(1, batch.ids), steps=4), out, "position"), "positions are not read where start is 1"
    assert not same(m.fold(batch, Rng(2, batch.ids), steps=4), out, "position")


def test_folding_from_a_start_stays_near_it():
    m, batch = watched()[0], batch_of()
    m.denoiser.network.network = transformer()  # an untrained one is the exact denoiser of unit normals
    rms = []
    for start in (0.02, 0.3):
        out = m.fold(batch, Rng(1, batch.ids), steps=5, start=start)
        assert_in_place(out)
        rms.append(float((out.state["position"] - batch.state["position"])[batch.mask].square().mean().sqrt()))
    sigma = math.sin(0.02 * math.pi / 2)
    assert 0.5 * sigma < rms[0] < 2 * sigma and 8 * rms[0] < rms[1] < 1
    assert float(m.denoiser.network.asked[0][1]["position"]) == pytest.approx(0.02)


def test_a_model_folds_by_its_own_program_in_as_many_calls():
    m, asked = watched()
    batch, plain = batch_of(), {}
    for steps in (3, 4):
        plain[steps] = m.fold(batch, Rng(1, batch.ids), steps=steps)
    near = m.fold(batch, Rng(1, batch.ids), steps=3, start=0.3)
    times = torch.tensor([0.9, 0.5, 0.1, 0.01])
    two = compile_solver(Cosine(), torch.tensor([0.9, 0.5, 0.0]), "ddim")
    m.programs = (two, compile_solver(Cosine(), times, "ancestral"))
    asked.clear()
    out = m.fold(batch, Rng(1, batch.ids), steps=3)
    assert [float(t["position"]) for _, t, _ in asked] == pytest.approx(times[:-1].tolist())
    assert same(out, m.fold(batch, Rng(1, batch.ids), solver=m.programs[1]), "position")
    assert not same(out, plain[3], "position")
    assert same(m.fold(batch, Rng(1, batch.ids), steps=4), plain[4], "position")  # not its number of calls
    assert same(m.fold(batch, Rng(1, batch.ids), steps=3, start=0.3), near, "position")  # nor its beginning
    assert_in_place(out)


def test_a_scheme_of_two_stages_folds():
    m, asked = watched()
    batch = batch_of()
    out = m.fold(batch, Rng(1, batch.ids), solver=compile_solver(Cosine(), torch.tensor([0.9, 0.4, 0.0]), "heun"))
    assert_in_place(out)
    assert same(out, batch, "atom", "bond") and len(asked) == 3
    assert all(torch.equal(state["bond"], batch.state["bond"]) for state, _, _ in asked)


def test_assigning_keeps_the_positions():
    m, asked = watched()
    batch = batch_of()
    shifted = batch.replace(position=batch.state["position"] + 2)
    out = m.assign(shifted, Rng(1, batch.ids), steps=4)
    torch.testing.assert_close(out.state["position"], batch.state["position"], atol=1e-6, rtol=0)
    assert_in_place(out)
    assert_is_a_graph(out)
    assert len(asked) == 4 and all(torch.equal(s["position"], asked[0][0]["position"]) for s, _, _ in asked)
    assert [float(t["atom"]) for _, t, _ in asked] == pytest.approx([1, 9 / 16, 1 / 4, 1 / 16])
    assert all(float(t["position"]) == 0 and float(t["bond"]) == float(t["atom"]) for _, t, _ in asked)
    masked = asked[0][0]
    assert bool((masked["atom"][batch.mask] == 3).all()) and bool((masked["bond"][batch.exists("bond")] == 4).all())
    assert not bool(masked["bond"][~batch.exists("bond")].any()) and not bool(masked["atom"][~batch.mask].any())


ORDER = Order(torch.tensor([[0, 0, 1, 1, 2, 2], [0, 1, 1, -1, -1, -1]]))


def test_generating_draws_sizes_as_the_data_has_them():
    m, asked = watched()
    out = m.generate(Rng(0, torch.arange(400)), steps=2, polish=False)
    share = torch.bincount(out.sites, minlength=7) / 400
    assert share.tolist() == pytest.approx((SIZES / SIZES.sum()).tolist(), abs=0.07)
    assert_is_a_graph(out)
    assert_in_place(out)
    assert len(asked) == 2 and not asked[0][2]
    assert float(asked[0][0]["position"].mean(1).abs().max()) < 1e-5, "noise of no origin"
    given = m.generate(Rng(0, torch.arange(3)), steps=2, sites=torch.tensor([2, 5, 1]), polish=False)
    assert given.sites.tolist() == [2, 5, 1]


def test_generating_in_blocks():
    m, asked = watched()
    out = m.generate(Rng(0, torch.arange(2)), steps=3, order=ORDER, told=True, polish=False)
    assert torch.equal(out.mask, ORDER.rank >= 0) and len(asked) == 9
    assert_is_a_graph(out)
    assert_in_place(out)
    assert all(torch.equal(given["rank"], ORDER.rank) for _, _, given in asked)
    known, pairs = ORDER.rank == 0, (ORDER.rank == 0)[:, :, None] & (ORDER.rank == 0)[:, None]
    for state, t, _ in asked[3:]:
        assert torch.equal(state["atom"][known], out.state["atom"][known])
        assert torch.equal(state["bond"][pairs], out.state["bond"][pairs]) and not bool(t["position"][known].any())
    for k in (1, 2):  # what is known is centred before each block
        x, t, _ = asked[3 * k]
        there = ((ORDER.rank >= 0) & (ORDER.rank < k))[..., None]
        assert float((x["position"] * there).sum(1).abs().max()) < 1e-5
    m.generate(Rng(0, torch.arange(2)), steps=1, order=ORDER, polish=False)
    assert "rank" not in asked[-1][2]


def test_a_polish_moves_positions_alone_and_little():
    m, asked = watched()
    plain, out = (m.generate(Rng(0, torch.arange(4)), steps=3, polish=p) for p in (False, True))
    assert same(plain, out, "atom", "bond") and len(asked) == 3 + 3 + POLISHING
    times = [float(t["position"]) for _, t, _ in asked[6:]]
    assert times == pytest.approx(np.linspace(structures.POLISH, 0, POLISHING + 1)[:-1].tolist())
    assert 0 < float((plain.state["position"] - out.state["position"]).abs().max()) < 1


def test_one_block_is_one_shot():
    m, rng = model(), Rng(1, torch.arange(3))
    free = m.generate(rng, steps=3)
    made = m.generate(rng, steps=3, order=Order(torch.where(free.mask, 0, -1)))
    assert same(made, free, "atom", "bond") and torch.equal(made.mask, free.mask)
    torch.testing.assert_close(made.state["position"], free.state["position"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("draw", ["generate", "blocks", "fold", "assign"])
def test_a_sample_does_not_depend_on_its_batch(draw):
    m, batch = model(), batch_of(MOLECULES * 3)[:7]

    def run(ids):
        rng, part = Rng(3, ids), batch[ids]
        part = part.trim(int(part.sites.max()))
        if draw == "generate":
            return m.generate(rng, steps=4)
        if draw == "blocks":
            return m.generate(rng, steps=4, order=m.profiles.order(rng), told=True)
        return m.fold(part, rng, steps=4) if draw == "fold" else m.assign(part, rng, steps=4)

    whole = run(torch.arange(7))
    assert_is_a_graph(whole)
    for k in range(7):
        alone, n = run(torch.tensor([k])), int(whole.sites[k])
        row = whole[k : k + 1].trim(n)
        assert same(alone, row, "atom", "bond")
        torch.testing.assert_close(alone.state["position"], row.state["position"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [transformer, egnn, pytest.param(e3net, marks=pytest.mark.slow)])
def test_turned_and_exchanged_noise_gives_the_turned_and_exchanged_molecule(make, monkeypatch):
    m, batch = model(make), batch_of()
    noise = centred(torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(0)), batch.mask)

    def folded(x: torch.Tensor, batch: Batch = batch) -> torch.Tensor:
        monkeypatch.setattr(Cosine, "prior", lambda self, like, rng, name, axes: x)
        return m.fold(batch, Rng(0, batch.ids), steps=6, solver="dpm++2m").state["position"]

    plain = folded(noise)
    q = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    for turn in (q, -q):
        torch.testing.assert_close(folded(noise @ turn), plain @ turn, atol=1e-4, rtol=0)
    torch.testing.assert_close(folded(noise + 3), plain, atol=1e-4, rtol=0)
    p = torch.tensor([2, 0, 1])  # sites beyond the third stay
    index = torch.cat([p, torch.arange(3, 6)])
    other = batch.replace(atom=batch.state["atom"][:, index], bond=batch.state["bond"][:, index][:, :, index])
    torch.testing.assert_close(folded(noise[:, index], other), plain[:, index], atol=1e-4, rtol=0)
    assert float((plain - noise).abs().max()) > 0.05


# Exact laws


class Exact(torch.nn.Module):
    """A network under which Denoiser is exact where each coordinate is N(0, 1) and the data's scale is said to be
    `scale`: of a true deviation `std`; graphs are drawn evenly."""

    def __init__(self, std: float, scale: float):
        super().__init__()
        self.std, self.scale = std, scale

    def forward(self, state, t, mask, given, order=None, cache=None):
        alpha, sigma = (v[..., None].float() for v in Cosine().level(t["position"].expand(mask.shape)))
        d, v = self.scale, alpha**2 * self.scale**2 + sigma**2
        x = state["position"] * v.sqrt()
        clean = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x
        flat = lambda x, n: x.new_zeros(*x.shape, n, dtype=torch.float32)
        out = {"atom": flat(state["atom"], 3), "position": (clean - alpha * d**2 / v * x) * v.sqrt() / (sigma * d)}
        return out | ({"bond": flat(state["bond"], len(BONDS))} if "bond" in state else {})


def exact(std: float) -> StructureModel:
    m = model()
    m.denoiser = Denoiser(Exact(std, 1.3), m.denoiser.product, {"position": 1.3})
    return m


@pytest.mark.parametrize("start", [1.0, 0.5])
@pytest.mark.parametrize("solver", ["dpm++2m", "sde-dpm++2m"])
def test_folding_samples_independent_normals(start, solver):
    """Of deviation c about a free centre: c^2 (1 - 1/n) on each axis; a flow gives c times its noise."""
    c, n, b = 1.7, 4, 3000
    batch = Batch(schema(CLASSES) | {"position": POSITION}, batch_of([FORMALDEHYDE] * b).state, torch.ones(b, n).bool())
    data = c * torch.randn(b, n, 3, generator=torch.Generator().manual_seed(0))
    batch = batch.replace(position=centred(data, batch.mask))
    x = exact(c).fold(batch, Rng(0, batch.ids), steps=40, solver=solver, start=start).state["position"]
    assert float(x.square().mean()) == pytest.approx(c**2 * (1 - 1 / n), rel=0.05)
    assert float((x[:, 0] * x[:, 1]).mean()) == pytest.approx(-(c**2) / n, rel=0.15)
    if solver == "dpm++2m" and start == 1:
        noise = centred(Cosine().prior(data, Rng(0, batch.ids).at(0), "position", 1), batch.mask)
        expected = GaussianOracle(Cosine(), 0.0, c).flow(noise, torch.ones(()).double(), torch.zeros(()).double())
        torch.testing.assert_close(x, expected.float(), atol=0.03, rtol=0.03)


def test_generating_samples_independent_normals_and_even_graphs():
    c = 1.7
    out = exact(c).generate(Rng(0, torch.arange(2000)), steps=30, sites=torch.full((2000,), 4), polish=False)
    assert float(out.state["position"].square().mean()) == pytest.approx(c**2 * 3 / 4, rel=0.05)
    atoms, bonds = out.state["atom"].flatten(), out.state["bond"][out.exists("bond")]
    assert (torch.bincount(atoms) / len(atoms)).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert (torch.bincount(bonds) / len(bonds)).tolist() == pytest.approx([1 / 4] * 4, abs=0.02)


def test_later_blocks_are_normals_about_what_is_known():
    """As they are learned: the sites of a later block are noise about the centre of the known ones."""
    c, b = 1.7, 1000
    order = Order(torch.tensor([[0, 1, 1, 1]]).expand(b, -1))
    out = exact(c).generate(Rng(0, torch.arange(b)), steps=30, order=order, polish=False)
    x = out.state["position"]
    away = x[:, 1:] - x[:, :1]
    assert float(away.square().mean()) == pytest.approx(c**2, rel=0.05)
    assert float((away[:, 0] * away[:, 1]).mean()) == pytest.approx(0, abs=0.05 * c**2)


# Learning


def bond_errors(batch: Batch, bonds: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """(B,): the largest error of a bond's length, angstrom."""
    i, j = bonds.nonzero(as_tuple=True)
    length = lambda x: (x[..., i, :] - x[..., j, :]).norm(dim=-1)
    return (length(batch.state["position"]) - length(truth)).abs().amax(1)


@pytest.mark.slow
def test_it_learns_a_molecule_by_heart(monkeypatch):
    monkeypatch.setattr(structure_times, "FOLD", 0.35)
    monkeypatch.setattr(structure_times, "ASSIGN", 0.1)
    truth, many = batch_of([FORMALDEHYDE]), batch_of([FORMALDEHYDE] * 64)
    m = model(lambda: transformer(32), untrained=True, parts=0.0)
    config = FitConfig(400, batch_size=64, lr=5e-3, warmup=20, ema=0.98, checkpoint_every=0)
    m = fit(m, many, config, progress=False).eval()
    rng, n = Rng(5, torch.arange(32)), 32
    errors = bond_errors(m.fold(many[:n], rng, steps=20), truth.state["bond"][0], truth.state["position"][0])
    assert float(errors.median()) < 0.05, errors
    made = m.generate(rng, steps=30, sites=torch.full((n,), 4))
    for batch, share in ((made, 0.6), (m.assign(many[:n], rng, steps=10), 0.8)):
        found = [x.smiles for x in Molecule.unbatch(batch)]
        assert found.count("C=O") > share * n, found
