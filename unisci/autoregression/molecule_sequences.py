"""Molecules as sequences for UniGenX (arXiv 2503.06687): SMILES, then one 3-vector an atom, behind properties or not.

    <bos> [<gap> v ...] w_1 ... w_m <coord> | x_1, ..., x_n | <eos>          w: words of SMILES, |...|: 3-vectors

v is (value, 0, 0), standardised, drawn as all else where it is not given. x_i is the offset r_i - r_parent(i) of an
atom from an earlier one that it is bonded to (`unisci.domains.spelling`), or r_i - r_1; x_1 = 0 is known. The molecule
lies in a frame of its own, atom 2 at (x, 0, 0) and atom 3 at (x, y, 0), whose zeros are known, so that each shape is
one sequence; or it is turned at random in training, as in the paper. Slots are told where the parent's slot and their
own word stand (`unisci.autoregression.linked_unigenx`).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.frames3d import own_frame, random_rotation
from unisci.autoregression.linked_unigenx import linked
from unisci.autoregression.unigenx import SEQUENCE_FIELDS
from unisci.batch import Batch, Field, Schema
from unisci.domains.spelling import HYDROGEN, Spelling, is_atom
from unisci.rng import Rng

SPECIAL = ("<bos>", "<eos>", "<coord>", HYDROGEN)
BOS, EOS, COORD = range(3)
ATOM, PROPERTY = 1, 2  # kinds of slots

# "value" in angstrom, before `place`. Positions back from an atom's slot, up: to that of its parent, 0 for the first;
# back: to its word, or for a hydrogen to that of its parent.
MOLECULE_SEQUENCE: Schema = SEQUENCE_FIELDS | {"up": Field("site"), "back": Field("site")}


@dataclass(frozen=True)
class Property:
    """A number of a molecule that stands before it; mean and deviation standardise it."""

    name: str
    mean: float = 0.0
    deviation: float = 1.0


@dataclass(frozen=True)
class Layout:
    """words: of SMILES, see `words_of`. offsets: vectors from the parent, of which bond lengths are the norms; else
    from the first atom, as in the paper. framed: in the molecule's own frame; else turned at random in training."""

    words: tuple[str, ...]
    properties: tuple[Property, ...] = ()
    offsets: bool = True
    framed: bool = True

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words; <name> for a property."""
        return (*SPECIAL, *(f"<{p.name}>" for p in self.properties), *self.words)

    @property
    def prefix(self) -> int:
        """Positions before the SMILES."""
        return 1 + 2 * len(self.properties)

    @property
    def unit(self) -> float:
        """Angstrom, about the standard deviation of the numbers of a vector."""
        return 0.8 if self.offsets else 2.2


def words_of(spellings: Iterable[Spelling]) -> tuple[str, ...]:
    """Their words, the most frequent first, ties by name."""
    counts = Counter(w for s in spellings for w in s.words)
    return tuple(sorted(counts, key=lambda w: (-counts[w], w)))


def begin(values: np.ndarray, layout: Layout) -> Batch:
    """Sequences (B, prefix) of SEQUENCE_FIELDS up to the SMILES. values (B, k), in their own units, of the first k
    properties; the others are free. Raises ValueError for more values than properties, or values that are not finite.
    """
    b, k = values.shape
    if k > len(layout.properties) or not np.isfinite(values).all():
        names = [p.name for p in layout.properties]
        raise ValueError(f"values {values.tolist()}: need finite numbers, at most one for each of {names}")
    word, value = np.full((b, layout.prefix), BOS), np.zeros((b, layout.prefix, 3), np.float32)
    slot, free = np.zeros_like(word), np.zeros(value.shape, bool)
    for i, p in enumerate(layout.properties):
        word[:, 2 * i + 1 : 2 * i + 3], slot[:, 2 * i + 2] = len(SPECIAL) + i, PROPERTY
        if i < k:
            value[:, 2 * i + 2, 0] = (values[:, i] - p.mean) / p.deviation
        free[:, 2 * i + 2, 0] = i >= k
    word, value, slot, free = map(torch.from_numpy, (word, value, slot, free))
    return Batch(SEQUENCE_FIELDS, {"word": word, "value": value}, slot >= 0, {"slot": slot, "free": free})


def write(spellings: Sequence[Spelling], layout: Layout, values: np.ndarray | None = None) -> Batch:
    """Sequences (B, S) of MOLECULE_SEQUENCE. values (B, P): of all properties, in their own units.

    Raises ValueError where values are missing, or words are not in the layout.
    """
    index, p = {w: k for k, w in enumerate(layout.vocabulary)}, layout.prefix
    values = np.zeros((len(spellings), 0)) if values is None else values
    if values.shape != (len(spellings), len(layout.properties)):
        raise ValueError(f"values have shape {values.shape}, expected ({len(spellings)}, {len(layout.properties)})")
    if unknown := set(words_of(spellings)) - set(layout.words):
        raise ValueError(f"words {sorted(unknown)} are not in the layout, which has {list(layout.words)}")
    sizes = [p + len(s.words) + 1 + len(s) + 1 for s in spellings]
    shape, head = (len(sizes), max(sizes, default=p)), begin(values, layout)
    word, slot, up, back, value = *(np.zeros(shape, np.int64) for _ in range(4)), np.zeros((*shape, 3), np.float32)
    word[:, :p], slot[:, :p], value[:, :p] = head.state["word"], head.given["slot"], head.state["value"]
    for i, (s, size) in enumerate(zip(spellings, sizes, strict=True)):
        first, end = size - 1 - len(s), size - 1
        word[i, p:size] = [*(index[w] for w in s.words), COORD, *(index[w] for w in s.sites), EOS]
        slot[i, first:end] = ATOM
        up[i, first + 1 : end] = np.arange(1, len(s)) - s.parents[1:]
        home = np.flatnonzero([is_atom(w) for w in s.words]) + p
        heavy = np.where(np.arange(len(s)) < len(home), np.arange(len(s)), s.parents)
        back[i, first:end] = np.arange(first, end) - home[heavy]
        if s.positions is not None:
            value[i, first:end] = s.positions - s.positions[0]
    mask = torch.arange(shape[1]) < torch.tensor(sizes, dtype=torch.long)[:, None]
    word, value, slot, up, back = map(torch.from_numpy, (word, value, slot, up, back))
    return Batch(MOLECULE_SEQUENCE, {"word": word, "value": value}, mask, {"slot": slot, "up": up, "back": back})


def place(batch: Batch, layout: Layout, rng: Rng | None = None) -> Batch:
    """MOLECULE_SEQUENCE as SEQUENCE_FIELDS, all vectors free; rng turns molecules that have no frame of their own."""
    slot, up, raw = batch.given["slot"], batch.given["up"], batch.state["value"]
    atom, at = slot == ATOM, torch.arange(slot.shape[1], device=slot.device)
    first = atom.int().argmax(1)
    x = raw * atom[..., None]
    if layout.framed:
        x = x @ own_frame(x, first)
    elif rng is not None:
        x = x @ random_rotation(rng)
    if layout.offsets:
        x = x - x.gather(1, (at - up)[..., None].expand_as(x)) * (up > 0)[..., None]
    axis = torch.arange(3, device=slot.device)
    free = atom[..., None] & ((at - first[:, None])[..., None] > (axis if layout.framed else 0))
    value = torch.where(atom[..., None], x * free / layout.unit, raw)
    free = free | (slot == PROPERTY)[..., None] & (axis == 0)
    word = linked(batch.state["word"], up, batch.given["back"], len(layout.vocabulary))
    return Batch(SEQUENCE_FIELDS, {"word": word, "value": value}, batch.mask, {"slot": slot, "free": free}, batch.ids)


def positions(value: Tensor, batch: Batch, layout: Layout) -> Tensor:
    """(B, S, 3) in angstrom, from the first atom, 0 at what is no atom: the inverse of `place`, up to a rotation.

    value (B, S, 3): what the slots of the batch of MOLECULE_SEQUENCE hold.
    """
    x = value * (batch.given["slot"] == ATOM)[..., None] * layout.unit
    if layout.offsets:
        jump = torch.arange(x.shape[1], device=x.device) - batch.given["up"]
        for _ in range(x.shape[1].bit_length()):  # x: the sum of the offsets from jump on, which reaches ever farther
            x = x + x.gather(1, jump[..., None].expand_as(x))
            jump = jump.gather(1, jump)
    return x
