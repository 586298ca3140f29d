"""A sample is its weights, seed, id and steps; what is given stays as it is; what makes no sense is refused."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.small_structures import ATOMS, MOST, embedded, small_designer
from unisci.autoregression.structures import StructureModel
from unisci.design.atoms import Contains
from unisci.design.stereo import isomer
from unisci.design.structure_orders import atom_by_atom, structural
from unisci.design.structure_samples import StructureSamples
from unisci.design.targets import Below
from unisci.domains.molecule import Molecule, MoleculeError


@pytest.fixture(scope="module")
def designer(tmp_path_factory):
    return small_designer(tmp_path_factory.mktemp("structures"))


@pytest.fixture(scope="module")
def drawn(designer) -> StructureSamples:
    return designer.generate(24)


def same(a: StructureSamples, b: StructureSamples, atol: float = 2e-3) -> None:
    """The same graphs and, up to rounding in batches of other sizes, the same positions."""
    assert [m.to_text() for m in a] == [m.to_text() for m in b]
    assert a.table["id"].tolist() == b.table["id"].tolist() and a.table["valid"].tolist() == b.table["valid"].tolist()
    for m, k in zip(a, b, strict=True):
        if m.conformers:
            np.testing.assert_allclose(m.positions, k.positions, atol=atol)


# ---- generate ------------------------------------------------------------------------------------


def test_graphs_are_those_of_the_graphs_own_model(designer, drawn):
    graphs = designer.graphs.generate(24)
    assert [m.heavy().to_text() for m in drawn] == [m.heavy().to_text() for m in graphs]
    assert drawn.table["smiles"].tolist() == graphs.table["smiles"].tolist()
    assert (drawn.table["model"] == designer.hash).all() and (drawn.table["seconds"] > 0).all()


def test_valid_rows_have_all_atoms_and_positions_and_others_a_reason(designer, drawn):
    valid = drawn.table["valid"].to_numpy()
    assert 2 < valid.sum() < 22
    for molecule, ok, reason, text in zip(drawn, valid, drawn.table["reason"], drawn.table["isomer"], strict=True):
        assert ok == (reason is None) == bool(molecule.conformers) == (text is not None)
        if ok:
            assert molecule.explicit and molecule.conformers == 1 and set(molecule.atoms) <= set(ATOMS)
            assert isomer(molecule.rdkit) == text


def test_a_graph_that_the_structures_do_not_know_is_a_row_with_the_reason(designer):
    samples = designer.generate(80)
    known = [m.reason is None and "N+1" in m.atoms for m in samples]
    assert any(known)
    assert all("knows no N+1" in r for r in samples.table["reason"][known]) and not samples.table["valid"][known].any()


@pytest.mark.parametrize("size", [1, 5])
def test_the_batch_size_changes_no_sample(designer, drawn, size):
    same(designer.generate(7, batch_size=size), drawn[:7])


def test_ids_give_those_samples_again(designer, drawn):
    same(designer.generate(ids=[17, 3]), drawn.keep([17, 3]))
    parts = list(designer.stream(9, batch_size=4))
    assert [len(p) for p in parts] == [4, 4, 1]
    same(StructureSamples.join(parts), drawn[:9])


def test_seed_and_steps_change_positions(designer, drawn):
    row = int(drawn.table["valid"].to_numpy().argmax())
    again = designer.generate(ids=[row], steps=3)
    assert again[0].to_text() == drawn[row].to_text()  # steps are those of positions
    assert abs(again[0].positions - drawn[row].positions).max() > 1e-3
    assert designer.generate(4, seed=1).table["smiles"].tolist() != drawn.table["smiles"].tolist()[:4]


def test_what_is_wanted_steers_the_graphs(designer):
    where = Below("heavyatomcount", 2) & Contains("C")
    found = designer.generate(6, where=where, particles=3)
    expected = designer.graphs.generate(6, where=where, particles=3)
    assert found.table["smiles"].tolist() == expected.table["smiles"].tolist()
    names = [c for c in expected.table if c.startswith("meets")]
    assert len(names) == 3 and found.table[names].equals(expected.table[names])
    pd.testing.assert_frame_equal(found.hit_rates(), expected.hit_rates())


@pytest.mark.parametrize("order", [None, structural, atom_by_atom])
def test_all_at_once_or_in_blocks(designer, order, monkeypatch):
    told, generate = [], StructureModel.generate

    def spy(self, rng, steps, order, told_to):
        told.append((steps, told_to, None if order is None else int(order.blocks.max())))
        return generate(self, rng, steps, order=order, told=told_to)

    monkeypatch.setattr(
        StructureModel, "generate", lambda self, rng, steps, order, told: spy(self, rng, steps, order, told)
    )
    samples = designer.generate(6, at_once=True, order=order, steps=2)
    assert len(samples) == 6 and all(m.conformers == 1 for m in samples)
    assert told[0][:2] == (2, order is structural) and (told[0][2] is None) == (order is None)
    if order is not structural:  # whose number of sites is that of the table, with six for nearly all
        assert {len(m.atoms) for m in samples} == {6}
    same(designer.generate(ids=[4, 5], at_once=True, order=order, steps=2, batch_size=1), samples.keep([4, 5]))


def test_default_steps(designer, monkeypatch):
    steps = []
    fold, generate = StructureModel.fold, StructureModel.generate
    monkeypatch.setattr(StructureModel, "fold", lambda s, b, r, n, *a: steps.append(n) or fold(s, b, r, n, *a))
    designer.generate(3)
    assert set(steps) == {designer.steps} == {4}
    steps.clear()
    spy = lambda s, r, n, **k: steps.append(n) or generate(s, r, 2, **k)
    monkeypatch.setattr(StructureModel, "generate", spy)
    designer.generate(2, at_once=True)
    designer.generate(2, order=structural)
    assert [n for n in steps if n != 5] == [50, 4]  # and the polish of five


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n": 0}, "at least 1"),
        ({}, "how many"),
        ({"n": 2, "ids": [1]}, "one of the two"),
        ({"n": 2, "steps": 0}, "steps"),
        ({"n": 2, "seed": -1}, "seed"),
        ({"n": 2, "batch_size": 0}, "batch_size"),
        ({"n": 2, "at_once": True, "batch_size": 0}, "batch_size"),
        ({"n": 2, "at_once": True, "seed": -1}, "seed"),
        ({"n": 2, "at_once": True, "where": Below("qed", 1)}, "leave out at_once"),
        ({"n": 2, "order": structural, "where": Below("qed", 1)}, "leave out at_once"),
        ({"n": 2, "where": Contains("C"), "particles": 0}, "particles"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_drawn(designer, settings, message):
    with pytest.raises(ValueError, match=message):
        designer.stream(**settings)


# ---- conformers ----------------------------------------------------------------------------------


def test_conformers_of_several_molecules(designer):
    asked = ["CCO", "CCl", Molecule.from_smiles("CO"), "C1C"]
    found = designer.conformers(asked, 3, seed=4)
    assert found.table["input"].tolist() == ["CCO"] * 3 + ["CCl"] + ["CO"] * 3 + ["C1C"]
    assert found.table["id"].tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert found.table["valid"].tolist() == [True] * 3 + [False] + [True] * 3 + [False]
    assert "Cl" in found.table["reason"][3] and "parse" in found.table["reason"][7]
    same(designer.conformers("CO", 2, seed=4), found.keep([4, 5]))  # not of what else is asked for
    other = designer.conformers("CO", 2, seed=5)
    assert abs(other[0].positions - found[4].positions).max() > 1e-3


@pytest.mark.parametrize("smiles", ["C[C@H](O)N", "C[C@@H](O)N", "C/C=C/O", "C/C=C\\O", "C[C@H]1C[N@@]1C"])
def test_conformers_have_the_stereochemistry_asked_for(designer, smiles):
    """Random weights make either hand and either side."""
    from unisci.design.stereo import Hand, hand
    from unisci.design.structure_tasks import asked

    found, target = designer.conformers(smiles, 12), asked(smiles, designer.structures).target
    assert len(found.valid()) > 6
    assert all(hand(target, m.positions[0]) is Hand.SAME for m in found.valid())
    assert set(found.table["reason"].dropna()) <= {"none of 20 draws has the stereochemistry asked for"}


@pytest.mark.parametrize(
    "bad", ["CCl", "C1C", "[CH3]", "CCCCCCCC", Molecule(("C", "H"), np.eye(2, dtype=np.int8)[::-1])]
)
def test_a_bad_molecule_alone_is_an_error(designer, bad):
    with pytest.raises(MoleculeError):
        designer.conformers(bad, 2)


@pytest.mark.parametrize(
    "molecules, settings",
    [("CC", {"n": 0}), ("CC", {"n": 1, "steps": 0}), ("CC", {"n": 1, "seed": -1}), ([], {"n": 1})],
)
def test_bad_settings_of_conformers(designer, molecules, settings):
    with pytest.raises(ValueError, match=r"at least|seed|no molecules"):
        designer.conformers(molecules, **settings)


# ---- graphs of shapes, and fragments ---------------------------------------------------------------


def test_graphs_of_shapes_lie_on_them(designer):
    shapes = [embedded(s).positions[0] + 5 for s in ("CO", "O")]
    found = designer.graphs_of(shapes, n=3)
    assert found.table["shape"].tolist() == [0, 0, 0, 1, 1, 1] and found.table["id"].tolist() == [0, 1, 2] * 2
    for m, k in zip(found, found.table["shape"], strict=True):
        assert (m.positions[0] == shapes[k]).all() and (m.bonds == m.bonds.T).all()
    texts = [m.to_text() for m in found]
    assert len(set(texts)) > 3
    assert [m.to_text() for m in designer.graphs_of(shapes[1], n=3)] == texts[3:]
    assert [m.to_text() for m in designer.graphs_of(shapes[1], n=3, seed=1)] != texts[3:]


@pytest.mark.parametrize(
    "positions",
    [np.zeros((3, 2)), [np.zeros((0, 3))], np.zeros((MOST + 1, 3)), [np.full((2, 3), np.nan)], [], [np.zeros(3)]],
)
def test_what_is_no_shape_is_refused(designer, positions):
    with pytest.raises(ValueError, match="positions"):
        designer.graphs_of(positions)


def fragment() -> Molecule:
    """C and O of methanol with two of its hydrogens, away from the origin."""
    whole, keep = embedded("CO"), [0, 1, 2, 3]
    return Molecule(tuple(whole.atoms[i] for i in keep), whole.bonds[np.ix_(keep, keep)], whole.positions[:, keep] + 7)


def test_a_fragment_stays(designer):
    part = fragment()
    found = designer.grow(part, 5, 9, steps=3)
    texts = set()
    for m in found:
        assert len(m.atoms) == 9 and m.atoms[:4] == part.atoms and (m.bonds[:4, :4] == part.bonds).all()
        assert (m.positions[0][:4] == part.positions[0]).all() and np.isfinite(m.positions).all()
        texts.add(m.to_text())
    assert len(texts) == 5
    free = designer.grow(part, 40, steps=1)
    counts = {len(m.atoms) for m in free}
    assert counts == {6}  # as nearly all molecules of the table
    same(designer.grow(part, 2, steps=1), free.keep([0, 1]), atol=1e-2)


@pytest.mark.parametrize(
    "change, settings, error",
    [
        (lambda m: m.with_positions(None), {}, "positions"),
        (lambda m: m.with_positions(np.full((4, 3), np.nan)), {}, "positions"),
        (lambda m: m, {"atoms": 4}, "atoms = 4"),
        (lambda m: m, {"atoms": MOST + 1}, f"up to {MOST}"),
        (lambda m: m, {"n": 0}, "at least 1"),
        (lambda m: m, {"steps": 0}, "steps"),
        (lambda m: Molecule(("Cl",), np.zeros((1, 1), np.int8), np.zeros((1, 1, 3))), {}, "Cl"),
        (lambda m: Molecule(("C",) * 20, np.zeros((20, 20), np.int8), np.zeros((1, 20, 3))), {}, "at most"),
    ],
)
def test_bad_fragments_are_refused(designer, change, settings, error):
    with pytest.raises(ValueError, match=error):
        designer.grow(change(fragment()), **{"n": 1} | settings)


def test_a_designer_moves_whole(designer):
    moved = designer.to("cpu")
    assert moved.structures.sizes.device == torch.device("cpu") and moved.hash == designer.hash
    same(moved.generate(2), designer.generate(2))
