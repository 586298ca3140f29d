"""The frames of an XYZ file: the number of atoms n, a comment, then n lines "element x y z" in angstrom.

A frame that breaks this form is one error; reading goes on at the next line that holds a whole number and no more.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from unisci.domains.crystal import ELEMENTS

_NUMBERS = {symbol.lower(): z for z, symbol in enumerate(ELEMENTS, 1)}
_COUNT = re.compile(r"\s*\d+\s*")


class Frame(NamedTuple):
    """numbers (n,): atomic numbers; positions (n, 3) in angstrom; comment; error: why there are no atoms, or None."""

    numbers: tuple[int, ...]
    positions: np.ndarray
    comment: str
    error: str | None = None


def frames(text: str) -> Iterator[Frame]:
    """The frames of a file in order, whole or with an error. Elements are symbols or atomic numbers; what follows the
    three coordinates of an atom is not read."""
    lines = text.splitlines()
    start = _filled(lines, 0)
    while start < len(lines):
        counted = bool(_COUNT.fullmatch(lines[start]))
        comment = lines[start + 1].strip() if counted and start + 1 < len(lines) else ""
        try:
            atoms, end = _atoms(lines, start)
            yield Frame(tuple(z for z, _ in atoms), np.array([xyz for _, xyz in atoms]), comment)
        except ValueError as error:
            yield Frame((), np.zeros((0, 3)), comment, str(error))
            end = start + 1 + counted  # a comment may be a whole number, too
            while end < len(lines) and not _COUNT.fullmatch(lines[end]):
                end += 1
        start = _filled(lines, end)


def _atoms(lines: list[str], start: int) -> tuple[list[tuple[int, list[float]]], int]:
    """The atoms of the frame that begins at a line, and the line after them. Raises ValueError with what is wrong."""
    if not _COUNT.fullmatch(lines[start]):
        raise ValueError(f"line {start + 1} is no number of atoms")
    count, first = int(lines[start]), start + 2
    if not count:
        raise ValueError("no atoms")
    atoms = [_atom(line, first + k + 1) for k, line in enumerate(lines[first : first + count])]
    if len(atoms) < count:
        raise ValueError(f"the file ends after {len(atoms)} of {count} atoms")
    end = first + count
    following = _filled(lines, end)
    if following < len(lines) and not _COUNT.fullmatch(lines[following]):
        raise ValueError(f"line {following + 1} is beyond the {count} atoms of its frame")
    return atoms, end


def _atom(line: str, number: int) -> tuple[int, list[float]]:
    """Atomic number and coordinates. Raises ValueError where the line, which has this number, is no atom."""
    words = line.split()
    if len(words) >= 4:
        z = int(words[0]) if words[0].isdecimal() else _NUMBERS.get(words[0].lower(), 0)
        try:
            xyz = [float(word) for word in words[1:4]]
        except ValueError:
            z = 0
        if 1 <= z <= len(ELEMENTS):
            return z, xyz
    raise ValueError(f"line {number} is not 'element x y z' but {line.strip()[:40]!r}")


def _filled(lines: list[str], k: int) -> int:
    """The first line from k on that is not blank, or the number of lines."""
    while k < len(lines) and not lines[k].strip():
        k += 1
    return k
