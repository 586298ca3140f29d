"""UniGenX (arXiv 2503.06687) that is told of each slot how far back two positions stand that it has to do with.

    e_j = E[word_j] + slot_j (V(x_j) + sum_k L_k[b_kj]) + slot_j+1 (Q[word_j+1] + sum_k M_k[b_kj+1]),    k = 1, 2

b_1j, b_2j: positions from j back to the slot of the parent, and to the atom's word in the SMILES. Rotary attention then
finds both at once; without them it would have to count the atoms of the SMILES, past its brackets and digits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unisci.autoregression.unigenx import SlotKind, UniGenX, UniGenXConfig

LINKS = 64  # from the last on all are one


def linked(word: Tensor, up: Tensor, back: Tensor, words: int) -> Tensor:
    """The word of a slot and its two links as one integer; 0, 0 changes nothing."""
    return word + words * (up.clamp(max=LINKS - 1) + LINKS * back.clamp(max=LINKS - 1))


class LinkedUniGenX(UniGenX):
    """Takes words as `linked` gives them."""

    def __init__(self, words: int, kinds: Sequence[SlotKind], config: UniGenXConfig):
        super().__init__(words, kinds, config)
        self.words = words
        self.own, self.coming = (nn.ModuleList(nn.Embedding(LINKS, config.trunk.width) for _ in "ub") for _ in "oc")
        for table in (*self.own, *self.coming):
            nn.init.normal_(table.weight, std=0.5)

    def embed(self, word: Tensor, value: Tensor, slot: Tensor) -> Tensor:
        """As of UniGenX."""
        h, link, atom = super().embed(word % self.words, value, slot), word // self.words, slot[..., None] > 0
        links = (link % LINKS, torch.div(link, LINKS, rounding_mode="floor"))
        for own, coming, b in zip(self.own, self.coming, links, strict=True):
            h = h + own(b[:, :-1]) * atom[:, :-1] + coming(b[:, 1:]) * atom[:, 1:]
        return h
