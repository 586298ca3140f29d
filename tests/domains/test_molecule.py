from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig, rdBase

from unisci.domains.molecule import MAX_ATOMS, Molecule, MoleculeError, atom_classes, parse_class, schema

VARIED = {
    "benzene": "c1ccccc1",
    "pyrrole": "c1cc[nH]c1",
    "indole": "c1ccc2[nH]ccc2c1",
    "caffeine": "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",
    "nitro": "O=[N+]([O-])c1ccccc1",
    "sulfone": "CS(=O)(=O)c1ccc(N)cc1",
    "sulfoxide": "CS(C)=O",
    "halogens": "FC(Cl)(Br)I",
    "ammonium": "C[N+](C)(C)C",
    "carboxylate": "CC(=O)[O-]",
    "pyridinium": "C[n+]1ccccc1",
    "N-oxide": "[O-][n+]1ccccc1",
    "azide": "CN=[N+]=[N-]",
    "isocyanide": "C[N+]#[C-]",
    "tropylium": "c1cc[cH+]ccc1",
    "phosphate": "COP(=O)(O)O",
    "phosphonate with P-H": "COP(=O)OC",
    "boronic acid": "OB(O)c1ccccc1",
    "borate": "F[B-](F)(F)F",
    "silane": "C[Si](C)(C)C",
    "selenophene": "c1cc[se]c1",
    "zwitterion": "[NH3+]CC(=O)[O-]",
    "one atom": "C",
    "doubly charged": "[O-]S(=O)(=O)[O-]",
}


def plain(smiles: str) -> str:
    """Canonical SMILES without stereochemistry and isotopes, which a Molecule does not hold."""
    return Chem.CanonSmiles(smiles, useChiral=0)


@pytest.mark.parametrize("smiles", VARIED.values(), ids=VARIED)
def test_round_trip(smiles):
    molecule = Molecule.from_smiles(smiles)
    assert molecule.reason is None and molecule.smiles == plain(smiles)
    assert Molecule.from_rdkit(molecule.rdkit).smiles == molecule.smiles
    assert repr(molecule) == f"Molecule({molecule.smiles})"


def test_explicit_hydrogens_and_stereochemistry_are_not_kept():
    assert Molecule.from_smiles("[H]C([H])([H])[C@@H](F)Cl").smiles == "CC(F)Cl"
    assert Molecule.from_smiles("C/C=C/C").smiles == "CC=CC"
    mol = Chem.AddHs(Chem.MolFromSmiles("CO"))
    assert Molecule.from_rdkit(mol).atoms == ("C", "O") and mol.GetNumAtoms() == 6


def test_graph_is_kekulised_symmetric_with_charged_classes():
    m = Molecule.from_smiles("O=[N+]([O-])c1ccccc1")
    assert m.atoms[:3] == ("O", "N+1", "O-1")
    assert m.bonds.dtype == np.int8 and np.array_equal(m.bonds, m.bonds.T) and not m.bonds.diagonal().any()
    ring = m.bonds[3:, 3:]
    assert sorted(ring[np.tril_indices(6)][ring[np.tril_indices(6)] > 0].tolist()) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("not a molecule", "cannot parse"),
        ("C1CC", "cannot parse"),
        ("C(C)(C)(C)(C)C", "cannot parse"),
        ("CC.O", "more than one fragment"),
        ("[Na+].[Cl-]", "more than one fragment"),
        ("[CH3]", "radical"),
        ("C[CH]C", "radical"),
        ("C" * (MAX_ATOMS + 1), f"{MAX_ATOMS + 1} heavy atoms, the limit is {MAX_ATOMS}"),
        ("", "0 heavy atoms"),
        ("*C", "dummy"),
        ("[2H]O[2H]", "hydrogen"),
        ("N->[Fe]", "bond of type DATIVE"),
    ],
)
def test_what_cannot_be_held_is_refused_with_the_reason(smiles, reason):
    with pytest.raises(MoleculeError, match=reason):
        Molecule.from_smiles(smiles)


def test_the_largest_molecule_is_held():
    assert len(Molecule.from_smiles("C" * MAX_ATOMS).atoms) == MAX_ATOMS


def test_an_unsanitised_rdkit_molecule_is_refused_with_the_reason():
    with rdBase.BlockLogs(), pytest.raises(MoleculeError, match="valence"):
        Molecule.from_rdkit(Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False))


def star(centre: str, leaves: int, order: int = 1) -> Molecule:
    bonds = np.zeros((leaves + 1, leaves + 1), np.int8)
    bonds[0, 1:] = bonds[1:, 0] = order
    return Molecule((centre, *("C",) * leaves), bonds)


@pytest.mark.parametrize(
    ("molecule", "reason"),
    [
        (star("C", 5), "sanitising: AtomValence"),
        (star("N", 4), "sanitising: AtomValence"),
        (star("O", 2, 2), "sanitising: AtomValence"),
        (Molecule(("C", "O"), np.zeros((2, 2), np.int8)), "fragments"),
        (Molecule((), np.zeros((0, 0), np.int8)), "no atoms"),
        (Molecule(("Xx",), np.zeros((1, 1), np.int8)), "unknown element 'Xx'"),
    ],
)
def test_an_invalid_graph_is_a_molecule_that_says_why(molecule, reason, capfd):
    assert molecule.reason == reason
    assert molecule.rdkit is None and molecule.smiles is None and molecule._repr_svg_() is None
    assert repr(molecule) == f"Molecule(invalid: {reason})"
    assert capfd.readouterr().err == "", "RDKit's log leaks"


def test_a_charge_makes_the_same_graph_valid():
    assert star("N", 4).reason and star("N+1", 4).smiles == "C[N+](C)(C)C"


def test_bonds_must_fit_the_atoms():
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(3, 3\) for 3 atoms"):
        Molecule(("C", "C", "C"), np.zeros((2, 2), np.int8))


def test_batch_and_unbatch():
    items = [Molecule.from_smiles(s) for s in VARIED.values()]
    batch = Molecule.batch(items, sites=20)
    assert batch.mask.shape == (len(items), 20) and batch.sites.tolist() == [len(m.atoms) for m in items]
    assert torch.equal(batch.state["bond"], batch.state["bond"].transpose(1, 2))
    assert batch.state["atom"].dtype == torch.long and int(batch.state["atom"][~batch.mask].abs().max()) == 0
    back = Molecule.unbatch(batch)
    assert [m.atoms for m in back] == [m.atoms for m in items]
    assert all(np.array_equal(a.bonds, b.bonds) for a, b in zip(back, items, strict=True))
    assert [m.smiles for m in back] == [plain(s) for s in VARIED.values()]


def test_classes_are_sorted_by_count_then_name_and_may_be_given():
    items = [Molecule.from_smiles(s) for s in ("CCO", "CN", "C[NH3+]")]
    assert atom_classes(items) == ("C", "N", "N+1", "O")
    assert Molecule.batch(items).schema["atom"].classes == ("C", "N", "N+1", "O")
    given = ("O", "N+1", "N", "C", "S")
    batch = Molecule.batch(items, classes=given)
    assert batch.schema["atom"].classes == given and batch.state["atom"][0].tolist() == [3, 3, 0]
    assert set(schema(given)) == {"atom", "bond", "degree", "rank"}


def test_batch_errors_name_the_molecule():
    items = [Molecule.from_smiles(s) for s in ("CCO", "CCBr")]
    with pytest.raises(ValueError, match=r"molecule 1: unknown atoms \['Br'\]"):
        Molecule.batch(items, classes=("C", "O"))
    with pytest.raises(ValueError, match="molecule 0 has 3 > 2 atoms"):
        Molecule.batch(items, sites=2)
    with pytest.raises(ValueError, match="empty list"):
        Molecule.batch([])


def test_class_names():
    assert [parse_class(n) for n in ("N+1", "O-1", "Cl", "Fe+3")] == [("N", 1), ("O", -1), ("Cl", 0), ("Fe", 3)]


@given(name=st.sampled_from(sorted(VARIED)), data=st.data())
@settings(max_examples=40, deadline=None)
def test_numbering_does_not_matter(name, data):
    molecule = Molecule.from_smiles(VARIED[name])
    perm = data.draw(st.permutations(range(len(molecule.atoms))))
    moved = Molecule(tuple(molecule.atoms[k] for k in perm), molecule.bonds[np.ix_(perm, perm)])
    assert moved.smiles == molecule.smiles


def test_ninety_nine_of_a_hundred_compounds_round_trip():
    """RDKit's NCI file. Those that do not: what the graph does not hold, hydrogens that no valence model gives back."""
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text().split("\n")
    results = Counter()
    with rdBase.BlockLogs():
        for line in lines[::4]:
            mol = Chem.MolFromSmiles(line.split("\t")[0].split(" ")[0]) if line.strip() else None
            if mol is None or "." in line:
                continue
            expected = Chem.CanonSmiles(Chem.MolToSmiles(mol, isomericSmiles=False))
            try:
                got = Molecule.from_rdkit(mol)
            except MoleculeError as error:
                results[f"refused: {str(error).lstrip('0123456789 ')}"] += 1
                continue
            results["same" if got.smiles == expected else f"differs: {got.reason or 'hydrogens'}"] += 1
    total = results.total()
    assert total > 1000
    assert results["same"] / total >= 0.99, results
    assert sum(v for k, v in results.items() if k.startswith("differs")) / total < 0.005, results
