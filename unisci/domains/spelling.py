"""Molecules as words of SMILES (Weininger, J. Chem. Inf. Comput. Sci. 1988, 28, 31) and the order of their atoms.

    c 1 c c [nH] c 1   ->   slots c, c, c, [nH], c, then the hydrogens <h> of the first, of the second, ...
    parent(0) = -1,    parent(i) = max{j < i: i and j are bonded}

A word is an atom, a bond, a bracket, or the digit of a ring; an atom of two letters or in square brackets is one word.
Slots are the heavy atoms as they are spelt, and then all hydrogens, as RDKit adds them: a hydrogen is placed when the
whole skeleton stands, which all but settles where it goes, and molecules without hydrogens are the same but shorter.
"""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

HYDROGEN = "<h>"
_ATOM = r"\[[^\[\]]+\]|Br|Cl|[BCNOPSFIbcnops]"
_WORD = re.compile(rf"{_ATOM}|%\d\d|\d|[-=#:$()/\\.]")


def split(smiles: str) -> tuple[str, ...]:
    """The words of one SMILES. Raises ValueError where a part of it is none."""
    words = tuple(_WORD.findall(smiles))
    if "".join(words) != smiles:
        raise ValueError(f"{smiles!r} has a part that is no word of SMILES")
    return words


def is_atom(word: str) -> bool:
    """Whether a word of SMILES is an atom."""
    return word[0] == "[" or word[0].isalpha()


@dataclass(frozen=True, eq=False)
class Spelling:
    """words: of the SMILES; parents (n,) int64: for each slot an earlier one that it is bonded to, -1 for the first;
    positions (n, 3) float64 in angstrom, None where they are to be drawn.

    Raises ValueError where parents or shapes contradict the words.
    """

    words: tuple[str, ...]
    parents: np.ndarray
    positions: np.ndarray | None = None

    def __post_init__(self) -> None:
        n, heavy = len(self.parents), sum(map(is_atom, self.words))
        if not 1 <= heavy <= n:
            raise ValueError(f"{heavy} atoms are spelt, but there are {n} slots: each atom needs one")
        early = np.asarray(self.parents) < np.minimum(np.arange(n), heavy)
        if self.parents[0] != -1 or not early.all() or (np.asarray(self.parents[1:]) < 0).any():
            raise ValueError(f"parents are {list(self.parents)}: -1, then earlier slots, of heavy atoms")
        if self.positions is not None and np.shape(self.positions) != (n, 3):
            raise ValueError(f"positions have shape {np.shape(self.positions)}, expected ({n}, 3)")

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """(n,) the word of each slot: its own of the SMILES, or <h>."""
        heavy = tuple(filter(is_atom, self.words))
        return heavy + (HYDROGEN,) * (len(self.parents) - len(heavy))

    def __len__(self) -> int:
        return len(self.parents)
