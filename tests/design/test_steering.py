import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.design.by_hand import Carbons, finished, size
from tests.jobs.small import CLASSES, MODEL, SIZES, untrained
from unisci.autoregression.pard import Pard, ordered
from unisci.design.atoms import Composition, Contains, Formula, Keep, Without
from unisci.design.designer import Designer
from unisci.design.samples import Samples
from unisci.design.steering import Followed, Steering
from unisci.design.targets import Above, Below, Between, Maximize, Target
from unisci.design.wants import wants
from unisci.domains.molecule import Molecule
from unisci.jobs import property_models
from unisci.order import Order
from unisci.rng import Rng

ATOM, BOND = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]), torch.tensor([0.5, 0.47, 0.02, 0.01])


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
        (Without("C") & Without("O") & Without("N") & Without("F"), 4, "draws C, F, N, O, nothing else"),
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


def test_your_function_is_not_the_models_even_under_its_name():
    def logp(molecules):
        return size(molecules)

    with pytest.raises(ValueError, match="nothing can steer"):
        Steering(wants(Above(logp, 3)), 1, Carbons(), CLASSES, 6)
    steering = Steering(wants(Above(logp, 3)), 2, Carbons(), CLASSES, 6)
    bound = SimpleNamespace(mask=None, given={}, order=None)
    assert steering.guide(bound) is bound  # no term of the model's
    assert steering._unit(steering.wants.parts[0]) == 1  # not the model's


def test_ids_that_leave_their_range_with_particles_are_refused(designer, untouched):
    with pytest.raises(ValueError, match="sample 4294967295 with 4 particles"):
        designer.generate(ids=[2**32 - 1], where=Contains("F"))


@pytest.mark.parametrize(
    "where, message",
    [
        (Keep("CCCCCCC"), "keep CCCCCCC: that takes 7 heavy atoms, this generator draws at most 6"),
        (Keep("C[O-]"), r"keep C\[O-\]: this generator draws C, F, N, N\+1, O, not \['O-1'\]"),
        (Formula("C7H16"), "formula C7H16: that takes 7 heavy atoms"),
        (Contains("N", 7), "contains 7 N: that takes 7 heavy atoms"),
        (Composition("C6N"), "composition C6N: that takes 7 heavy atoms"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_what_the_generator_cannot_hold_is_refused_at_the_door(designer, untouched, where, message, method):
    with pytest.raises(ValueError, match=message):
        getattr(designer, method)(2, where=where)


def test_a_generator_of_one_block_keeps_no_scaffold(untouched):
    whole = Designer(untrained(config=MODEL.model_copy(update={"hops": 0})), 2, "", {})
    with pytest.raises(ValueError, match="keep CO: this generator draws a molecule as one block"):
        whole.stream(2, where=Keep("CO"))
    whole.stream(2, where=Without("F"))


@pytest.mark.parametrize("push", [math.nan, math.inf])
def test_a_push_that_is_no_number_is_refused(designer, untouched, push):
    with pytest.raises(ValueError, match=f"push must be finite, got {push}"):
        designer.stream(2, where=Without("F"), push=push)


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
    steering = Steering(wants(Without("N") & Without("F")), 1, None, CLASSES, 6)
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


def choose_rows(where, smiles: list[str], particles: int, block: int = 9, seed: int = 0, ids=None) -> list[int]:
    steering = Steering(wants(where), particles, None, CLASSES, 20)
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
    steering = Steering(wants(Contains("O")), 3, None, CLASSES, 6)
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
    steering = Steering(wants(Contains("O")), 3, None, CLASSES, 6)
    batch, order = finished(["CC", "CC", "CO", "CO", "CC", "CC"], 3)
    growing = torch.tensor([False] * 5 + [True])
    heavy = Followed(torch.tensor([[0.0, 0.0, 0.0], [0.0, -80.0, -80.0]]), torch.zeros(6), torch.zeros(6).bool())
    rows, memory = steering.select(batch, order, growing, 3, Rng(0, batch.ids).at(3), heavy)
    assert rows.tolist() == [2] * 3 + [3] * 3 and bool(memory.finished.all())
