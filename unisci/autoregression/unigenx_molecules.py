"""UniGenX of molecules (arXiv 2503.06687): a model of the sequences of `unisci.autoregression.molecule_sequences`.

    p(v, w, x) = p(v) prod_i p(w_i | v, w_<i) prod_i p(x_i | v, w, x_<i)          v: properties, w: words, x: positions

One loss teaches all factors, so what is drawn and what is given is a matter of drawing alone: v, then w, then x.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from unisci.autoregression.linked_unigenx import LinkedUniGenX
from unisci.autoregression.molecule_sequences import ATOM, COORD, Layout, begin, place, positions, write
from unisci.autoregression.unigenx import SlotKind, UniGenXConfig
from unisci.autoregression.word_drawing import draw_words, nucleus
from unisci.batch import Batch
from unisci.domains.spelling import Spelling
from unisci.processes.gaussian import Cosine
from unisci.rng import Rng


class MoleculeUniGenX(nn.Module):
    """Trained by `fit` on what `write` gives; `unisci.autoregression.unigenx_generator` makes molecules with it."""

    def __init__(self, config: UniGenXConfig, layout: Layout):
        super().__init__()
        self.layout = layout
        self.sequence = LinkedUniGenX(len(layout.vocabulary), (SlotKind(Cosine()), SlotKind(Cosine())), config)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar training loss of a batch of MOLECULE_SEQUENCE."""
        return self.sequence.loss(place(batch, self.layout, rng.at(0)), rng.at(1))

    def draw_values(self, values: np.ndarray, rng: Rng, steps: int = 20, solver: str = "dpm++2m") -> np.ndarray:
        """(B, P): the first k properties as given (B, k), the others drawn. Raises ValueError as `begin`."""
        head = self._here(begin(values, self.layout))
        drawn = self.sequence.draw(head, rng, steps, solver).state["value"][:, 2::2, 0].double().cpu().numpy()
        for i, p in enumerate(self.layout.properties):
            drawn[:, i] = values[:, i] if i < values.shape[1] else drawn[:, i] * p.deviation + p.mean
        return drawn

    def draw_words(
        self, values: np.ndarray, rng: Rng, limit: int = 64, law: Callable[[Tensor], Tensor] = nucleus
    ) -> list[tuple[str, ...] | None]:
        """The words of a SMILES for each row of values (B, P), None where it has not ended after `limit` words."""
        vocabulary = np.array(self.layout.vocabulary, object)
        head, first = self._here(begin(values, self.layout)), len(vocabulary) - len(self.layout.words)
        never = torch.tensor([k < first and k != COORD for k in range(len(vocabulary))], device=head.mask.device)
        spoken = lambda logits: law(logits.masked_fill(never, -torch.inf))
        word = draw_words(self.sequence, head, rng, COORD, limit + 1, spoken).cpu().numpy()
        ends = [row.tolist().index(COORD) if COORD in row else None for row in word]
        return [None if end is None else tuple(vocabulary[row[:end]]) for row, end in zip(word, ends, strict=True)]

    def draw_positions(
        self, spellings: Sequence[Spelling], values: np.ndarray, rng: Rng, steps: int = 20, solver: str = "dpm++2m"
    ) -> list[np.ndarray]:
        """Positions (n, 3) in angstrom of each spelling, their mean 0, given values (B, P) of all properties."""
        batch = self._here(write([replace(s, positions=None) for s in spellings], self.layout, values))
        placed = place(batch, self.layout)
        atom = batch.given["slot"] == ATOM
        placed.given["free"].logical_and_(atom[..., None])
        drawn = self.sequence.draw(placed, rng, steps, solver).state["value"]
        x, atom = positions(drawn.double(), batch, self.layout).cpu().numpy(), atom.cpu().numpy()
        return [r[a] - r[a].mean(0) for r, a in zip(x, atom, strict=True)]

    def _here(self, batch: Batch) -> Batch:
        return batch.to(next(self.parameters()).device)
