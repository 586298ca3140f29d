import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.jobs.small import CLASSES, SIZES
from unisci.autoregression.pard import Pard, ordered
from unisci.batch import Batch
from unisci.design.designer import Designer
from unisci.design.samples import Samples
from unisci.design.steering import LEAST, MISSED, Followed, Steering, Twist, _scores, log_probability
from unisci.design.targets import (
    Above,
    Below,
    Between,
    Composition,
    Contains,
    Formula,
    Keep,
    Maximize,
    Target,
    Without,
    wants,
)
from unisci.domains.molecule import Molecule
from unisci.guidance.particles import particle_rng
from unisci.jobs import property_models
from unisci.order import Order
from unisci.rng import Rng

ATOM, BOND = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]), torch.tensor([0.5, 0.47, 0.02, 0.01])


def size(molecules):
    return [len(m.atoms) for m in molecules]


class Carbons:
    """Stands for a model of properties: "logp" is the number of carbons so far, +- 1, in data that spread by 2."""

    names, std = ("logp",), torch.tensor([2.0])

    def __call__(self, state, t, mask, given, order):
        atom = state["atom"]
        carbon = atom[..., 0] if atom.is_floating_point() else (atom == 0).float()
        mean = (carbon * mask).sum(1, keepdim=True) + 0 * state["bond"].flatten(1).sum(1, keepdim=True)
        return mean, torch.ones_like(mean)


@pytest.fixture(scope="module")
def knowing(designer) -> Designer:
    """The designer with an untrained model of logp and qed."""
    torch.manual_seed(3)
    moments = torch.tensor([0.3, 0.5]), torch.tensor([1.0, 0.1])
    model = property_models.build(SIZES, "marginal", 1, CLASSES, ("logp", "qed"), ATOM, BOND, *moments)
    return replace(designer, properties=model.eval())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads share out a matrix product by its size, and so round it by its size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def untouched(monkeypatch) -> None:
    """Fails where the model is asked to draw."""
    monkeypatch.setattr(Pard, "generate", lambda *a, **k: pytest.fail("something was drawn"))


def texts(samples: Samples) -> list[tuple[str, str]]:
    return [m.to_text() for m in samples]


def count(samples: Samples, element: str) -> int:
    return sum(name.rstrip("+-1") == element for m in samples for name in m.atoms)


def rate(samples: Samples, where) -> float:
    return samples.meets(where).hit_rates()["share"].iloc[-1]


# ---- log P(low <= v <= high) --------------------------------------------------------------------------


def double(x: float) -> Tensor:
    return torch.tensor([x], dtype=torch.float64)


@pytest.mark.parametrize("low, high", [(-1, 1), (0.5, 0.7), (-math.inf, 0.3), (2, math.inf), (-3, 4), (-2.5, -2)])
@pytest.mark.parametrize("mean, std", [(0, 1), (1.3, 0.4), (-0.7, 2.5), (3, 5)])
def test_log_probability_is_that_of_the_error_function(low, high, mean, std):
    cdf = lambda v: (1 + math.erf((v - mean) / std / math.sqrt(2))) / 2
    expected = cdf(high) - cdf(low)
    if expected < 1e-6:
        pytest.skip("the difference of two error functions has lost its digits")
    found = log_probability(double(mean), double(std), low, high)
    assert float(found) == pytest.approx(math.log(expected), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("distance", [5.0, 8.0, 20.0, 37.0])
@pytest.mark.parametrize("width", [0.1, 2.0, math.inf])
def test_log_probability_is_right_in_both_tails(distance, width):
    """By quadrature of the density, relative to its largest value: the ends lie `distance` deviations away."""
    y = torch.linspace(0, min(width, 12.0), 400_001, dtype=torch.float64)
    density = torch.exp(-distance * y - y**2 / 2)
    expected = -(distance**2) / 2 - math.log(2 * math.pi) / 2 + math.log(float(torch.trapezoid(density, y)))
    mean, std = double(1.0), double(0.5)
    above = log_probability(mean, std, 1 + 0.5 * distance, 1 + 0.5 * (distance + width))
    below = log_probability(mean, std, 1 - 0.5 * (distance + width), 1 - 0.5 * distance)
    assert float(above) == pytest.approx(expected, rel=1e-7) and float(below) == pytest.approx(expected, rel=1e-7)


def test_the_gradient_is_that_of_the_error_function():
    mean, std = double(0.4).requires_grad_(), double(1.7).requires_grad_()
    normal = torch.distributions.Normal(mean, std)
    for low, high in ((-1.0, 0.2), (0.1, 3.0), (-5.0, 1.0)):
        exact = (normal.cdf(torch.tensor(high)) - normal.cdf(torch.tensor(low))).log()
        found = log_probability(mean, std, low, high)
        for a, b in zip(torch.autograd.grad(exact, (mean, std)), torch.autograd.grad(found, (mean, std)), strict=True):
            assert float(b) == pytest.approx(float(a), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low, high", [(-math.inf, 0), (0, math.inf), (0, 1), (0, 0), (0, 1e-9), (-1e6, 1e6)])
def test_far_from_the_interval_value_and_gradient_are_finite_and_point_to_it(low, high, dtype):
    mean = torch.tensor([-400.0, -40.0, -8.0, 8.0, 40.0, 400.0], dtype=dtype, requires_grad=True)
    std = torch.full_like(mean, 0.9).detach().requires_grad_()
    value = log_probability(mean, std, low, high)
    by_mean, by_std = torch.autograd.grad(value.sum(), (mean, std))
    assert value.isfinite().all() and by_mean.isfinite().all() and by_std.isfinite().all() and (value <= 1e-6).all()
    misses = (mean < low) | (mean > high)
    towards = torch.where(mean < low, 1.0, -1.0)
    assert (by_mean * towards)[misses].gt(1).all() and (by_std[misses] > 0).all()


def test_an_end_that_is_not_there_has_no_gradient():
    mean, std = torch.tensor([5.0], requires_grad=True), torch.tensor([1.0])
    for low, high in ((-math.inf, math.inf), (-math.inf, 60.0), (-60.0, math.inf), (-1e9, 1e9)):
        value = log_probability(mean, std, low, high)
        assert (
            float(value.detach()) == pytest.approx(0, abs=1e-6)
            and abs(float(torch.autograd.grad(value.sum(), mean)[0])) < 1e-6
        )


# ---- refused before anything is drawn ------------------------------------------------------------------


def short(molecules):
    return [1.0] * (len(molecules) - 1)


def missing(molecules):
    return [1.0, math.nan][: len(molecules)]


def raising(molecules):
    raise RuntimeError("no licence")


@pytest.mark.parametrize(
    "where, particles, message",
    [
        (Above(size, 3), 1, "nothing can steer towards size >= 3.*knows none; pass particles=16"),
        (Above("qed", 0.5), 1, "nothing can steer towards qed >= 0.5"),
        (Contains("F"), 1, "nothing can steer towards contains F"),
        (Without("F") & Formula("CH4"), 1, "nothing can steer towards formula CH4"),
        (Composition("C"), 1, "nothing can steer"),
        (Maximize(size, 1), 1, "nothing can steer towards large size"),
        (Contains("Br"), 4, r"contains Br: this generator draws C, F, N, O, not \['Br'\]"),
        (Keep("CS"), 1, r"keep CS: this generator draws .*not \['S'\]"),
        (Formula("CH3Cl"), 4, r"not \['Cl'\]"),
        (Composition("CSi"), 4, r"not \['Si'\]"),
        (Without("C") & Without("O") & Without("N") & Without("F"), 4, "draws C, F, N, O and nothing else"),
        (Above(short, 1), 4, r"function short fails on ethanol and aniline: .*shape \(1,\) for 2"),
        (Above(missing, 1), 4, r"function missing gives \[1.0, nan\] for ethanol and aniline"),
        (Maximize(missing, 1), 4, "function missing gives"),
        (Above(raising, 1), 4, "function raising fails on ethanol and aniline: no licence"),
        (Above(lambda m: ["large"] * len(m), 1), 4, "fails on ethanol and aniline"),
        (Without("F"), 0, "at least one particle, got 0|particles must be at least 1, got 0"),
        ([Above("qed", 0.5), Below("QED", 0.4)], 4, "cannot both be met"),
        ("qed", 4, "is not a want"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_wants_that_nothing_can_act_by_are_refused_before_anything_is_drawn(
    designer, untouched, where, particles, message, method
):
    with pytest.raises(ValueError, match=message):
        getattr(designer, method)(3, where=where, particles=particles)


@pytest.mark.parametrize(
    "where, push, knows",
    [
        (Above("logP", 1), 1.0, True),
        (Maximize("qed", 1), 0.5, True),
        (Above("logp", 1), 0.0, False),
        (Above("tpsa", 1), 1.0, False),
    ],
)
def test_a_model_of_properties_lets_one_particle_be_steered_unless_it_does_not_push(knowing, where, push, knows):
    if knows:
        assert len(knowing.generate(2, where=where, particles=1, push=push)) == 2
    else:
        with pytest.raises(ValueError, match=r"nothing can steer .* the model of properties knows logp, qed"):
            knowing.generate(2, where=where, particles=1, push=push)


def test_hopelessly_far_values_give_finite_weights_and_no_push():
    mean = torch.tensor([-1e9, 0.0, 1e9], requires_grad=True)
    value = log_probability(mean, torch.ones(3), 1e12, math.inf)
    assert value.isfinite().all() and (value < -1e5).all()
    assert torch.autograd.grad(value.sum(), mean)[0].tolist() == [0, 0, 0]


def test_your_function_is_not_the_models_even_under_its_name():
    def logp(molecules):
        return size(molecules)

    with pytest.raises(ValueError, match="nothing can steer"):
        Steering(wants(Above(logp, 3)), 1, Carbons(), CLASSES)
    steering = Steering(wants(Above(logp, 3)), 2, Carbons(), CLASSES)
    bound = SimpleNamespace(mask=None, given={}, order=None)
    assert steering.guide(bound) is bound  # no term of the model's
    assert steering._ends([Molecule.from_smiles("CC")]).tolist() == [MISSED - 1]  # not in the model's unit


def test_ids_that_leave_their_range_with_particles_are_refused(designer, untouched):
    with pytest.raises(ValueError, match="sample 4294967295 with 4 particles"):
        designer.generate(ids=[2**32 - 1], where=Contains("F"))


@pytest.mark.parametrize("scaffold, message", [("CCCCCCC", "7 sites, the model's largest has 6"), ("C[O-]", r"O-1")])
def test_a_scaffold_that_the_generator_cannot_hold_is_refused(designer, scaffold, message):
    with pytest.raises(ValueError, match=message):
        designer.generate(2, where=Keep(scaffold), particles=1)


# ---- without wants nothing changes ---------------------------------------------------------------------


def test_an_unguided_designer_draws_what_its_model_draws_without_hooks(designer, drawn):
    plain = designer.model.generate(Rng(0, torch.arange(40)), designer.steps)
    assert [m.to_text() for m in Molecule.unbatch(plain)] == texts(drawn)
    assert not any(c.startswith("meets") for c in drawn.table.columns)


def test_a_model_of_properties_alone_changes_nothing(knowing, drawn):
    assert texts(knowing.generate(40)) == texts(drawn)


def test_a_want_that_forbids_nothing_leaves_every_bit(designer, drawn):
    """All hooks act: terms, selection, and the particles' own keys, which are the samples' where there is one."""
    samples = designer.generate(40, where=Without("S"), particles=1)
    assert texts(samples) == texts(drawn)
    assert samples.table["meets"].tolist() == drawn.table["valid"].tolist()


# ---- Without and Keep ----------------------------------------------------------------------------------


@pytest.mark.parametrize("banned", [("C",), ("O", "N")])
def test_an_element_that_is_unwanted_is_never_drawn(designer, drawn, banned):
    where = [Without(e) for e in banned]
    samples = designer.generate(100, where=where, particles=1)
    for element in banned:
        assert count(samples, element) == 0 < 5 < count(drawn, element)
    assert sum(len(m.atoms) for m in samples) > 150


def test_what_may_be_drawn_keeps_its_proportions():
    steering = Steering(wants(Without("N") & Without("F")), 1, None, CLASSES)
    logits = {"atom": torch.randn(2, 3, 5), "bond": torch.randn(2, 3, 3, 4)}

    def clean(x, t):
        return logits

    out = steering.guide(clean)({"atom": torch.zeros(2, 3).long()}, torch.tensor(0.5))
    probs = out["atom"].softmax(-1)
    assert not probs[..., [2, 3, 4]].any()  # N, F and N+1
    torch.testing.assert_close(probs[..., :2], logits["atom"][..., :2].softmax(-1))
    assert torch.equal(out["bond"], logits["bond"])


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("scaffold", ["C1CC1", "OC=O", "C[NH3+]"])
def test_every_sample_begins_with_the_scaffold_valid_or_not(designer, scaffold, particles):
    samples = designer.generate(16 if particles == 1 else 6, where=Keep(scaffold), particles=particles)
    kept = Molecule.unbatch(ordered(Molecule.batch([Molecule.from_smiles(scaffold)], CLASSES), 1))[0]
    n = len(kept.atoms)
    for m in samples:
        assert m.atoms[:n] == kept.atoms and np.array_equal(m.bonds[:n, :n], kept.bonds)
    assert max(len(m.atoms) for m in samples) > n, "nothing grew: this proves nothing"
    valid = samples.valid()
    assert len(valid) and not Keep(scaffold).gap(valid.molecules).any() and valid.table["meets"].all()


def test_a_scaffold_as_large_as_the_room_is_kept_alone(designer):
    samples = designer.generate(3, where=Keep("CCCCCC"), particles=1)
    assert samples.smiles == ["CCCCCC"] * 3


# ---- particles -----------------------------------------------------------------------------------------


WANTED = {
    "a function": Below(size, 2),
    "the largest": Maximize(size, 0.5) & Contains("O"),
    "a scaffold and a composition": Keep("CO") & Composition("C2O"),
    "what the model knows": Between("logp", -0.5, 0.2) & Above(size, 3),
}


@pytest.mark.parametrize("name", WANTED)
def test_a_steered_sample_does_not_depend_on_its_batch(knowing, one_thread, name):
    draw = lambda size, ids: knowing.generate(ids=ids, batch_size=size, where=WANTED[name], particles=3, seed=5)
    whole = draw(7, range(7))
    assert texts(draw(1, [5, 0, 2, 3])) == [texts(whole)[i] for i in (5, 0, 2, 3)]
    assert len(set(texts(whole))) > 1 and whole.table["id"].tolist() == list(range(7))


def test_batches_of_one_hold_only_their_own_particles(designer, monkeypatch):
    asked, generate = [], Pard.generate

    def spy(self, rng, *rest, **options):
        asked.append(rng.ids)
        return generate(self, rng, *rest, **options)

    monkeypatch.setattr(Pard, "generate", spy)
    designer.generate(ids=[4, 9], batch_size=1, where=Contains("O"), particles=3)
    assert [ids.tolist() for ids in asked] == [[12, 13, 14], [27, 28, 29]]


def test_progress_is_told_in_samples_not_in_particles(designer):
    told = []
    for seed in range(3):
        list(designer.stream(4, seed, where=Contains("O"), particles=3, batch_size=4, on_done=told.append))
        assert told[0] == 0 and told == sorted(told) and max(told) < 4
        told.clear()


@pytest.mark.parametrize("where", [Below(size, 1), Contains("F"), Target("tpsa", 20, 5), Composition("C")])
def test_particles_raise_the_hit_rate_of_wants_that_no_model_knows(designer, drawn, where):
    before, after = rate(drawn, where), rate(designer.generate(30, where=where, particles=10), where)
    assert after > before + 0.1 and after >= 1.5 * before


def test_particles_maximize(designer, drawn):
    def light(molecules):
        return [-float(len(m.atoms)) for m in molecules]

    samples = designer.generate(30, where=Maximize(light, 0.2), particles=8)
    assert len(samples.valid()) / 30 > len(drawn.valid()) / 40 + 0.2
    assert np.mean(size(samples.valid())) < 1.1 < np.mean(size(drawn.valid())) - 0.1


@pytest.mark.parametrize("level", [-96.0, 64.0])
def test_the_level_of_what_is_maximized_does_not_matter(designer, level):
    """Ends and beginnings compete: a constant that weighed the ones alone would end molecules early, or never."""
    draw = lambda c: designer.generate(16, where=Maximize(lambda ms: [c + len(m.atoms) for m in ms], 0.5), particles=6)
    plain, moved = draw(0.0), draw(level)
    assert len(plain.valid()) > 10
    assert sum(a == b for a, b in zip(texts(plain), texts(moved), strict=True)) >= 14  # up to rounding of the weights


def test_more_particles_give_more_valid_molecules(designer, drawn):
    """Whatever is wanted, an invalid particle has hardly any weight."""
    samples = designer.generate(40, where=Without("S"), particles=8)
    assert len(samples.valid()) > 36 > len(drawn.valid()) + 5


@pytest.mark.parametrize("particles, push", [(1, 6.0), (8, 0.0)])
def test_a_known_property_steers_by_its_gradient_and_by_particles(designer, particles, push):
    """Each on its own: the push within blocks, and the weights between them."""
    steered = replace(designer, properties=Carbons())
    where = Above("logp", 8) if push else Maximize("logp", 0.4)
    plain, samples = designer.generate(30), steered.generate(30, where=where, particles=particles, push=push)
    share = lambda s: count(s, "C") / sum(len(m.atoms) for m in s)
    assert share(samples) > share(plain) + 0.1
    if push:
        away = steered.generate(30, where=Below("logp", -8), particles=1, push=push)
        assert share(away) < share(plain) - 0.1


def test_a_function_without_a_value_for_some_molecules_steers_away_from_them(designer):
    def odd(molecules):
        return [math.nan if len(m.atoms) % 2 == 0 else 1.0 for m in molecules]

    samples = designer.generate(20, where=Above(odd, 1), particles=10)
    assert samples.table["meets"].mean() > 0.8


# ---- the selection itself -------------------------------------------------------------------------------


def finished(smiles: list[str], particles: int, ids: Tensor | None = None) -> tuple[Batch, Order]:
    """Finished molecules as the particles of samples."""
    batch = ordered(Molecule.batch([Molecule.from_smiles(s) for s in smiles], CLASSES, 6), 1)
    n = len(smiles) // particles
    ids = torch.arange(n) if ids is None else ids
    batch = replace(batch, ids=particle_rng(Rng(0, ids), particles).ids)
    return batch, Order(torch.where(batch.mask, batch.given["rank"], -1))


def choose_rows(where, smiles: list[str], particles: int, block: int = 9, seed: int = 0, ids=None) -> list[int]:
    steering = Steering(wants(where), particles, None, CLASSES)
    batch, order = finished(smiles, particles, ids)
    rng = Rng(seed, batch.ids).at(block)
    rows, _ = steering.select(batch, order, torch.zeros(len(batch)).bool(), block, rng, None)
    return rows.tolist()


def test_at_the_end_every_group_is_the_one_particle_that_meets_the_wants():
    smiles = ["CC", "CO", "CCC", "O", "FCF", "CCO"]
    rows = choose_rows(Contains("O") & Contains("C"), smiles, 3)
    assert rows == [1, 1, 1, 5, 5, 5]


def test_the_nearest_is_kept_where_none_meets():
    far = [choose_rows(Contains("F", 20), ["C", "FC(F)(F)CF", "CC"], 3, seed=s)[0] for s in range(40)]
    assert far.count(1) > 30  # e^-16 against e^-20, twice


def test_among_equals_the_choice_is_even_and_the_samples_own():
    smiles = ["CO", "CO", "CC"] * 300
    kept = np.array(choose_rows(Contains("O"), smiles, 3)[::3]) % 3
    counts = np.bincount(kept, minlength=3)
    assert counts[2] == 0 and abs(counts[0] - 150) < 40
    ids = torch.arange(300)
    some = choose_rows(Contains("O"), smiles[:30], 3, ids=ids[20:30])[::3]
    assert [r % 3 for r in some] == kept[20:30].tolist()
    # Neither how long the others of a batch went on: that is the batch's, not the sample's.
    assert choose_rows(Contains("O"), smiles[:30], 3, block=4)[::3] == choose_rows(Contains("O"), smiles[:30], 3)[::3]
    assert choose_rows(Contains("O"), smiles[:30], 3, seed=1) != choose_rows(Contains("O"), smiles[:30], 3)


def test_a_group_that_is_finished_waits_for_its_batch_and_ends_as_it_would_alone():
    """Two groups: the first done at block 2, the second at block 5."""
    steering = Steering(wants(Contains("O")), 3, None, CLASSES)
    batch, order = finished(["CO", "CC", "OCO", "CCC", "CO", "CC"], 3)
    growing = torch.tensor([False] * 3 + [True] * 3)
    memory = None
    for block in (2, 3, 4):
        rows, memory = steering.select(batch, order, growing, block, Rng(0, batch.ids).at(block), memory)
        assert rows[:3].tolist() == [0, 1, 2]
    rows, _ = steering.select(batch, order, torch.zeros(6).bool(), 5, Rng(0, batch.ids).at(5), memory)
    alone, _ = steering.select(
        batch[:3], Order(order.rank[:3]), torch.zeros(3).bool(), 2, Rng(0, batch.ids[:3]).at(2), None
    )
    assert rows[:3].tolist() == alone.tolist()


def test_where_only_finished_rows_go_on_they_are_chosen_from_at_once():
    """The block loop ends there, without another call: a group that was never resampled must not stay as it is."""
    steering = Steering(wants(Contains("O")), 3, None, CLASSES)
    batch, order = finished(["CC", "CC", "CO", "CO", "CC", "CC"], 3)
    growing = torch.tensor([False] * 5 + [True])
    heavy = Followed(torch.tensor([[0.0, 0.0, 0.0], [0.0, -80.0, -80.0]]), torch.zeros(6), torch.zeros(6).bool())
    rows, memory = steering.select(batch, order, growing, 3, Rng(0, batch.ids).at(3), heavy)
    assert rows.tolist() == [2] * 3 + [3] * 3 and bool(memory.finished.all())


def test_log_weights_of_finished_molecules():
    where = Below(size, 2) & Contains("O") & Maximize(size, 4.0)
    steering = Steering(wants(where), 2, None, CLASSES)
    molecules = [Molecule.from_smiles(s) for s in ("CO", "CCO", "CC", "CCCC")]
    molecules.append(Molecule.from_text("C O", ""))
    expected = [0.5, MISSED - 1 + 0.75, MISSED - 1 + 0.5, 2 * MISSED - 2 - 1 + 1, 2 * LEAST]
    assert steering._ends(molecules).tolist() == pytest.approx(expected)
    known = Steering(wants(Below("logp", -3)), 2, Carbons(), CLASSES)
    gap = Below("logp", -3).gap(molecules[:1])[0]
    assert known._ends(molecules[:1]).tolist() == pytest.approx([MISSED - gap / 2])  # in the data's spread
    unsure = Steering(wants(Above(lambda m: [math.nan if len(a.atoms) == 2 else 1.0 for a in m], 1)), 2, None, CLASSES)
    assert unsure._ends(molecules[:2]).tolist() == [2 * LEAST, 0]  # what cannot be told is not met
    far = Below(lambda m: [1e9] * len(m), 0)
    assert Steering(wants(far), 2, None, CLASSES)._ends(molecules[:1]).tolist() == [LEAST]  # still above an invalid one


def test_beginnings_are_scored_within_their_group_and_those_without_a_value_are_no_better_than_most():
    nan = math.nan
    two = _scores(np.array([-3.0, nan, -5.0, -4.0, nan, nan, nan, nan]), 4)
    spread = np.std([-3, -4, -5, -4])
    assert two[:4].tolist() == pytest.approx([0, -0.5, -1 / spread, -0.5 / spread]) and (two[4:] == -0.5).all()
    assert _scores(np.array([7.0, 7.0, 7.0]), 3).tolist() == [0, 0, 0]
    infinite = _scores(np.array([1.0, 2.0, -math.inf]), 3)  # as a function says that it cannot tell
    assert np.isfinite(infinite).all() and infinite[1] == 0 and infinite[2] == -0.5
    shifted = _scores(np.array([-103.0, nan, -105.0, -104.0]), 4)
    assert shifted.tolist() == pytest.approx(two[:4].tolist())


def test_the_twist_is_the_sum_of_its_wants_log_probabilities():
    model = Carbons()
    batch, order = finished(["CCO", "CC", "O"], 1)
    known = (Between("logp", 1.5, 3), Maximize("logp", 2.0))
    twist = Twist(model, batch.mask, batch.given, order, known)(batch.state, None)
    normal = torch.distributions.Normal(torch.tensor([2.0, 2.0, 0.0]), 1.0)
    inside = (normal.cdf(torch.tensor(3.0)) - normal.cdf(torch.tensor(1.5))).log()
    draws = normal.sample((200_000,)).double()
    torch.testing.assert_close(twist, inside + torch.tensor([2.0, 2.0, 0.0]) / 2 + 0.125)
    weighed = (draws / 2).exp().mean(0).log()  # log E[exp(v / T)], by simulation
    torch.testing.assert_close((twist - inside).double(), weighed, atol=0.01, rtol=0)
