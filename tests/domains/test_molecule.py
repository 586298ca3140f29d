from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import AllChem

from unisci.domains.molecule import (
    MAX_ATOMS,
    POSITION,
    Molecule,
    MoleculeError,
    atom_classes,
    parse_class,
    schema,
)

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


def placed(smiles: str, conformers: int = 1) -> Molecule:
    """With all hydrogens, at positions by RDKit."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(AllChem.EmbedMultipleConfs(mol, conformers, randomSeed=1)) == conformers
    return Molecule.from_rdkit(mol, hydrogens=True)


@pytest.mark.parametrize("smiles", VARIED.values(), ids=VARIED)
def test_hydrogens_as_sites_are_the_same_molecule(smiles):
    molecule = Molecule.from_smiles(smiles, hydrogens=True)
    heavy = Molecule.from_smiles(smiles)
    expected = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(molecule.atoms) == expected.GetNumAtoms() and molecule.atoms[: len(heavy.atoms)] == heavy.atoms
    assert molecule.reason is None and molecule.smiles == heavy.smiles == plain(smiles)
    assert molecule.explicit and not any(a.GetTotalNumHs() for a in molecule.rdkit.GetAtoms())
    assert heavy.add_hydrogens().atoms == molecule.atoms
    assert molecule.heavy().atoms == heavy.atoms and np.array_equal(molecule.heavy().bonds, heavy.bonds)
    assert Molecule.from_rdkit(molecule.rdkit).atoms == heavy.atoms
    again = Molecule.from_rdkit(molecule.rdkit, hydrogens=True)
    assert again.atoms == molecule.atoms and again.smiles == molecule.smiles
    assert repr(molecule) == f"Molecule({plain(smiles)})"


def test_hydrogens_keep_their_places_among_the_sites():
    params = Chem.SmilesParserParams()
    params.removeHs = False
    mol = Chem.MolFromSmiles("[H]OC([H])([H])C", params)
    assert Molecule.from_rdkit(mol, hydrogens=True).atoms == ("H", "O", "C", "H", "H", "C", "H", "H", "H")


def test_which_molecules_are_explicit():
    assert Molecule.from_smiles("O=C=O").explicit and not Molecule.from_smiles("CO").explicit
    whole = Molecule.from_smiles("CO", hydrogens=True)
    assert whole.explicit and whole.add_hydrogens() is whole and not whole.heavy().explicit
    assert Molecule.from_smiles("[H][H]", hydrogens=True).atoms == ("H", "H")
    assert Molecule.from_smiles("[H][H]", hydrogens=True).smiles == "[H][H]"


@pytest.mark.parametrize(
    ("removed", "reason"),
    [(4, "unfinished: C at 0 has 3 of 4 bonds"), (9, "unfinished: N+1 at 2 has 3 of 4 bonds")],
)
def test_an_atom_without_all_its_bonds_makes_a_molecule_with_hydrogens_invalid(removed, reason):
    whole = Molecule.from_smiles("CC[NH3+]", hydrogens=True)
    assert whole.atoms == ("C", "C", "N+1", *("H",) * 8)
    keep = [k for k in range(11) if k != removed]
    cut = Molecule(tuple(whole.atoms[k] for k in keep), whole.bonds[np.ix_(keep, keep)])
    assert cut.reason == reason and cut.explicit and cut.smiles is None
    with pytest.raises(MoleculeError, match="unfinished"):
        cut.add_hydrogens()
    assert cut.heavy().smiles == "CC[NH3+]"


def test_a_hydrogen_has_one_bond():
    bonds = np.zeros((3, 3), np.int8)
    bonds[1, [0, 2]] = bonds[[0, 2], 1] = 1
    assert Molecule(("C", "H", "C"), bonds).reason == "sanitising: AtomValence"
    assert star("C", 4).reason is None and Molecule(("C",), np.zeros((1, 1), np.int8)).smiles == "C"
    assert Molecule(("C", "H"), np.zeros((2, 2), np.int8)).reason == "fragments"


@pytest.mark.parametrize("smiles", ["[CH3]", "C[CH]C", "CC.O", "*C", "", "C" * (MAX_ATOMS + 1)])
def test_what_cannot_be_held_is_not_held_with_hydrogens_either(smiles):
    with pytest.raises(MoleculeError):
        Molecule.from_smiles(smiles, hydrogens=True)


def test_the_limit_counts_heavy_atoms():
    molecule = Molecule.from_smiles("C" * MAX_ATOMS, hydrogens=True)
    assert len(molecule.atoms) == len(Molecule.from_rdkit(molecule.rdkit, hydrogens=True).atoms) == 3 * MAX_ATOMS + 2


def test_positions_go_to_rdkit_and_back():
    molecule = placed("OCc1cc[nH]c1", conformers=3)
    assert molecule.conformers == 3 and molecule.positions.shape == (3, 14, 3)
    assert molecule.positions.dtype == np.float64
    mol = molecule.rdkit
    assert [c.GetId() for c in mol.GetConformers()] == [0, 1, 2] and all(c.Is3D() for c in mol.GetConformers())
    assert np.array_equal(mol.GetConformer(2).GetPositions(), molecule.positions[2])
    heavy = molecule.heavy()
    assert heavy.conformers == 3 and np.array_equal(heavy.positions, molecule.positions[:, :7])
    assert np.array_equal(Molecule.from_rdkit(mol).positions, heavy.positions)
    full = heavy.add_hydrogens()
    assert np.array_equal(full.positions[:, :7], heavy.positions)
    near = full.positions[:, 7:] - np.stack([full.positions[:, np.argmax(full.bonds[k])] for k in range(7, 14)], 1)
    assert np.abs(np.linalg.norm(near, axis=-1) - 1).max() < 0.15, "hydrogens about an angstrom from their atoms"
    assert "svg" in molecule._repr_svg_()


def test_a_drawing_is_no_conformer():
    mol = Chem.MolFromSmiles("CCO")
    AllChem.Compute2DCoords(mol)
    assert Molecule.from_rdkit(mol).positions is None and Molecule.from_rdkit(mol, hydrogens=True).conformers == 0


def test_a_picture_is_flat_whatever_the_positions():
    molecule = placed("CC(=O)Nc1ccccc1")
    assert molecule._repr_svg_() == molecule.heavy().with_positions(None)._repr_svg_()


def test_with_positions():
    molecule = Molecule.from_smiles("CO")
    xyz = np.arange(6).reshape(2, 3)
    assert np.array_equal(molecule.with_positions(xyz).positions, xyz[None])
    assert molecule.with_positions([xyz, xyz]).conformers == 2
    assert molecule.with_positions(xyz).with_positions(None).positions is None
    assert molecule.with_positions(np.zeros((0, 2, 3))).positions is None and molecule.positions is None
    for shape in ((3, 3), (1, 3, 3), (1, 2, 2), (1, 1, 2, 3)):
        with pytest.raises(ValueError, match=r"expected \(conformers, 2, 3\)"):
            molecule.with_positions(np.zeros(shape))
    with pytest.raises(ValueError, match=r"\(2, 3\), expected \(conformers, 2, 3\)"):
        Molecule(molecule.atoms, molecule.bonds, xyz)
    broken = molecule.with_positions(np.full((2, 3), np.nan))
    assert broken.reason == "a position is not finite" and broken.rdkit is None


def test_batch_with_positions():
    items = [placed("CCO", 2), placed("O")]
    batch = Molecule.batch(items)
    assert batch.schema == schema(("H", "C", "O")) | {"position": POSITION} and POSITION == ("site", (3,), None)
    position = batch.state["position"]
    assert position.dtype == torch.float32 and not position[~batch.mask].any()
    assert position.sum(1).abs().max() < 1e-5
    for k, (got, item) in enumerate(zip(Molecule.unbatch(batch), items, strict=True)):
        assert got.conformers == 1 and got.atoms == item.atoms and got.smiles == item.smiles
        first = item.positions[0] - item.positions[0].mean(0)
        assert np.abs(got.positions[0] - first).max() < 1e-6, k
    for others in ([*items, Molecule.from_smiles("C")], [m.with_positions(None) for m in items]):
        flat = Molecule.batch(others)
        assert "position" not in flat.state and "position" not in flat.schema
        assert all(m.positions is None for m in Molecule.unbatch(flat))


@given(name=st.sampled_from(["caffeine", "nitro", "zwitterion", "azide"]), data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_batch_holds_any_conformers_in_any_numbering(name, data):
    whole = Molecule.from_smiles(VARIED[name], hydrogens=True)
    n = len(whole.atoms)
    perm = data.draw(st.permutations(range(n)))
    seed, count = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.integers(1, 3))
    positions = 3 * np.random.default_rng(seed).standard_normal((count, n, 3)) + 5
    moved = Molecule(tuple(whole.atoms[k] for k in perm), whole.bonds[np.ix_(perm, perm)], positions)
    assert moved.smiles == whole.smiles and moved.rdkit.GetNumConformers() == count
    assert np.array_equal(Molecule.from_rdkit(moved.rdkit, hydrogens=True).positions, positions)
    (back,) = Molecule.unbatch(Molecule.batch([moved], sites=n + 2))
    assert back.atoms == moved.atoms and np.array_equal(back.bonds, moved.bonds)
    assert np.abs(back.positions[0] - positions[0] + positions[0].mean(0)).max() < 1e-5
    heavy = [k for k, atom in enumerate(moved.atoms) if atom != "H"]
    assert np.array_equal(moved.heavy().positions, positions[:, heavy])
