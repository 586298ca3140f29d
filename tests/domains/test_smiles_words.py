"""Words of SMILES and slots of atoms: nothing is lost, and they are of the molecule alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.domains.molecule import Molecule, MoleculeError
from unisci.domains.smiles_words import canonical_order, read, respell, spell
from unisci.domains.spelling import Spelling, is_atom, split

CUBANE = "C12C3C4C1C5C2C3C45"
CAGE = "C1%10C2C3C4C5C6C7C8C9C%10C1C2C3C4C5C6C7C8C9"
SMILES = [
    *("C", "O", "N", "CO", "C=O", "C#N", "C#CC#C", "O=C=O", "CCO", "CC(C)(C)C", "FC(F)(F)F", "C1CC1", CUBANE),
    *("c1ccccc1", "c1cc[nH]c1", "c1ccoc1", "c1ccsc1", "Cc1ncc[nH]1", "c1ccc2ccccc2c1", "c1ccc(-c2ccccc2)cc1"),
    *("C[N+](C)(C)C", "[NH3+]CC(=O)[O-]", "C[N+](=O)[O-]", "[C-]#[O+]", "[O-][n+]1ccccc1", "CS(=O)(=O)N", "OP(=O)(O)O"),
    *("ClCCBr", "IC(Cl)Br", "C[Si](C)(C)C", "C[SH](C)C", "OB(O)c1ccccc1", "[NH4+]", "C[Se]C", "N#[N+][N-]C", CAGE),
    *(
        "CC(=O)Oc1ccccc1C(=O)O",
        "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
        "C/C=C/C",
        "N[C@@H](C)C(=O)O",
        "[O-][Cl+3]([O-])([O-])[O-]",
    ),
]


def permuted(molecule: Molecule, order: np.ndarray) -> Molecule:
    atoms = tuple(molecule.atoms[k] for k in order)
    positions = None if molecule.positions is None else molecule.positions[:, order]
    return Molecule(atoms, molecule.bonds[np.ix_(order, order)], positions)


def example(smiles: str, hydrogens: bool = True, seed: int = 0) -> Molecule:
    """With a position for each site that tells which it is."""
    molecule = Molecule.from_smiles(smiles, hydrogens)
    return molecule.with_positions(np.random.default_rng(seed).normal(size=(len(molecule.atoms), 3)))


def test_words():
    assert split("C[NH3+]Cl") == ("C", "[NH3+]", "Cl")
    assert split("BrC%12=C1(B)") == ("Br", "C", "%12", "=", "C", "1", "(", "B", ")")
    assert split("Cc1[nH]c(Sc)n1.O") == ("C", "c", "1", "[nH]", "c", "(", "S", "c", ")", "n", "1", ".", "O")
    assert [is_atom(w) for w in ("C", "Cl", "[Na+]", "c", "(", "1", "%10", "=", "#")] == [True] * 4 + [False] * 5
    for wrong in ("C C", "Xx", "[C", "C%1", "C&"):
        with pytest.raises(ValueError, match="no word of SMILES"):
            split(wrong)


@pytest.mark.parametrize("hydrogens", [True, False])
@pytest.mark.parametrize("smiles", SMILES)
def test_what_is_spelt_is_read(smiles, hydrogens):
    """The same molecule, and its sites in the order of slots: atoms, bonds by element and positions agree."""
    molecule = example(smiles, hydrogens)
    spelling = spell(molecule)
    again = read(spelling.words, hydrogens)
    text, order = canonical_order(molecule)
    assert "".join(spelling.words) == text and again.smiles == Molecule.from_smiles(text).smiles
    assert sorted(order) == list(range(len(molecule.atoms)))
    back = permuted(molecule, order)
    assert back.atoms == again.atoms and np.array_equal(back.positions[0], spelling.positions)
    assert np.array_equal(back.bonds > 0, again.bonds > 0)
    assert np.array_equal(respell(spelling.words, again).parents, spelling.parents)
    assert len(spelling) == len(spelling.sites) == len(molecule.atoms)


@pytest.mark.parametrize("smiles", SMILES)
def test_parents_are_bonded_and_earlier_and_hydrogens_come_last_by_parent(smiles):
    molecule = example(smiles)
    spelling, again = spell(molecule), read(spell(molecule).words)
    child = np.arange(1, len(spelling))
    assert spelling.parents[0] == -1 and (spelling.parents[1:] < child).all()
    assert (again.bonds[child, spelling.parents[1:]] > 0).all()
    heavy = sum(name != "H" for name in molecule.atoms)
    assert [w == "<h>" for w in spelling.sites] == [k >= heavy for k in range(len(spelling))]
    assert list(spelling.parents[max(heavy, 1) :]) == sorted(spelling.parents[max(heavy, 1) :])
    last = [np.flatnonzero(again.bonds[k, :k]).max() for k in child]
    assert list(spelling.parents[1:]) == last


@given(st.sampled_from(SMILES), st.integers(0, 10_000), st.booleans())
@settings(max_examples=80, deadline=None)
def test_words_are_of_the_molecule_alone(smiles, seed, hydrogens):
    molecule = example(smiles, hydrogens)
    order = np.random.default_rng(seed).permutation(len(molecule.atoms))
    a, b = spell(molecule), spell(permuted(molecule, order))
    assert a.words == b.words == spell(molecule.heavy()).words and np.array_equal(a.parents, b.parents)


def test_rings_above_nine_have_a_word_of_their_own():
    words = split(CAGE)
    assert "%10" in words and read(words).smiles == Molecule.from_smiles(CAGE).smiles


def test_what_cannot_be_spelt_or_read():
    with pytest.raises(MoleculeError, match="an invalid molecule has no spelling"):
        spell(Molecule(("C", "F"), np.array([[0, 3], [3, 0]], np.int8)))
    sulfane = Molecule(("S", "H", "H", "H", "H"), np.array([[0, 1, 1, 1, 1]] + [[1, 0, 0, 0, 0]] * 4, np.int8))
    with pytest.raises(MoleculeError, match="the atom at 0 another number of hydrogens"):
        spell(sulfane)
    for words in (["C", "("], ["c", "1", "c", "1"], ["C", "1", "C"], ["F", "F", "F"], [], ["C", "[H]"], ["[H]", "[H]"]):
        with pytest.raises(MoleculeError):
            read(words)


@pytest.mark.parametrize(
    ("words", "parents", "message"),
    [
        (("C", "C"), [-1], "2 atoms are spelt, but there are 1 slots"),
        (("=",), [-1], "0 atoms are spelt"),
        (("C", "C"), [0, 0], "parents are"),
        (("C", "C"), [-1, -1], "parents are"),
        (("C", "C"), [-1, 1], "parents are"),
        (("C",), [-1, 0, 1], "parents are"),
    ],
)
def test_spellings_are_checked(words, parents, message):
    with pytest.raises(ValueError, match=message):
        Spelling(words, np.array(parents))
    with pytest.raises(ValueError, match="positions have shape"):
        Spelling(("C", "C"), np.array([-1, 0]), np.zeros((1, 3)))
