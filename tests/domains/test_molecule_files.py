"""Molecules in space through SDF and XYZ and back, and the reason for each record that cannot be held."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem

from unisci.domains.molecule import MAX_ATOMS, Molecule
from unisci.domains.molecule_files import read_sdf, read_xyz, write_sdf, write_xyz

SDF, XYZ = 1e-3, 1e-6  # angstrom
SMILES = {
    "alanine zwitterion": "C[C@H]([NH3+])C(=O)[O-]",
    "nitrobenzene": "O=[N+]([O-])c1ccccc1",
    "imidazole": "c1c[nH]cn1",
    "propynal": "C#CC=O",
    "carbon dioxide": "O=C=O",
    "tetrafluoromethane": "FC(F)(F)F",
    "ammonium": "C[N+](C)(C)C",
    "acetate": "CC(=O)[O-]",
    "water": "O",
    "cage": "OCC1C2C3CN2C13",  # atoms without a bond as near as 1.2 times the sum of their radii
}


def placed(smiles: str, conformers: int = 1) -> Molecule:
    """With all hydrogens, at positions by RDKit."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(AllChem.EmbedMultipleConfs(mol, conformers, randomSeed=1)) == conformers
    return Molecule.from_rdkit(mol, hydrogens=True)


POOL = {name: placed(smiles, 2) for name, smiles in SMILES.items()}


def same(a: Molecule, b: Molecule) -> bool:
    """The same sites and bonds, but that an aromatic ring may have its other Kekule form."""
    linked = np.array_equal(a.bonds > 0, b.bonds > 0)
    return a.atoms == b.atoms and linked and a.smiles == b.smiles is not None


def record(smiles: str, conformers: int = 1) -> str:
    """The text of an SDF of one molecule."""
    file = io.StringIO()
    write_sdf(file, [placed(smiles, conformers)], names=[smiles])
    return file.getvalue()


def test_sdf_keeps_graphs_positions_names_and_properties(tmp_path):
    molecules = list(POOL.values())
    given = [{"number": k, "note": f"two\nlines <{k}>", "é": 0.1 * k} for k in range(len(molecules))]
    write_sdf(tmp_path / "a.sdf", molecules, given, list(POOL))
    read, rejects, properties = read_sdf(tmp_path / "a.sdf")
    assert rejects == [] and len(read) == 2 * len(molecules)  # a record, and so a molecule, for each conformer
    for k, molecule in enumerate(read):
        source = molecules[k // 2]
        assert same(molecule, source) and molecule.positions.shape == (1, len(source.atoms), 3)
        assert np.abs(molecule.positions[0] - source.positions[k % 2]).max() <= 0.5001e-4  # four decimals
        expected = {key: str(value) for key, value in given[k // 2].items()}
        assert properties[k] == {"_Name": list(POOL)[k // 2]} | expected
    write_sdf(tmp_path / "b.sdf", read, properties)
    assert (tmp_path / "b.sdf").read_text() == (tmp_path / "a.sdf").read_text()


def test_sdf_of_heavy_atoms_has_implicit_hydrogens(tmp_path):
    molecules = [m.heavy() for m in POOL.values()]
    write_sdf(tmp_path / "a.sdf", molecules)
    read, rejects, properties = read_sdf(tmp_path / "a.sdf")
    assert rejects == [] and not any(properties)
    assert all(same(read[2 * k], m) and read[2 * k].explicit == m.explicit for k, m in enumerate(molecules))


def test_hydrogens_that_an_sdf_leaves_out_follow_those_it_has(tmp_path):
    whole = POOL["alanine zwitterion"]
    mol = Chem.RWMol(whole.rdkit)
    carbon = [a.GetIdx() for a in mol.GetAtoms() if a.GetSymbol() == "H" and a.GetNeighbors()[0].GetSymbol() == "C"]
    for k in reversed(carbon):
        mol.RemoveAtom(k)
    for atom in mol.GetAtoms():
        atom.SetNoImplicit(False)
    (tmp_path / "a.sdf").write_text(Chem.MolToMolBlock(mol))
    (read,), rejects, _ = read_sdf(tmp_path / "a.sdf")
    assert rejects == [] and read.smiles == whole.smiles and sorted(read.atoms) == sorted(whole.atoms)
    assert np.abs(read.positions[0, :9] - mol.GetConformer(0).GetPositions()).max() < SDF


@given(name=st.sampled_from(sorted(POOL)), data=st.data())
@settings(max_examples=40, deadline=None)
def test_sdf_and_xyz_keep_any_numbering_and_place(name, data, tmp_path_factory):
    source = POOL[name]
    n = len(source.atoms)
    perm = data.draw(st.permutations(range(n)))
    seed, far = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([0.0, 10.0, 900.0]))
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]
    bonds = source.bonds[np.ix_(perm, perm)]
    moved = Molecule(tuple(source.atoms[k] for k in perm), bonds, source.positions[:, perm] @ rotation - far)
    path = tmp_path_factory.mktemp("any") / "file"
    write_sdf(path, [moved])
    read, rejects, _ = read_sdf(path)
    assert rejects == [] and len(read) == 2 and all(same(m, moved) for m in read)
    assert np.abs(np.concatenate([m.positions for m in read]) - moved.positions).max() < SDF
    write_xyz(path, [moved])
    read, rejects, _ = read_xyz(path, charge=Chem.GetFormalCharge(source.rdkit))
    assert rejects == [] and [m.smiles for m in read] == [moved.smiles] * 2
    assert np.abs(np.concatenate([m.positions for m in read]) - moved.positions).max() < XYZ
    elements = lambda m: [a.GetSymbol() for a in m.rdkit.GetAtoms()]
    assert all(elements(m) == elements(moved) and m.explicit for m in read)


text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=20)


@given(name=text.filter(lambda s: s == s.strip()), lines=st.lists(text, min_size=1, max_size=3))
@example(name="_", lines=["0"])
@settings(max_examples=60, deadline=None)
def test_a_property_is_read_back_or_refused(name, lines, tmp_path_factory):
    path, value = tmp_path_factory.mktemp("any") / "a.sdf", "\n".join(lines)
    try:
        write_sdf(path, [POOL["water"]], [{name: value, "last": 1}])
    except ValueError:
        refused = not name or name[0] == "_" or set(name) & set("<>")
        assert refused or any(not s.strip() or s.startswith("$$$$") for s in lines)
        assert not path.exists()
        return
    read, rejects, properties = read_sdf(path)
    assert len(read) == 2 and rejects == [] and properties == [{name: value, "last": "1"}] * 2


GOOD = record("CCO")
LINES = GOOD.split("\n")


def altered(line: int, old: str, new: str) -> str:
    """GOOD with one line changed, of the name "altered"."""
    assert old in LINES[line]
    return "\n".join(["altered", *LINES[1:line], LINES[line].replace(old, new), *LINES[line + 1 :]])


def flat(smiles: str) -> str:
    mol = Chem.MolFromSmiles(smiles)
    AllChem.Compute2DCoords(mol)
    return f"{Chem.MolToMolBlock(mol)}$$$$\n"


def loose(smiles: str) -> str:
    """A record of what a Molecule does not hold."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    conformer = Chem.Conformer(mol.GetNumAtoms())
    conformer.SetPositions(np.random.default_rng(0).standard_normal((mol.GetNumAtoms(), 3)))
    mol.AddConformer(conformer)
    return f"{Chem.MolToMolBlock(mol)}$$$$\n"


BAD_RECORDS = {
    "no record": ("this is no record\n$$$$\n", "RDKit cannot parse the record"),
    "empty": ("$$$$\n", "RDKit cannot parse the record"),
    "nan": (altered(4, LINES[4][:10], "       nan"), "a coordinate is not finite"),
    "infinite": (altered(5, LINES[5][10:20], "      -inf"), "a coordinate is not finite"),
    "other version": (altered(3, "V2000", "V9000"), "RDKit cannot parse the record"),
    "drawn": (flat("CCO"), "no positions: the record is drawn in two dimensions or has no coordinates"),
    "without coordinates": (
        f"{Chem.MolToMolBlock(Chem.MolFromSmiles('CCO'))}$$$$\n",
        "no positions: the record is drawn in two dimensions or has no coordinates",
    ),
    "zero": (
        "\n".join([*LINES[:4], *("    0.0000    0.0000    0.0000" + s[30:] for s in LINES[4:13]), *LINES[13:]]),
        "no positions: all coordinates are zero",
    ),
    "no atoms": ("\n     RDKit          3D\n\n  0  0  0  0  0  0  0  0  0  0999 V2000\nM  END\n$$$$\n", "no atoms"),
    "radical": (loose("C[CH]C"), "radical electrons"),
    "salt": (loose("CC(=O)[O-].[Na+]"), "more than one fragment"),
    "five bonds": (altered(14, "  1  ", "  3  "), "sanitising: Explicit valence"),
    "large": (loose("C" * (MAX_ATOMS + 1)), f"{MAX_ATOMS + 1} heavy atoms"),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_a_bad_record_is_a_reject_and_the_others_are_read(case, tmp_path, capfd):
    text, reason = BAD_RECORDS[case]
    (tmp_path / "a.sdf").write_text(GOOD + text + GOOD)
    read, ((index, name, said),), properties = read_sdf(tmp_path / "a.sdf")
    assert index == 1 and said.startswith(reason), said
    assert name == text.split("\n")[0].strip().replace("$$$$", "")
    assert [m.smiles for m in read] == ["CCO", "CCO"] and properties == [{"_Name": "CCO"}] * 2
    assert capfd.readouterr().err == "", "RDKit's log leaks"


@pytest.mark.parametrize("end", ["", "\n\n", " \n"])
def test_how_an_sdf_ends_does_not_matter(end, tmp_path):
    (tmp_path / "a.sdf").write_bytes((2 * GOOD + end).replace("\n", "\r\n").encode())
    (tmp_path / "b.sdf").write_text((2 * GOOD)[:-5] + end)
    for name in ("a.sdf", "b.sdf"):
        read, rejects, _ = read_sdf(tmp_path / name)
        assert len(read) == 2 and rejects == []
    (tmp_path / "c.sdf").write_text((2 * GOOD)[:-200])
    read, rejects, _ = read_sdf(tmp_path / "c.sdf")
    assert len(read) == 1 and rejects == [(1, "CCO", "RDKit cannot parse the record")]


def test_a_planar_molecule_and_one_atom_at_the_origin_are_in_space(tmp_path):
    methane, water = Molecule.from_smiles("C"), POOL["water"]
    planar = water.with_positions(water.positions * [1, 1, 0])
    write_sdf(tmp_path / "a.sdf", [methane.with_positions(np.zeros((1, 3))), planar])
    read, rejects, _ = read_sdf(tmp_path / "a.sdf")
    assert len(read) == 3 and rejects == [] and not read[0].positions.any()


def test_an_empty_file_has_no_molecules_and_a_missing_one_is_an_error(tmp_path):
    (tmp_path / "empty").write_text("")
    assert read_sdf(tmp_path / "empty") == ([], [], []) and read_xyz(tmp_path / "empty") == ([], [], [])
    for read in (read_sdf, read_xyz):
        with pytest.raises(ValueError, match="none does not exist"):
            read(tmp_path / "none")


def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path):
    water, path = POOL["water"], tmp_path / "file"
    flat_water, broken = water.with_positions(None), water.with_positions(np.full((3, 3), np.inf))
    for write in (write_sdf, write_xyz):
        with pytest.raises(ValueError, match="molecule 1 has no positions"):
            write(path, [water, flat_water])
        with pytest.raises(ValueError, match="molecule 1 is not valid: a position is not finite"):
            write(path, [water, broken])
    with pytest.raises(ValueError, match=r"molecule 0 has implicit hydrogens: take \.add_hydrogens"):
        write_xyz(path, [water.heavy()])
    with pytest.raises(ValueError, match="has more than one line"):
        write_xyz(path, [water], ["a\nb"])
    with pytest.raises(ValueError, match="has more than one line"):
        write_sdf(path, [water], names=["a\nb"])
    with pytest.raises(ValueError, match="2 names, comments or sets of properties for 1 molecules"):
        write_sdf(path, [water], names=["a", "b"])
    with pytest.raises(ValueError, match="0 names, comments or sets"):
        write_xyz(path, [water], [])
    assert not path.exists()


WATER = "3\nwater\nO 0.0 0.0 0.119\nH 0.0 0.763 -0.477\nH 0.0 -0.763 -0.477\n"
BAD_FRAMES = {
    "hydroxyl radical": ("2\nbad\nO 0 0 0\nH 0 0 0.97\n", "no bonds of total charge 0 complete every atom"),
    "ammonium": (
        "5\nbad\nN 0 0 0\nH .6 .6 .6\nH -.6 -.6 .6\nH -.6 .6 -.6\nH .6 -.6 -.6\n",
        "no bonds of total charge 0 complete every atom",
    ),
    "hydrogens left out": ("2\nbad\nC 0 0 0\nC 0 0 1.5\n", "radical electrons"),
    "two waters": (
        f"6\nbad\n{WATER[8:]}{WATER[8:].replace('O 0.0', 'O 9.0').replace('H 0.0', 'H 9.0')}",
        "more than one",
    ),
    "nan": ("2\nbad\nH 0 0 nan\nH 0 0 0.7\n", "a coordinate is not finite"),
    "infinite": ("2\nbad\nH 0 0 -inf\nH 0 0 0.7\n", "a coordinate is not finite"),
    "zero": ("2\nbad\nH 0 0 0\nH 0 0 0\n", "no positions: all coordinates are zero"),
    "large": (f"{MAX_ATOMS + 1}\nbad\n" + "".join(f"C 0 0 {k}\n" for k in range(MAX_ATOMS + 1)), "65 heavy atoms"),
    "element": ("1\nbad\nXx 0 0 0\n", "line 8 is not 'element x y z' but 'Xx 0 0 0'"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_a_bad_frame_is_a_reject_and_the_others_are_read(case, tmp_path, capfd):
    text, reason = BAD_FRAMES[case]
    (tmp_path / "a.xyz").write_text(WATER + text + WATER)
    read, ((index, name, said),), comments = read_xyz(tmp_path / "a.xyz")
    assert (index, name) == (1, "bad") and said.startswith(reason), said
    assert [m.smiles for m in read] == ["O", "O"] and comments == ["water"] * 2
    assert capfd.readouterr().err == "", "RDKit's log leaks"


def test_the_charge_is_that_of_the_reader(tmp_path):
    (tmp_path / "a.xyz").write_text(BAD_FRAMES["ammonium"][0] + BAD_FRAMES["hydroxyl radical"][0])
    assert [m.smiles for m in read_xyz(tmp_path / "a.xyz", charge=1)[0]] == ["[NH4+]"]
    assert [m.smiles for m in read_xyz(tmp_path / "a.xyz", charge=-1)[0]] == ["[OH-]"]
    read, rejects, _ = read_xyz(tmp_path / "a.xyz", charge=2)
    assert not read and [k for k, _, _ in rejects] == [0, 1]


def test_a_stretched_bond_is_one_up_to_1_3_times_the_sum_of_the_radii(tmp_path):
    (tmp_path / "a.xyz").write_text("".join(f"2\n\nH 0 0 0\nH 0 0 {r}\n" for r in (0.62, 0.78, 0.83)))
    read, rejects, _ = read_xyz(tmp_path / "a.xyz")
    assert len(read) == 2 and rejects == [(2, "", "more than one fragment")]


def test_xyz_comments_and_open_files(tmp_path):
    file = io.StringIO()
    write_xyz(file, [POOL["water"], POOL["propynal"]], ["12", ""])
    file.write(WATER)
    (tmp_path / "a.xyz").write_text(file.getvalue())
    read, rejects, comments = read_xyz(tmp_path / "a.xyz")
    assert not rejects and comments == ["12", "12", "", "", "water"] and read[4].smiles == "O"
    assert read[2].smiles == POOL["propynal"].smiles
