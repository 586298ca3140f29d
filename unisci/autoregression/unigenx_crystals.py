"""Crystals as sequences for UniGenX (arXiv 2503.06687), and structure prediction by it.

    <bos> e_1 ... e_n <coord> | row a, row b, row c, x_1, ..., x_n | <eos>            e: elements, |...|: 3-vectors

Row a is (log a', 0, 0), row b (u, log b', 0), row c (v, w, log c'), standardised, of `unisci.lattice`, so that every
draw is a cell; zeros are known, not drawn. x_i is the fractional coordinate of the atom e_i, from the first atom, whose
own is known as 0: nothing tells where the origin of a crystal lies. The order of the atoms is of the crystal alone:
rarer elements first, then by atomic number, within an element by (x, y, z) to an eighth of the cell, so that a small
displacement seldom changes it. Choices of `Layout`: atoms in random order, the paper's random origin.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from unisci.autoregression.unigenx import SEQUENCE_FIELDS, SlotKind, UniGenX, UniGenXConfig
from unisci.batch import Batch
from unisci.domains.crystal import CRYSTAL_FIELDS, ELEMENTS, MAX_SITES, CrystalError
from unisci.processes.gaussian import Cosine
from unisci.processes.torus import UNIFORM_DEVIATION, TorusFlow
from unisci.rng import Rng

WORDS = ("<bos>", "<eos>", "<coord>", "<a>", "<b>", "<c>", *ELEMENTS)
BOS, EOS, COORD, ROW = range(4)
ELEMENT = WORDS.index(ELEMENTS[0])
CELL, ATOM = 1, 2  # kinds of slots
CELL_NUMBERS = ((0, 6, 6), (3, 1, 6), (4, 5, 2))  # of each row among a cell's six, 6 = the known 0
CELL_PLACES = (0, 4, 8, 3, 6, 7)  # of each of the six among the nine numbers of the rows
MARGIN = 1e-4  # a coordinate this little below 1 is 0
COARSE = 8  # parts of a cell edge, within which coordinates count as equal for the order


@dataclass(frozen=True)
class Layout:
    """periodic: coordinates are points of a circle, drawn by a flow on it; else numbers on a line, as in the paper.
    shuffle: atoms in random order, in training. translate: the origin anywhere in the cell, in training, and the first
    coordinate drawn."""

    periodic: bool = True
    shuffle: bool = False
    translate: bool = False

    def kinds(self, frequencies: int = 8) -> tuple[SlotKind, SlotKind]:
        """The heads' of the cell and of the atoms."""
        atom = SlotKind(TorusFlow(), UNIFORM_DEVIATION, frequencies) if self.periodic else SlotKind(Cosine())
        return SlotKind(Cosine()), atom

    def values(self, position: Tensor) -> Tensor:
        """What a slot holds of fractional coordinates."""
        return position if self.periodic else (position - 0.5) / UNIFORM_DEVIATION

    def positions(self, value: Tensor) -> Tensor:
        """Fractional coordinates in [0, 1) of what slots hold."""
        position = value if self.periodic else value * UNIFORM_DEVIATION + 0.5
        return position - position.floor()


def _sorted(keys: Sequence[Tensor]) -> Tensor:
    """(B, N): sites by the first key (B, N), then the next, ...; ties as they were."""
    order = keys[-1].argsort(dim=1, stable=True)
    for key in reversed(keys[:-1]):
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def _element_key(atom: Tensor, mask: Tensor) -> Tensor:
    """(B, N): rises with the number of atoms of the element, then with its atomic number; padding comes last."""
    count = ((atom[:, :, None] == atom[:, None]) & mask[:, None]).sum(2)
    return torch.where(mask, count * (len(ELEMENTS) + 1) + atom, torch.iinfo(torch.long).max)


def _anchor(position: Tensor, atom: Tensor, mask: Tensor, candidates: Tensor) -> Tensor:
    """(B,): the candidate that a smooth function of the differences to all others prefers, wherever sites are stored
    and the origin lies. Candidates that a translation exchanges would have been one in a primitive cell."""
    d = 2 * torch.pi * (position[:, None] - position[:, :, None]).double()
    phases, weights = (torch.tensor(v, dtype=d.dtype, device=d.device) for v in ((0.3, 0.7, 1.1), (1.0, 1.7, 2.3)))
    wave = ((d + phases).cos() * weights).sum(-1) + ((2 * d - phases).sin() * weights.flip(0)).sum(-1)
    score = (wave * ((atom + 1) * mask)[:, None].to(d)).sum(2)
    return score.masked_fill(~candidates, torch.inf).argmin(1)


def arrange(batch: Batch, layout: Layout, rng: Rng | None = None) -> Batch:
    """The same crystals with atoms in the layout's order, from its origin; rng None: the order and the origin that
    prediction has, whatever the layout draws in training."""
    atom, position, mask = batch.state["atom"], batch.state["position"], batch.mask
    rows = torch.arange(len(batch), device=mask.device)
    element = _element_key(atom, mask)
    if rng is not None and layout.shuffle:
        element = torch.where(mask, rng.uniform("order", 0, tuple(mask.shape), 1), 2.0)
    if rng is not None and layout.translate:
        position = position + rng.uniform("origin", 0, (len(batch), 1, 3), 0)
    else:
        candidates = element == element.amin(1, keepdim=True)
        position = position - position[rows, _anchor(position, atom, mask, candidates)][:, None]
    position = position - position.floor()
    position = torch.where(position > 1 - MARGIN, 0.0, position)
    coarse = ((position * COARSE).round() % COARSE).unbind(-1)
    order = _sorted([element, *coarse, *position.unbind(-1)])
    pick = lambda x: x[rows[:, None], order]
    return batch.replace(atom=pick(atom), position=pick(position))


def write(batch: Batch, layout: Layout, pinned: bool = True) -> Batch:
    """Crystals (B of at most N sites) as sequences (B, 2 N + 6) of SEQUENCE_FIELDS, atoms as they are stored.

    pinned: the first atom's coordinate is known.
    """
    b, n = batch.mask.shape
    sites = batch.sites[:, None]
    at = torch.arange(2 * n + 6, device=sites.device).expand(b, -1)
    row, i = at - sites - 2, at - sites - 5
    is_word, is_row, is_atom = at <= sites + 1, (row >= 0) & (row < 3), (i >= 0) & (i < sites)
    site = torch.where(is_atom, i, at - 1).clamp(0, n - 1)
    word = batch.state["atom"].gather(1, site) + ELEMENT
    word = torch.where(is_row, row + ROW, torch.where(at == 0, BOS, torch.where(at == sites + 1, COORD, word)))
    word = torch.where(is_word | is_row | is_atom, word, EOS)
    cell = torch.cat([batch.state["cell"], batch.state["cell"].new_zeros(b, 1)], 1)
    which = torch.tensor(CELL_NUMBERS, device=sites.device)[row.clamp(0, 2)]
    cell = cell[:, None].expand(-1, at.shape[1], -1).gather(2, which)
    position = layout.values(batch.state["position"]).gather(1, site[..., None].expand(-1, -1, 3))
    value = torch.where(is_row[..., None], cell, torch.where(is_atom[..., None], position, 0.0))
    free = torch.where(is_row[..., None], which < 6, (is_atom & (i >= pinned))[..., None])
    given = {"slot": is_row * CELL + is_atom * ATOM, "free": free}
    mask = at < 2 * sites + 6
    return Batch(SEQUENCE_FIELDS, {"word": word, "value": value}, mask, given, batch.ids)


def read(sequence: Batch, layout: Layout) -> Batch:
    """The crystals of sequences; the inverse of `write`."""
    sites = (sequence.mask.sum(1) - 6) // 2
    i = torch.arange(int(sites.max()) if len(sites) else 0, device=sites.device)
    mask = i < sites[:, None]
    rows = torch.arange(len(sites), device=sites.device)[:, None]
    atom = torch.where(mask, sequence.state["word"][rows, (i + 1).expand_as(mask)] - ELEMENT, 0)
    value = sequence.state["value"]
    position = layout.positions(value[rows, (i + 5 + sites[:, None]).clamp(max=value.shape[1] - 1)])
    numbers = value[rows, sites[:, None] + 2 + torch.arange(3, device=sites.device)].flatten(1)
    state = {
        "atom": atom,
        "position": torch.where(mask[..., None], position, 0.0),
        "cell": numbers[:, list(CELL_PLACES)],
    }
    return Batch(CRYSTAL_FIELDS, state, mask, {}, sequence.ids)


class CrystalUniGenX(nn.Module):
    """Structure prediction: atoms in, cells and positions out. `fit` trains it on batches of crystals."""

    def __init__(self, config: UniGenXConfig, layout: Layout):
        super().__init__()
        self.layout, self.sequence = layout, UniGenX(len(WORDS), layout.kinds(), config)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar training loss of a batch of CRYSTAL_FIELDS."""
        arranged = arrange(batch, self.layout, rng.at(0))
        return self.sequence.loss(write(arranged, self.layout, not self.layout.translate), rng.at(1))

    def predict(self, formulas: Sequence[np.ndarray], rng: Rng, steps: int = 20, solver: str = "dpm++2m") -> Batch:
        """One crystal a formula, a batch of CRYSTAL_FIELDS; `steps` calls of a head a vector.

        formulas: the atomic numbers (n,) of the sites of each, in any order, which does not matter; the crystals' sites
        are in the order of `arrange`. Raises CrystalError where a formula has no or too many sites, or an unknown
        element, and ValueError where there are not as many formulas as samples in rng.
        """
        if len(formulas) != len(rng.ids):
            raise ValueError(f"{len(formulas)} formulas for {len(rng.ids)} samples: rng.ids names one for each")
        sizes = [len(f) for f in formulas]
        for f in formulas:
            if not 1 <= len(f) <= MAX_SITES or not 1 <= min(f) <= max(f) <= len(ELEMENTS):
                raise CrystalError(f"{list(f)} are not 1 to {MAX_SITES} atomic numbers from 1 to {len(ELEMENTS)}")
        b, n = len(sizes), max(sizes, default=0)
        atom = torch.zeros(b, n, dtype=torch.long)
        for i, f in enumerate(formulas):
            atom[i, : len(f)] = torch.as_tensor(np.asarray(f)) - 1
        mask = torch.arange(n) < torch.tensor(sizes)[:, None]
        state = {"atom": atom, "position": torch.zeros(b, n, 3), "cell": torch.zeros(b, 6)}
        device = next(self.parameters()).device
        batch = arrange(Batch(CRYSTAL_FIELDS, state, mask, {}, rng.ids).to(device), self.layout)
        sequence = write(batch, self.layout, not self.layout.translate)
        return read(self.sequence.draw(sequence, rng, steps, solver), self.layout)
