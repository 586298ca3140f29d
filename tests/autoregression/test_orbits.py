"""The model of orbits: its words are a proper distribution that its draws follow, and it learns crystals."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from tests.autoregression.test_orbit_rules import NAMES, TABLE
from tests.domains.groups import primitive_cell
from unisci.autoregression import orbits
from unisci.autoregression.orbits import OrbitModel, Words
from unisci.batch import Batch
from unisci.domains.orbit_batches import MAX_SPECIES, ORBIT_FIELDS, WyckoffTable, batch_of, orbits_of
from unisci.domains.wyckoff import Orbits
from unisci.lattice import wrap
from unisci.networks.orbit_transformer import MOST, OrbitTransformerConfig
from unisci.rng import Rng

FORMULAS = {"Si3 P2": ([14, 15], [3, 2]), "O2 F2": ([8, 9], [2, 2]), "C8 N O": ([6, 7, 8], [8, 1, 1])}


def model(table: WyckoffTable = TABLE, width: int = 16, std: float = 0.25) -> OrbitModel:
    torch.manual_seed(0)
    config = OrbitTransformerConfig(width=width, layers=2, heads=4, dropout=0.0)
    m = OrbitModel(config, table, torch.randn(101, 5), torch.full((101,), 12.0))
    for p in m.parameters() if std else ():  # far from uniform
        torch.nn.init.normal_(p, std=std)
    return m.eval()


def formula(name: str, b: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.tensor([v]).expand(b, -1) for v in FORMULAS[name])


def batch_of_words(group, element, wyckoff, mask, species, counts) -> Batch:
    pad = lambda v: F.pad(v, (0, MAX_SPECIES - v.shape[1]))
    state = {"group": group, "element": element, "wyckoff": wyckoff, "species": pad(species), "counts": pad(counts)}
    return Batch(ORBIT_FIELDS, state, mask)


def surprise(m: OrbitModel, group: list[int], element: list[int], wyckoff: list[list[int]], name: str) -> list[float]:
    """Of words (B,) that share their elements."""
    b, n = len(group), len(element)
    z, w = torch.tensor(element).long().expand(b, n), torch.tensor(wyckoff).long().reshape(b, n)
    batch = batch_of_words(torch.tensor(group), z, w, torch.ones_like(z, dtype=torch.bool), *formula(name, b))
    with torch.no_grad():
        return m.surprise(batch)[1].tolist()


def paths(m: OrbitModel, name: str) -> dict[tuple, tuple[float, bool]]:
    """(group, positions) -> probability, whether complete: by trying every position at every place."""
    (species, counts), found, v = FORMULAS[name], {}, len(TABLE)
    place = [z for z, n in zip(species, counts, strict=True) for _ in range(n)]
    groups = surprise(m, list(range(1, 231)), [], [[]] * 230, name)
    open_ = [(g, [], [], 0, s) for g, s in enumerate(groups, 1) if s < 1e8]
    while open_:
        group, element, wyckoff, placed, told = open_.pop()
        if placed == len(place):
            found[group, tuple(wyckoff)] = (torch.tensor(-told).exp().item(), True)
            continue
        z, rows = [*element, place[placed]], [[*wyckoff, k] for k in range(v)]
        costs = surprise(m, [group] * v, z, rows, name)
        if max(costs) < 1e8:  # nothing is ruled out, as nothing is allowed
            found[group, tuple(wyckoff)] = (torch.tensor(-told).exp().item(), False)
            continue
        sizes = TABLE.multiplicities.tolist()
        open_ += [(group, z, rows[k], placed + sizes[k], c) for k, c in enumerate(costs) if c < 1e8]
    return found


@pytest.mark.parametrize("name", FORMULAS)
def test_words_are_a_distribution_that_draws_follow(name):
    m, n = model(), 2000
    found = paths(m, name)
    assert sum(p for p, _ in found.values()) == pytest.approx(1, abs=1e-4) and len(found) > 2
    assert len({g for g, _ in found}) > 1
    species, counts = formula(name, n)
    words = m.draw_words(species, counts, Rng(0, torch.arange(n)))
    done = words.log_probability > -torch.inf
    drawn = Counter(
        (g, tuple(w[k].tolist()), d)
        for g, w, k, d in zip(words.group.tolist(), words.wyckoff, words.mask, done.tolist(), strict=True)
    )
    assert drawn.keys() <= {(*k, complete) for k, (_, complete) in found.items()}
    for k, (p, complete) in found.items():
        assert drawn[(*k, complete)] / n == pytest.approx(p, abs=4.5 * (p / n) ** 0.5 + 1e-3)
    batch = batch_of_words(words.group, words.element, words.wyckoff, words.mask, species, counts)[done]
    with torch.no_grad():
        torch.testing.assert_close(words.log_probability[done], -m.surprise(batch)[1], atol=1e-4, rtol=0)


def test_some_words_come_to_no_end():
    """Both elements want the one position of two sites."""
    found = paths(model(), "Si3 P2")
    assert not all(done for _, done in found.values())
    names = {tuple(NAMES[v] for v in wyckoff): done for (_, wyckoff), (_, done) in found.items()}
    assert names["225a", "225c"] is False and names["47c", "47i", "47i"] is True


def test_complete_words_hold_the_formula():
    m = model()
    for name, (species, counts) in FORMULAS.items():
        w = m.draw_words(*formula(name, 200), Rng(1, torch.arange(200)))
        held = m.rules.held(w.wyckoff, w.mask)
        done = w.log_probability > -torch.inf
        for z, n in zip(species, counts, strict=True):
            assert bool((((w.element == z) * held).sum(1)[done] == n).all())
        assert bool(done.any()) and float(w.element[done][~w.mask[done]].sum()) == 0


def test_an_impossible_formula_is_told():
    m = model(WyckoffTable(tuple(p for p in TABLE.positions if p.group in (2, 221))))
    species, counts = torch.tensor([[8, 9], [8, 9]]), torch.tensor([[1, 2], [2, 2]])
    assert m.draw_words(species, counts, Rng(0, torch.arange(2))).log_probability.isneginf().tolist() == [True, False]


def test_groups_to_choose_from():
    only = torch.arange(231) == 2
    words = model().draw_words(*formula("O2 F2", 20), Rng(0, torch.arange(20)), groups=only)
    assert words.group.tolist() == [2] * 20 and bool((words.log_probability > -torch.inf).all())


def test_cold_draws_are_the_likeliest():
    m, name = model(), "O2 F2"
    found = paths(m, name)
    words = m.draw_words(*formula(name, 30), Rng(0, torch.arange(30)), temperature=1e-4)
    assert (
        len(
            {(g, tuple(w[k].tolist())) for g, w, k in zip(words.group.tolist(), words.wyckoff, words.mask, strict=True)}
        )
        == 1
    )
    by_group = Counter()
    for (g, _), (p, _) in found.items():
        by_group[g] += p
    group = max(by_group, key=by_group.get)
    best = max((k for k in found if k[0] == group), key=lambda k: found[k][0])
    assert (int(words.group[0]), tuple(words.wyckoff[0][words.mask[0]].tolist())) == best
    torch.testing.assert_close(words.log_probability[0].exp(), torch.tensor(found[best][0]), atol=1e-5, rtol=1e-4)


class Tiny(torch.nn.Module):
    """Words whose formulas are of elements 1 to 3, ascending, each once or twice."""

    def __init__(self, words: torch.nn.Module):
        super().__init__()
        self.words = words

    def forward(self, species, *rest):
        element, count, group, wyckoff = self.words(species, *rest)
        z, last = torch.arange(101), F.pad(species, (1, 0))[..., None]
        fits = ((z > last) & (z <= 3)) | ((z == 0) & (torch.arange(element.shape[1]) > 0)[:, None])
        n = torch.arange(MOST + 1)
        return element.masked_fill(~fits, -1e9), count.masked_fill((n < 1) | (n > 2), -1e9), group, wyckoff


def test_formulas_follow_their_surprise():
    m, n = model(), 800
    m.words = Tiny(m.words)
    choices = torch.cartesian_prod(*[torch.arange(3)] * 3)[1:]  # how many of 1, 2, 3
    rows = [(torch.arange(1, 4)[c > 0], c[c > 0]) for c in choices]
    species, counts = (torch.stack([F.pad(r[k], (0, 3 - len(r[k]))) for r in rows]) for k in (0, 1))
    p = (-m.formula_surprise(species, counts)).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)
    drawn = Counter(
        map(tuple, torch.cat([v[:, :3] for v in m.draw_formulas(Rng(0, torch.arange(n)), MOST)], 1).tolist())
    )
    for row, share in zip(torch.cat([species, counts], 1).tolist(), p.tolist(), strict=True):
        assert drawn[tuple(row)] / n == pytest.approx(share, abs=4.5 * (share / n) ** 0.5 + 1e-3)
    full = batch_of_words(
        *(torch.zeros(26, *k).long() for k in ((), (1,), (1,))), torch.zeros(26, 1) > 0, species, counts
    )
    with torch.no_grad():
        torch.testing.assert_close(m.surprise(full)[0], m.formula_surprise(species, counts), atol=1e-4, rtol=0)


def test_formulas_ascend_and_are_not_too_large():
    for most in (1, 5, 20):
        species, counts = model().draw_formulas(Rng(0, torch.arange(100)), most)
        there = species > 0
        assert species.shape == counts.shape == (100, MAX_SPECIES)
        assert torch.equal(there, counts > 0) and bool(there[:, 0].all())
        assert int(counts.sum(1).max()) <= most and int(counts.sum(1).max()) > most // 2
        assert bool(((species[:, 1:] > species[:, :-1]) | ~there[:, 1:]).all())
        assert bool((there[:, :-1] | ~there[:, 1:]).all())
    some = torch.isin(torch.arange(101), torch.tensor([8, 22, 38]))
    species, _ = model().draw_formulas(Rng(0, torch.arange(100)), elements=some)
    assert set(species.unique().tolist()) == {0, 8, 22, 38}


def crystals() -> tuple[WyckoffTable, Batch]:
    found = [Orbits.of(primitive_cell(n)) for n in ("rutile", "CaTiO3", "C2/m", "P1")]
    table = WyckoffTable.of(found)
    return table, batch_of(found, table)


def test_a_sample_does_not_depend_on_its_batch():
    table, batch = crystals()
    m, ids = model(table, std=0.1), torch.arange(4)
    species, counts = batch.state["species"], batch.state["counts"]
    words = m.draw_words(species, counts, Rng(3, ids))
    made = m.draw_geometry(words, species, counts, Rng(4, ids), steps=3)
    for i in range(4):
        row = ids[i : i + 1]
        s = int((species[i] > 0).sum())
        alone = m.draw_words(species[row, :s], counts[row, :s], Rng(3, row))
        n = int(words.mask[i].sum())
        assert int(alone.mask.sum()) == n and int(alone.group) == int(words.group[i])
        assert torch.equal(alone.wyckoff[0, :n], words.wyckoff[i, :n])
        torch.testing.assert_close(alone.log_probability, words.log_probability[row], atol=1e-4, rtol=1e-4)
        again = m.draw_geometry(alone, species[row, :s], counts[row, :s], Rng(4, row), steps=3)
        torch.testing.assert_close(again.state["cell"], made.state["cell"][row], atol=1e-5, rtol=0)
        gap = wrap(again.state["free"][0, :n] - made.state["free"][i, :n])
        assert n == 0 or float(gap.abs().max()) < 1e-5
    several = m.draw_formulas(Rng(5, torch.arange(6)))
    one = m.draw_formulas(Rng(5, torch.tensor([4])))
    assert all(torch.equal(a[4:5], b) for a, b in zip(several, one, strict=True))


def test_words_do_not_depend_on_their_batch():
    """Among 60 draws of formulas of unlike length, some of which end early."""
    m, ids = model(std=0.1), torch.arange(60)
    long = (torch.tensor([[6, 7, 8]]), torch.tensor([[16, 6, 1]]))
    short = (torch.tensor([[8, 0, 0]]), torch.tensor([[2, 0, 0]]))
    species, counts = (torch.cat([a, b]).repeat(30, 1) for a, b in zip(long, short, strict=True))
    whole = m.draw_words(species, counts, Rng(0, ids))
    assert len({(g, *w) for g, w in zip(whole.group.tolist(), map(tuple, whole.wyckoff.tolist()), strict=True)}) > 10
    for row in (ids[10::7, None]).unbind(0):
        alone, n = m.draw_words(species[row], counts[row], Rng(0, row)), int(whole.mask[row].sum())
        assert int(alone.group) == int(whole.group[row]) and int(alone.mask.sum()) == n
        assert torch.equal(alone.wyckoff[0, :n], whole.wyckoff[row][0, :n])


def told(batch: Batch) -> Words:
    s = batch.state
    return Words(s["group"], s["element"], s["wyckoff"], batch.mask, torch.zeros(len(batch)))


def test_only_what_is_free_moves_and_stays_inside(monkeypatch):
    table, batch = crystals()
    m, s = model(table, std=0.1), batch.state
    out = m.draw_geometry(told(batch), s["species"], s["counts"], Rng(0, batch.ids), steps=4)
    free = m.rules.free[s["wyckoff"]] & batch.mask[..., None]
    u = out.state["free"]
    assert float(u[~free & batch.mask[..., None]].abs().max()) == 0 and float(u[free].min()) > 0 and float(u.max()) < 1
    assert all(torch.equal(out.state[k], s[k]) for k in ("element", "wyckoff", "group", "species", "counts"))
    assert [o.group for o in orbits_of(out, table)] == s["group"].tolist()
    monkeypatch.setattr(orbits, "sample", lambda d, x, *_: x | {"free": torch.full_like(x["free"], -1e-9)})
    again = m.draw_geometry(told(batch), s["species"], s["counts"], Rng(0, batch.ids))
    assert float(again.state["free"].max()) < 1


def test_noise_leaves_alone_what_is_not_free(monkeypatch):
    table, batch = crystals()
    m, seen = model(table, std=0.1), []
    monkeypatch.setattr(m.denoiser, "loss", lambda b, rng, t, noisy: seen.append((b, noisy)) or torch.zeros(()))
    m.geometry_loss(batch, Rng(0, batch.ids))
    (b, noisy), free = seen[0], m.rules.free[batch.state["wyckoff"]]
    assert float(noisy["free"][~free].abs().max()) == 0 and set(b.state) == {"free", "cell"}
    moved = (noisy["free"] != batch.state["free"])[free & batch.mask[..., None]]
    assert bool(moved.all())


def test_every_parameter_learns():
    table, batch = crystals()
    m = model(table, std=0.1)
    m.loss(batch, Rng(0, batch.ids)).backward()
    assert [k for k, p in m.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_the_loss_is_that_of_its_parts_and_repeats():
    table, batch = crystals()
    m, rng = model(table, std=0.1), Rng(0, batch.ids)
    total = m.loss(batch, rng)
    torch.testing.assert_close(total, sum(m.surprise(batch)).mean() + m.geometry_loss(batch, rng))
    assert torch.equal(total, m.loss(batch, rng)) and not torch.equal(total, m.loss(batch, Rng(1, batch.ids)))


@pytest.mark.slow
def test_it_learns_three_crystals():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    from unisci.training.fit import FitConfig, fit

    truth = [primitive_cell(n) for n in ("rock salt", "perovskite", "rutile")]
    found = [Orbits.of(c) for c in truth]
    table = WyckoffTable.of(found)
    batch = batch_of(found * 16, table)
    m = model(table, width=32, std=0).train()
    config = FitConfig(steps=600, batch_size=48, lr=3e-3, warmup=20, ema=0.99)
    trained = fit(m, Batch(batch.schema, batch.state, batch.mask), config, progress=False).eval()
    rows = torch.arange(3).repeat_interleave(20)
    species, counts = (batch.state[k][:3][rows] for k in ("species", "counts"))
    words = trained.draw_words(species, counts, Rng(0, torch.arange(60)))
    assert float(words.log_probability.exp().mean()) > 0.9
    made = orbits_of(trained.draw_geometry(words, species, counts, Rng(1, torch.arange(60))), table)
    fits = [
        StructureMatcher().fit(o.crystal.structure, truth[i].structure)
        for o, i in zip(made, rows.tolist(), strict=True)
    ]
    shares = torch.tensor(fits).view(3, 20).float().mean(1)
    assert float(shares.min()) >= 0.9, shares
