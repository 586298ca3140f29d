"""Spellings of molecules by RDKit (see `unisci.domains.spelling`), and molecules of words.

The SMILES is RDKit's canonical one, without stereochemistry, which positions settle, and aromatic: that an atom is so
tells more of its distances than a Kekule form, and which of two such forms it would be depends on the order of storing.
"""

from collections.abc import Sequence

import numpy as np
from rdkit import Chem

from unisci.domains.molecule import Molecule, MoleculeError
from unisci.domains.spelling import Spelling, is_atom, split


def canonical_order(molecule: Molecule) -> tuple[str, np.ndarray]:
    """The canonical SMILES of a molecule, and its sites (n,) in the order of slots. Raises as `spell`."""
    heavy = molecule.heavy().rdkit
    if molecule.rdkit is None or heavy is None:
        raise MoleculeError(f"an invalid molecule has no spelling: {molecule.reason}")
    hydrogens = np.array([name == "H" for name in molecule.atoms])
    own, kept = (molecule.bonds * hydrogens).sum(1), np.flatnonzero(~hydrogens)
    wrong = [int(k) for k, a in zip(kept, heavy.GetAtoms(), strict=True) if own[k] != a.GetTotalNumHs()]
    if hydrogens.any() and wrong:
        raise MoleculeError(f"SMILES would give the atom at {wrong[0]} another number of hydrogens")
    text = Chem.MolToSmiles(heavy, isomericSmiles=False)
    order = kept[list(heavy.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])]
    tail = [np.flatnonzero(molecule.bonds[k] * hydrogens) for k in order]
    return text, np.concatenate([order, *tail])


def spell(molecule: Molecule) -> Spelling:
    """The canonical spelling, slots for the sites that the molecule has, positions of its first conformer if any.

    Raises MoleculeError where it is not valid, or has hydrogens as sites that its SMILES would not tell.
    """
    text, order = canonical_order(molecule)
    earlier = np.tril(molecule.bonds[np.ix_(order, order)] > 0, -1)
    parents = np.where(earlier, np.arange(len(order)), -1).max(1)
    positions = None if molecule.positions is None else molecule.positions[0][order]
    return Spelling(split(text), parents, positions)


def read(words: Sequence[str], hydrogens: bool = True) -> Molecule:
    """The molecule that is spelt, its sites in the order of slots; hydrogens: all of them as sites.

    Raises MoleculeError where the words are no molecule.
    """
    molecule = Molecule.from_smiles("".join(words), hydrogens)
    if sum(name != "H" for name in molecule.atoms) != sum(map(is_atom, words)):
        raise MoleculeError("a hydrogen or dummy atom is spelt as an atom")
    return molecule


def respell(words: Sequence[str], molecule: Molecule) -> Spelling:
    """The spelling of the molecule that `read` made of these words, canonical or not."""
    earlier = np.tril(molecule.bonds > 0, -1)
    return Spelling(tuple(words), np.where(earlier, np.arange(len(earlier)), -1).max(1))
