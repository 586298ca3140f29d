"""Crystals as sequences: nothing is lost, the order is of the crystal alone, and two crystals are learned by heart."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.autoregression.unigenx import UniGenXConfig
from unisci.autoregression.unigenx_crystals import (
    ATOM,
    BOS,
    CELL,
    COORD,
    ELEMENT,
    EOS,
    ROW,
    CrystalUniGenX,
    Layout,
    arrange,
    read,
    write,
)
from unisci.domains.crystal import Crystal, CrystalError
from unisci.lattice import wrap
from unisci.networks.sequence_transformer import SequenceTransformerConfig
from unisci.processes.torus import UNIFORM_DEVIATION
from unisci.rng import Rng

SMALL = UniGenXConfig(SequenceTransformerConfig(width=16, layers=2, heads=2), head_width=16, head_depth=2)
LAYOUTS = [Layout(), Layout(periodic=False), Layout(shuffle=True), Layout(periodic=False, translate=True)]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)

PEROVSKITE = Crystal(
    [8, 22, 8, 38, 8], [[0.5, 0.5, 0], [0.5] * 3, [0.5, 0, 0.5], [0] * 3, [0, 0.5, 0.5]], np.eye(3) * 3.9
)
ROCK_SALT = Crystal([17, 11], [[0.25] * 3, [0.75] * 3], np.linalg.cholesky((np.eye(3) + 1) * 7.95))
CRYSTALS = [
    PEROVSKITE,
    ROCK_SALT,
    Crystal([14, 8, 14], [[0.1, 0.2, 0.3], [0.4, 0.8, 0.2], [0.6, 0.1, 0.9]], [[3, 0, 0], [0.5, 4, 0], [-1, 0.7, 5]]),
]


LARGE = Crystal([26] * 40, np.random.default_rng(0).random((40, 3)), np.eye(3) * 9)


def random_crystal(seed: int) -> Crystal:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    lattice = np.tril(rng.normal(size=(3, 3))) + np.diag(rng.uniform(4, 8, 3))
    return Crystal(rng.choice([3, 8, 26], n), rng.random((n, 3)), lattice)


def model(layout: Layout = LAYOUTS[0], std: float = 0.1) -> CrystalUniGenX:
    torch.manual_seed(0)
    m = CrystalUniGenX(SMALL, layout)
    for p in m.parameters():
        torch.nn.init.normal_(p, std=std)
    return m.eval()


@each_layout
def test_a_sequence_is_read_back(layout):
    batch = Crystal.batch(CRYSTALS)
    again = read(write(batch, layout), layout)
    assert torch.equal(again.mask, batch.mask) and torch.equal(again.state["cell"], batch.state["cell"])
    assert torch.equal(again.state["atom"][batch.mask], batch.state["atom"][batch.mask])
    torch.testing.assert_close(again.state["position"], batch.state["position"], rtol=0, atol=1e-6)
    assert torch.equal(read(write(batch[slice(1, 2)].trim(2), layout), layout).state["cell"], batch.state["cell"][1:2])


def test_what_a_crystal_says():
    """Word by word, number by number: rows of the cell hold their own numbers, zeros above the diagonal are known."""
    batch = Crystal.batch(CRYSTALS[::2])
    s = write(batch, Layout())
    z = lambda *numbers: [n - 1 + ELEMENT for n in numbers]
    rows = [ROW, ROW + 1, ROW + 2]
    assert s.state["word"][0].tolist() == [BOS, *z(8, 22, 8, 38, 8), COORD, *rows, *z(8, 22, 8, 38, 8), EOS]
    assert s.state["word"][1][s.mask[1]].tolist() == [BOS, *z(14, 8, 14), COORD, *rows, *z(14, 8, 14), EOS]
    assert s.given["slot"][1].tolist() == [0] * 5 + [CELL] * 3 + [ATOM] * 3 + [0] * 5
    cell = batch.state["cell"][1].tolist()
    la, lb, lc, u, v, w = cell
    assert s.state["value"][1, 5:8].tolist() == [[la, 0, 0], [u, lb, 0], [v, w, lc]]
    assert s.given["free"][1, 5:8].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert s.given["free"][1, 8:].any(1).tolist() == [False, True, True] + [False] * 5
    assert torch.equal(s.state["value"][1, 8:11], batch.state["position"][1, :3])
    drawn = write(batch, Layout(translate=True), pinned=False)
    assert drawn.given["free"][1, 8:].any(1).tolist() == [True, True, True] + [False] * 5
    plain = write(batch, Layout(periodic=False))
    torch.testing.assert_close(plain.state["value"][1, 8:11] * UNIFORM_DEVIATION + 0.5, batch.state["position"][1, :3])


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_the_order_is_of_the_crystal_alone(seed):
    """Other orders of storing, another origin, other padding: one sequence (S04, check 5)."""
    c, rng = random_crystal(seed), np.random.default_rng(seed + 1)
    p = rng.permutation(len(c))
    moved = Crystal(c.numbers[p], c.fractional[p] + rng.random(3), c.lattice)
    a, b = arrange(Crystal.batch([c]), Layout()), arrange(Crystal.batch([moved, LARGE]), Layout())
    n = len(c)
    assert torch.equal(a.state["atom"][0], b.state["atom"][0, :n])
    assert float(wrap(a.state["position"][0] - b.state["position"][0, :n]).abs().max()) < 1e-5
    assert float(a.state["position"][0, 0].abs().max()) == 0
    counts = [int((c.numbers == z).sum()) * 1000 + int(z) for z in (a.state["atom"][0] + 1).tolist()]
    assert counts == sorted(counts)


def test_a_small_displacement_does_not_change_the_order():
    """About symmetric sites, where a plain sort would follow the noise, and where a coordinate is about 0."""
    rng, reference = np.random.default_rng(0), arrange(Crystal.batch([PEROVSKITE]), Layout()).state["position"]
    for _ in range(50):
        jitter = rng.uniform(-0.01, 0.01, (5, 3))
        c = Crystal(PEROVSKITE.numbers, PEROVSKITE.fractional + jitter, PEROVSKITE.lattice)
        position = arrange(Crystal.batch([c]), Layout()).state["position"]
        assert float(wrap(position - reference).abs().max()) < 0.025


def test_a_hair_below_one_is_zero():
    c = Crystal([3, 8], [[0.2] * 3, [0.2 - 3e-5, 0.7, 0.2]], np.eye(3) * 3)
    assert arrange(Crystal.batch([c]), Layout()).state["position"][0, 1, 0] == 0


def test_shuffled_atoms_come_in_every_order():
    batch = Crystal.batch([CRYSTALS[2], PEROVSKITE])
    batch = batch[torch.arange(600) % 2]
    rng = Rng(0, torch.arange(600))
    out = arrange(batch, Layout(shuffle=True), rng)
    assert torch.equal(out.mask.sum(1), batch.sites) and float(out.state["position"][:, 0].abs().max()) == 0
    middle = (out.state["atom"][::2, :3] == 7).float().mean(0)
    assert middle.tolist() == pytest.approx([1 / 3] * 3, abs=0.08)
    for k in (0, 1):
        plain = lambda x, k=k: arrange(x[slice(k, k + 1)], Layout()).state
        for key, value in plain(out).items():
            torch.testing.assert_close(value, plain(batch)[key], rtol=0, atol=1e-5)
    unshuffled = arrange(batch, Layout(shuffle=True))
    assert torch.equal(unshuffled.state["atom"], arrange(batch, Layout()).state["atom"])


def test_translated_crystals_lie_anywhere():
    batch = Crystal.batch([ROCK_SALT] * 500)
    layout = Layout(translate=True)
    x = arrange(batch, layout, Rng(0, batch.ids)).state["position"]
    assert bool(((x >= 0) & (x < 1)).all()) and float((x[:, 0].mean(0) - 0.5).abs().max()) < 0.05
    assert float(x[:, 0].std(0).sub(UNIFORM_DEVIATION).abs().max()) < 0.03
    torch.testing.assert_close((x[:, 1] - x[:, 0]).abs(), torch.full((500, 3), 0.5), rtol=0, atol=2e-4)


@each_layout
def test_the_loss_of_every_layout_teaches_every_weight(layout):
    m, batch = model(layout), Crystal.batch(CRYSTALS * 5)
    loss = m.loss(batch, Rng(0, batch.ids))
    loss.backward()
    assert bool(loss.isfinite())
    unused = {"sequence.next_word.weight"}  # rows of words that were not there
    dull = [k for k, p in m.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert set(dull) <= unused
    assert not torch.equal(m.loss(batch, Rng(1, batch.ids)), loss)


def test_a_training_example_depends_on_its_id_alone():
    m, batch = model(Layout(shuffle=True)), Crystal.batch(CRYSTALS)
    rng = Rng(0, batch.ids)
    whole = arrange(batch, m.layout, rng)
    alone = arrange(batch[torch.tensor([1])].trim(2), m.layout, rng[torch.tensor([1])])
    assert torch.equal(alone.state["atom"], whole.state["atom"][1:2, :2])


@each_layout
def test_predictions_have_the_atoms_and_depend_on_seed_and_id_alone(layout):
    m, formulas = model(layout, 0.05), [c.numbers for c in CRYSTALS]
    rng = Rng(3, torch.tensor([4, 8, 6]))
    out = m.predict(formulas, rng, 4)
    assert out.ids.tolist() == [4, 8, 6] and out.sites.tolist() == [5, 2, 3]
    crystals = Crystal.unbatch(out)
    for c, numbers in zip(crystals, formulas, strict=True):
        assert sorted(c.numbers.tolist()) == sorted(numbers.tolist())
    rows = torch.tensor([1])
    alone = m.predict([formulas[1][::-1].copy()], rng[rows], 4)
    torch.testing.assert_close(alone.state["cell"], out.state["cell"][rows], rtol=0, atol=1e-4)
    gap = wrap(alone.state["position"] - out.state["position"][rows, :2])
    assert float(gap.abs().max()) < 1e-3
    first = out.state["position"][:, 0].abs().max(1).values
    assert bool((first == 0).all() if not layout.translate else (first > 1e-3).all())


def test_formulas_are_checked():
    m = model()
    rng = Rng(0, torch.arange(1))
    for wrong in ([], [0, 3], [101], [1] * 65):
        with pytest.raises(CrystalError, match=r"are not 1 to 64 atomic numbers from 1 to 100"):
            m.predict([np.array(wrong, int)], rng)
    with pytest.raises(ValueError, match="2 formulas for 1 samples"):
        m.predict([np.array([3]), np.array([3])], rng)


def test_crystals_survive_the_sequence():
    """As the structure matcher sees them (S04, check 5)."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher, crystals = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10), [*CRYSTALS, random_crystal(1)]
    batch = Crystal.batch(crystals)
    for layout in LAYOUTS:
        arranged = arrange(batch, layout, Rng(0, batch.ids))
        again = Crystal.unbatch(read(write(arranged, layout), layout))
        for c, d in zip(crystals, again, strict=True):
            assert matcher.get_rms_dist(c.structure, d.structure)[0] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(), Layout(periodic=False), Layout(shuffle=True)], ids=str)
def test_it_learns_two_crystals(layout):
    """Trained on two, it predicts both; with coordinates drawn anew they match far less often (S04, check 6)."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from unisci.training.fit import FitConfig, fit

    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, trunk=SequenceTransformerConfig(width=48, layers=2, heads=2), head_width=64)
    data = Crystal.batch([PEROVSKITE, CRYSTALS[2]] * 32)
    m = CrystalUniGenX(config, layout)
    fitting = FitConfig(700, batch_size=32, lr=4e-3, ema=0.98, warmup=50, checkpoint_every=0)
    m = fit(m, data, fitting, progress=False).eval()
    truth = [PEROVSKITE, CRYSTALS[2]] * 15
    out = Crystal.unbatch(m.predict([c.numbers for c in truth], Rng(1, torch.arange(30)), 20))
    matcher, rng = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10), np.random.default_rng(0)
    shuffled = [Crystal(c.numbers, rng.random((len(c), 3)), c.lattice) for c in out]
    rates = []
    for found in (out, shuffled):
        rms = [matcher.get_rms_dist(a.structure, b.structure) for a, b in zip(found, truth, strict=True)]
        rates.append(sum(r is not None and r[0] < 0.1 for r in rms) / len(rms))
    assert rates[0] > 0.9 and rates[0] - rates[1] > 0.4
