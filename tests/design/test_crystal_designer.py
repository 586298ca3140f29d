"""Structures of a formula: what is asked comes out, a sample is its own, and what makes no sense is refused first."""

import inspect
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.small_crystals import KNOWN, PEROVSKITE, SALT, small_generator
from unisci.autoregression.orbits import OrbitModel
from unisci.design.atoms import Without
from unisci.design.crystal_designer import CrystalDesigner
from unisci.design.crystal_samples import CrystalSamples
from unisci.design.targets import Above, Below, Maximize
from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.elements import element_features
from unisci.domains.orbit_batches import WyckoffTable
from unisci.domains.symmetry import spacegroup
from unisci.domains.template_files import load_templates
from unisci.domains.wyckoff import Orbits
from unisci.networks.orbit_transformer import OrbitTransformerConfig

DESIGNER = CrystalDesigner(small_generator(), "hash", {}, steps=2)


def same(a: Crystal, b: Crystal) -> bool:
    gap = a.fractional - b.fractional
    return np.allclose(a.lattice, b.lattice, atol=1e-4) and np.abs(gap - gap.round()).max() < 1e-4


@pytest.mark.parametrize("templates", [(), KNOWN])
def test_the_formula_asked_for(templates):
    samples = DESIGNER.generate(6, "SrTiO3", templates=templates)
    assert samples.table["formula"].tolist() == ["SrTiO3"] * 6 and samples.table["id"].tolist() == list(range(6))
    assert set(samples.table["composition"]) == {"SrTiO3"} and set(samples.table["model"]) == {"hash"}
    assert {len(c) for c in samples} <= {5, 10}
    assert np.isfinite(samples.table["score"][samples.table["source"] == "draw"]).all()


def test_even_samples_start_from_templates_best_first_and_keep_their_symmetry():
    near = Crystal(np.array([38, 22, 8, 8, 8]), PEROVSKITE.fractional, PEROVSKITE.lattice * 1.1)
    samples = DESIGNER.generate(5, "SrTiO3", templates=(near, SALT), units=1)
    assert samples.table["source"].tolist() == ["template"] + ["draw"] * 4
    assert samples.table["template"][0] == "0" and samples.table["template_distance"][0] == 0
    assert spacegroup(samples[0]) == 221


def test_a_sample_depends_on_its_id_and_formula_alone():
    whole = DESIGNER.generate(5, ["SrTiO3", "NaCl"], seed=3, templates=KNOWN)
    alone = DESIGNER.generate(composition="NaCl", ids=[4, 1], seed=3, templates=KNOWN, batch_size=1)
    assert alone.table["id"].tolist() == [4, 1]
    assert same(alone[0], whole[9]) and same(alone[1], whole[6])
    other = DESIGNER.generate(composition="NaCl", ids=[1], seed=4, templates=KNOWN)
    assert not (len(other[0]) == len(alone[1]) and same(other[0], alone[1]))


def test_new_crystals_have_formulas_of_their_own():
    samples = DESIGNER.generate(12, seed=1, elements=["Sr", "Ti", "O"])
    assert {int(z) for c in samples for z in c.numbers} <= {8, 22, 38}
    assert max(map(len, samples)) <= 10 and samples.table["composition"].isna().all()
    assert len(set(samples.table["formula"])) > 3
    again = DESIGNER.generate(ids=[7], seed=1, elements=["Sr", "Ti", "O"])
    assert again.table["formula"][0] == samples.table["formula"][7] and same(again[0], samples[7])


def test_a_space_group_is_kept_by_draws_and_templates():
    samples = DESIGNER.generate(4, "NaCl", templates=KNOWN, spacegroup=225, units=1)
    assert [spacegroup(c) for c in samples] == [225] * 4
    assert samples.table["source"].tolist() == ["template", "draw", "draw", "draw"]


def test_units_are_drawn_as_the_model_has_them_or_told():
    sizes = Counter(len(c) for c in DESIGNER.generate(40, "NaCl", templates=()))
    assert len(sizes) > 1 and set(sizes) <= set(range(2, 11, 2))
    assert {len(c) for c in DESIGNER.generate(5, "NaCl", templates=(), units=2)} == {4}
    assert {len(c) for c in DESIGNER.generate(5, "Na2Cl2", templates=())} == {4}  # written as a cell, taken as a cell


def test_libraries_can_be_kept_by_the_user():
    library = load_templates(KNOWN)
    a, b = (DESIGNER.generate(1, "SrTiO3", templates=t) for t in (library, KNOWN))
    assert same(a[0], b[0])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"composition": "Na2O", "n": 0}, "n must be at least 1"),
        ({"composition": "Na2Xx"}, "not a formula"),
        ({"composition": "LiCl"}, "never saw Li"),
        ({"composition": "Na8O4"}, "12 atoms in a primitive cell, this model makes at most 10"),
        ({"composition": "NaCl", "units": 6}, "12 atoms"),
        ({"composition": "NaCl", "units": 0}, "units must be"),
        ({"composition": "NaCl", "spacegroup": 62}, "spacegroup 62 is none"),
        (
            {"composition": "SrTiO3", "spacegroup": 225, "templates": ()},
            "SrTiO3: .* spacegroup 225 .* 1 to 2 formula u",
        ),
        ({"composition": "NaCl", "spacegroup": 225, "units": 2, "templates": ()}, "with 2 formula .* ask for units=1$"),
        ({"composition": ["NaCl", "Na2Cl2"], "spacegroup": 225}, "Na2Cl2: .* ask for another spacegroup or formula"),
        ({"composition": "NaCl", "elements": ["Na"]}, "elements are for new crystals"),
        ({"elements": ["Li"]}, "knows no Li"),
        ({"elements": []}, "elements"),
        ({"composition": "NaCl", "steps": 0}, "steps must be"),
        ({"composition": "NaCl", "seed": -1}, "seed"),
        ({"composition": "NaCl", "templates": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_compute(arguments, words, monkeypatch):
    monkeypatch.setattr("unisci.design.crystal_designer.draw", lambda *a, **k: pytest.fail("drew"))
    with pytest.raises(CrystalError if "formula" in words else ValueError, match=words):
        DESIGNER.stream(**({"n": 1} | arguments))


def test_charges_that_cannot_balance_are_a_warning():
    with pytest.warns(UserWarning, match="NaCl2"):
        samples = DESIGNER.generate(1, "NaCl2", templates=())
    assert samples.table["formula"].tolist() == ["NaCl2"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        DESIGNER.check("NaCl")


def test_another_device_is_the_same_designer():
    moved = DESIGNER.to(torch.device("cpu"))
    assert moved.hash == DESIGNER.hash and same(moved.generate(1, "NaCl")[0], DESIGNER.generate(1, "NaCl")[0])


def test_what_is_wanted_is_found_among_particles():
    wanted = Below("density", 2.0) & Above("volume", 1.0)
    plain, best = (DESIGNER.generate(12, "NaCl", templates=(), where=w, particles=6) for w in (None, wanted))
    met = [c.density <= 2.0 for c in plain]
    assert best.table["meets"].sum() > sum(met) and best.table["meets volume >= 1"].all()
    np.testing.assert_allclose(best.table["density value"], best.table["density"])
    for i, (a, b) in enumerate(zip(plain, best, strict=True)):
        assert not met[i] or same(a, b)  # the first that will do is taken
    small = DESIGNER.generate(4, where=Maximize(lambda cs: [-len(c) for c in cs], 1.0), particles=5)
    assert sum(map(len, small)) < sum(map(len, DESIGNER.generate(4)))


@pytest.mark.parametrize(
    "where, words",
    [(Below("logp", 2), "no property of crystals"), (Without("F"), "wanted of molecules")],
)
def test_wants_of_molecules_are_refused(where, words):
    with pytest.raises(ValueError, match=words):
        DESIGNER.stream(1, "NaCl", where=where)


def test_sizes_are_those_that_the_group_holds():
    """Of the group 225 the model knows the positions a and b alone, each of one site."""
    samples = DESIGNER.generate(12, "NaCl", templates=(), spacegroup=225)
    assert {len(c) for c in samples} == {2} and set(samples.table["source"]) == {"draw"}


def test_a_template_may_hold_what_no_draw_can():
    """Li2O in the group 225: the model knows no position of two sites there."""
    third = Crystal([11, 11, 8], [[0.25] * 3, [0.75] * 3, [0] * 3], SALT.lattice)
    samples = DESIGNER.generate(2, "Na2O", templates=(third,), spacegroup=225, units=1)
    assert samples.table["source"].tolist() == ["template", "draw without symmetry"] and spacegroup(samples[0]) == 225


def test_a_model_without_free_positions_refuses_units_that_none_of_its_groups_holds():
    g = DESIGNER.generator
    table = WyckoffTable.of([Orbits.of(SALT), Orbits.of(PEROVSKITE)])
    few = replace(
        g,
        table=table,
        orbits=OrbitModel(
            OrbitTransformerConfig(16, 1, 2), table, torch.from_numpy(element_features()), 16 * torch.ones(101)
        ),
    )
    designer = CrystalDesigner(few, "hash", {}, steps=2)
    with pytest.raises(CrystalError, match=r"knows in any space group gives it with 3 .* ask for units=1$"):
        designer.stream(1, "NaCl", units=3, templates=())


def test_generate_is_the_stream_joined():
    """One signature and one documentation."""
    ours, streams = (inspect.signature(f) for f in (CrystalDesigner.generate, CrystalDesigner.stream))
    assert ours.parameters == streams.parameters and ours.return_annotation is CrystalSamples
    assert CrystalDesigner.generate.__doc__ == CrystalDesigner.stream.__doc__
    parts = list(DESIGNER.stream(3, "NaCl", templates=(), batch_size=2))
    whole = DESIGNER.generate(3, "NaCl", templates=())
    assert [len(p) for p in parts] == [2, 1] and all(map(same, whole, [c for p in parts for c in p]))
