"""What cannot be placed is said before any compute; a conformer is that of the stereoisomer asked for, or none."""

import numpy as np
import pytest
import torch
from rdkit import Chem

from tests.small_structures import MOST, embedded, small_model
from unisci.batch import Batch
from unisci.design import structure_tasks
from unisci.design.stereo import isomer
from unisci.design.structure_tasks import TRIES, asked, asked_or_reason, complete, conformers, draw, keys
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.rng import Rng

MODEL = small_model()
RNG = Rng(0, torch.zeros(0, dtype=torch.long))


@pytest.mark.parametrize(
    "what, reason",
    [
        ("CC(", "CC\\(: RDKit cannot parse it"),
        ("[CH3]", "radical electrons"),
        ("CCl", "knows no Cl; its atoms are H, C, O, N, F"),
        ("C[NH3+]", r"knows no N\+1"),
        ("CCCCCCC", f"23 atoms with all hydrogens, this model places at most {MOST}"),
        ("C.C", "more than one fragment"),
        ("", "limit"),
        (Molecule(("C", "C"), np.array([[0, 3], [3, 0]], np.int8) * 0), "fragments"),
        (Molecule(("C", "H"), np.array([[0, 1], [1, 0]], np.int8)), "unfinished: C at 0"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_its_reason(what, reason):
    with pytest.raises(MoleculeError, match=reason):
        asked(what, MODEL)
    row = asked_or_reason(what, MODEL)
    assert row.target is None and row.reason and row.molecule.conformers == 0
    assert what not in row.reason if isinstance(what, str) and what else True


@pytest.mark.parametrize("what", [3, None, b"CC", ["CC"]])
def test_what_is_no_molecule_is_refused(what):
    with pytest.raises(ValueError, match="SMILES or a Molecule"):
        asked(what, MODEL)


def test_a_smiles_has_its_hydrogens_in_the_order_of_its_target():
    found = asked("C[C@H](O)N", MODEL)
    assert found.reason is None and found.molecule.atoms[:4] == ("C", "C", "O", "N")
    assert [a.GetSymbol() for a in found.target.GetAtoms()] == list(found.molecule.atoms)
    assert Chem.MolToSmiles(Chem.RemoveHs(found.target)) == Chem.CanonSmiles("C[C@H](O)N")


def test_the_positions_of_a_molecule_say_which_isomer_is_asked_for():
    molecule = embedded("CC(O)N")
    found = asked(molecule, MODEL)
    assert found.molecule.conformers == 0 and found.text == molecule.smiles == "CC(N)O"
    assert Chem.MolToSmiles(Chem.RemoveHs(found.target)) == isomer(molecule.rdkit) != "CC(N)O"
    flat = asked(molecule.with_positions(None), MODEL)
    assert Chem.MolToSmiles(Chem.RemoveHs(flat.target)) == "CC(N)O"


def test_complete_adds_hydrogens_or_says_why_not():
    made, reason = complete(Molecule.from_smiles("CO"), MODEL)
    assert reason is None and sorted(made.atoms) == ["C", "H", "H", "H", "H", "O"]
    broken = Molecule(("O", "O"), np.array([[0, 3], [3, 0]], np.int8))
    assert complete(broken, MODEL) == (broken, "sanitising: AtomValence")
    made, reason = complete(Molecule.from_smiles("C[NH3+]"), MODEL)
    assert "N+1" in reason and made.explicit


def test_keys_are_those_of_the_object_and_the_id():
    assert keys(b"CC", [0, 5]) == [keys(b"CC", [0])[0], keys(b"CC", [5])[0]]
    assert len({*keys(b"CC", range(9)), *keys(b"CO", range(9))}) == 18
    assert all(0 <= k < 2**32 for k in keys(b"CC", [0, 2**32 - 1]))


def test_draws_come_back_in_the_order_asked_for(monkeypatch):
    monkeypatch.setattr(structure_tasks, "BATCH", 2)
    molecules = [Molecule.from_smiles(s, hydrogens=True) for s in ("CC", "O", "CCO", "N", "CO")]
    seen = []

    def solve(batch: Batch, rng: Rng) -> Batch:
        seen.append(batch.sites.tolist())
        return batch.replace(position=rng.normal("position", 0, (*batch.mask.shape, 3)))

    made = draw(MODEL, molecules, range(10, 15), lambda ids: Rng(7, ids), solve)
    assert seen == [[3, 4], [6, 8], [9]]
    for k, (molecule, m) in enumerate(zip(made, molecules, strict=True)):
        assert molecule.to_text() == m.to_text()
        own = Rng(7, torch.tensor([10 + k])).normal("position", 0, (1, len(m.atoms), 3))
        np.testing.assert_allclose(molecule.positions, own)


def fold_as(monkeypatch, smiles: str, turns: list[bool | None]) -> list[int]:
    """Let draw number k be an embedded geometry of `smiles`, reflected where turns[k]; None: of its other isomers."""
    made, other, calls = embedded_as(smiles), embedded_as("C[C@H](O)[C@H](F)O"), []

    def fold(self, batch, rng, steps):
        turn = turns[min(len(calls), len(turns) - 1)]
        calls.append(len(batch))
        x = made if turn is not None else other
        x = x * [-1, 1, 1] if turn else x
        return batch.replace(position=torch.tensor(np.repeat(x[None], len(batch), 0), dtype=torch.float32))

    monkeypatch.setattr(type(MODEL), "fold", fold)
    return calls


def embedded_as(smiles: str) -> np.ndarray:
    from rdkit.Chem import rdDistGeom

    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    return mol.GetConformer().GetPositions()


WANTED = "C[C@H](O)[C@@H](F)O"


@pytest.mark.parametrize("turns, calls", [([False], 1), ([True], 1), ([None, None, True], 3)])
def test_a_conformer_is_of_the_isomer_asked_for(monkeypatch, turns, calls):
    made_calls = fold_as(monkeypatch, WANTED, turns)
    task = asked(WANTED, MODEL)
    (made,), (reason,) = conformers(MODEL, [(task, 0)], RNG, 2)
    assert reason is None and len(made_calls) == calls
    assert isomer(made.rdkit) == Chem.CanonSmiles(WANTED)


def test_what_never_comes_is_a_row_with_the_reason(monkeypatch):
    calls = fold_as(monkeypatch, WANTED, [None])
    free, task = asked("CC(O)C(F)O", MODEL), asked(WANTED, MODEL)
    bad = asked_or_reason("CCl", MODEL)
    made, reasons = conformers(MODEL, [(free, 0), (bad, 0), (task, 0), (task, 1)], RNG, 2)
    assert reasons[0] is None and "Cl" in reasons[1] and reasons[2] == reasons[3] and f"{TRIES} draws" in reasons[2]
    assert [m.conformers for m in made] == [1, 0, 0, 0] and calls == [3] + [2] * (TRIES - 1)


def test_each_try_is_another_draw(monkeypatch):
    streams = []
    fold_as(monkeypatch, WANTED, [None])
    fold = type(MODEL).fold
    spy = lambda self, batch, rng, steps: streams.append((rng.key, rng.ids.tolist())) or fold(self, batch, rng, steps)
    monkeypatch.setattr(type(MODEL), "fold", spy)
    conformers(MODEL, [(asked(WANTED, MODEL), 3)], RNG, 2)
    assert len({key for key, _ in streams}) == TRIES and {ids[0] for _, ids in streams} == set(
        keys(WANTED.encode(), [3])
    )


def test_each_conformer_is_another_draw():
    task = asked("CCO", MODEL)
    made, _ = conformers(MODEL, [(task, 0), (task, 1)], RNG, 2)
    assert abs(made[0].positions - made[1].positions).max() > 1e-3
    again, _ = conformers(MODEL, [(task, 1)], RNG, 2)
    np.testing.assert_allclose(again[0].positions, made[1].positions, atol=1e-4)
