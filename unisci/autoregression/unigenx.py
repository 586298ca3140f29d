"""UniGenX (Zhang et al., arXiv 2503.06687): one causal transformer of words and of 3-vectors, with a diffusion head.

    h_i = transformer(e_0, ..., e_i),    e_j = E[word_j] + slot_j V(x_j) + slot_j+1 Q[word_j+1]
    p(word_i+1 | ...) = softmax(W h_i),    p(x_i+1 | ...) by diffusion, D(x_t, t; h_i) = E[x_i+1 | x_t, h_i]
    loss = CE(word_i+1; h_i) + w (1/K) sum_k (alpha_k^2 d^2 + sigma_k^2) / (sigma_k d)^2 |D(x_t_k, t_k; h_i) - x_i+1|^2

with K times t_k a vector, each a draw of its own, and d its numbers' standard deviation; means over words and numbers.
A sequence is a Batch of SEQUENCE_FIELDS whose sites are its positions. A position is a word, or a slot: one 3-vector,
with the word it belongs to (the atom's element), which is known before it, so that h_i may be told by Q. Nothing here
knows of crystals or molecules: `unisci.autoregression.unigenx_crystals` writes crystals as such sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.batch import Batch, Field, Schema
from unisci.denoiser import Denoiser
from unisci.networks.diffusion_head import DiffusionHead, DiffusionHeadConfig
from unisci.networks.edges import fourier
from unisci.networks.sequence_transformer import SequenceTransformer, SequenceTransformerConfig
from unisci.processes.gaussian import Gaussian
from unisci.processes.product import Product
from unisci.processes.torus import Torus, TorusFlow
from unisci.rng import Rng
from unisci.solvers.program import Program, compile_solver
from unisci.solvers.sample import sample
from unisci.state import pad

SMALLEST = 1e-3  # of the training times

# slot: 0 = a word, k > 0 = a vector drawn by head k - 1. free: the numbers of a slot that are to be drawn; the others
# are known: a condition, or 0.
SEQUENCE_FIELDS: Schema = {
    "word": Field("site"),
    "value": Field("site", (3,)),
    "slot": Field("site"),
    "free": Field("site", (3,)),
}


@dataclass(frozen=True)
class SlotKind:
    """What a head draws: the noise of its vectors, and the standard deviation of their numbers. frequencies: of what is
    read of coordinates of period 1, see `DiffusionHeadConfig`; 0 for numbers on a line."""

    process: Gaussian
    scale: float = 1.0
    frequencies: int = 0

    @property
    def periodic(self) -> bool:
        """Whether its numbers are coordinates on a circle of length 1."""
        return isinstance(self.process, Torus | TorusFlow)


@dataclass(frozen=True)
class UniGenXConfig:
    """Sizes and training. draws: noised copies of each vector; weight: of the vectors' loss beside the words';
    smoothing: of the words' labels."""

    trunk: SequenceTransformerConfig = field(default_factory=SequenceTransformerConfig)
    head_width: int = 128
    head_depth: int = 3
    draws: int = 4
    weight: float = 10.0
    smoothing: float = 0.05


class UniGenX(nn.Module):
    """words: the size of the vocabulary; kinds: one head each."""

    def __init__(self, words: int, kinds: Sequence[SlotKind], config: UniGenXConfig):
        super().__init__()
        self.kinds, self.config, width = tuple(kinds), config, config.trunk.width
        self.word, self.next_word = nn.Embedding(words, width), nn.Embedding(words, width)
        for table in (self.word, self.next_word):
            nn.init.normal_(table.weight, std=0.5)
        self.trunk = SequenceTransformer(config.trunk)
        self.to_word = nn.Linear(width, words)
        self.read = nn.ModuleList(_embedder(kind, width) for kind in self.kinds)
        self.schema = {"value": Field("whole", (3,)), "context": Field("whole", (width,))}
        self.heads = nn.ModuleList(self._denoiser(kind) for kind in self.kinds)

    def _denoiser(self, kind: SlotKind) -> Denoiser:
        c = self.config
        head = DiffusionHead(DiffusionHeadConfig(c.trunk.width, 3, c.head_width, c.head_depth, kind.frequencies))
        return Denoiser(head, Product({"value": kind.process}, {"value": self.schema["value"]}), {"value": kind.scale})

    def embed(self, word: Tensor, value: Tensor, slot: Tensor) -> Tensor:
        """Inputs (B, T - 1, width) of all positions (B, T) but the last, which the one before it is told the word of
        where it is a slot."""
        h = self.word(word[:, :-1]) + self.next_word(word[:, 1:]) * (slot[:, 1:, None] > 0)
        for k, (kind, read) in enumerate(zip(self.kinds, self.read, strict=True), 1):
            x = value[:, :-1]
            x = fourier(x, kind.frequencies) if kind.frequencies else x
            h = h + read(x) * (slot[:, :-1, None] == k)
        return h

    def hidden(self, batch: Batch) -> Tensor:
        """States (B, S - 1, width): the one at i has read the positions up to i, and speaks of i + 1."""
        return self.trunk(self.embed(batch.state["word"], batch.state["value"], batch.given["slot"]))

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar: mean over words, and over the vectors' free numbers, of sequences of SEQUENCE_FIELDS."""
        h, word = self.hidden(batch), batch.state["word"][:, 1:]
        spoken = (batch.mask & (batch.given["slot"] == 0))[:, 1:]
        loss = F.cross_entropy(self.to_word(h[spoken]), word[spoken], label_smoothing=self.config.smoothing)
        return loss + self.config.weight * self._vectors_loss(h, batch, rng)

    def _vectors_loss(self, h: Tensor, batch: Batch, rng: Rng) -> Tensor:
        """As Denoiser.loss, each vector under times of its own; mean over free numbers and draws."""
        slot, free, wanted = (v[:, 1:] for v in (batch.given["slot"], batch.given["free"], _wanted(batch)))
        clean = batch.state["value"][:, 1:, None].expand(-1, -1, self.config.draws, -1)
        t = SMALLEST + (1 - SMALLEST) * rng.uniform("time", 0, tuple(clean.shape[:3]), 1)
        total = h.new_zeros(())
        for k, (kind, head) in enumerate(zip(self.kinds, self.heads, strict=True), 1):
            noisy = torch.where(free[:, :, None], kind.process.perturb(clean, t, rng, "value", 1), clean)
            here = wanted & (slot == k)
            x, x_t, time, counts = clean[here], noisy[here], t[here], free[here][:, None]
            predicted = head({"value": x_t}, {"value": time}, None, {"context": h[here][:, None]})["value"]
            x = kind.process.target(x, x_t, time) if kind.periodic else x
            alpha, sigma = (pad(v, x) for v in kind.process.level(time))
            weight = (alpha**2 * kind.scale**2 + sigma**2) / (sigma * kind.scale) ** 2
            total = total + (weight * (predicted - x) ** 2 * counts).sum()
        return total / ((free & wanted[..., None]).sum().clamp(min=1) * self.config.draws)

    @torch.no_grad()
    def draw(self, batch: Batch, rng: Rng, steps: int = 20, solver: str = "dpm++2m", cached: bool = True) -> Batch:
        """The batch with the free numbers of its slots drawn, one slot after another, `steps` calls of a head each.

        The words are all given. The transformer reads each position once; with cached = False it reads all of them
        again for each slot, to the same end. Raises ValueError where position 0 is a slot, which nothing speaks of.
        """
        order, first, plan = _plan(batch)
        part, value = batch[order], batch.state["value"][order]
        fields = (part.state["word"], value, part.given["slot"])
        programs = [compile_solver(k.process, torch.linspace(1, 0, steps + 1), solver) for k in self.kinds]
        cache, prefix = self.trunk.empty(*value.shape[:2]) if cached else None, int(first.max()) if plan else 0
        for j, (n, kinds) in enumerate(plan):
            rows, at = torch.arange(n, device=value.device), first[:n] + j
            if cache is None or j == 0:
                read = slice(prefix + 1 if cache is not None else None)
                h = self.trunk(self.embed(*(v[:, read] for v in fields)), cache=cache)[rows, at - 1]
            else:
                pair = torch.stack([at - 1, at], 1)
                x = self.embed(*(v[rows[:, None], pair] for v in fields))
                h = self.trunk(x, at[:, None] - 1, cache.first(n))[:, 0]
            for k in kinds:
                known, free = value[rows, at], part.given["free"][rows, at] & (fields[2][rows, at] == k)[:, None]
                value[rows, at] = self._vector(k - 1, h, known, free, rng[order[:n]].at(j), programs[k - 1])
        return batch.replace(value=value[order.argsort()])

    def _vector(self, k: int, h: Tensor, known: Tensor, free: Tensor, rng: Rng, program: Program) -> Tensor:
        """One vector (n, 3) a row from head k, given the states h (n, width); numbers that are not free stay."""
        kind, pin = self.kinds[k], lambda x, s: {"value": torch.where(free, x["value"], known)}
        mask = torch.ones(len(h), 1, dtype=torch.bool, device=h.device)
        batch = Batch(self.schema, {"value": known}, mask, {"context": h}, rng.ids)
        x = pin({"value": kind.process.prior(known, rng.at(0), "value")}, None)
        x = sample(self.heads[k].on(batch), x, program.times, program, rng.at(1), pin)["value"]
        return torch.where(free, x - x.floor(), known) if kind.periodic else x


def _wanted(batch: Batch) -> Tensor:
    """(B, S) bool: the slots with a number to draw."""
    return batch.mask & (batch.given["slot"] > 0) & batch.given["free"].any(-1)


def _plan(batch: Batch) -> tuple[Tensor, Tensor, list[tuple[int, list[int]]]]:
    """Rows by how far they go, the farthest first, (B,); the first position that each draws (B,); and for each step
    how many rows still draw, and which kinds of slots. Read from the device at once, before the loop."""
    wanted = _wanted(batch)
    if bool(wanted[:, 0].any()):
        raise ValueError("position 0 cannot be drawn, as nothing comes before it: begin with a word")
    where = torch.arange(wanted.shape[1], device=wanted.device)
    end = ((where + 1) * wanted).amax(1)
    first = torch.where(wanted, where, end[:, None]).amin(1)
    order = (end - first).argsort(descending=True, stable=True)
    first, left = first[order], (end - first)[order]
    steps = where[: int(left.max())] if len(left) else where[:0]
    slot = (batch.given["slot"] * wanted)[order]
    table = slot.gather(1, (first[:, None] + steps).clamp(max=len(where) - 1)).T.tolist()
    rows = (left > steps[:, None]).sum(1).tolist()
    return order, first, [(n, sorted(set(kinds[:n]) - {0})) for n, kinds in zip(rows, table, strict=True)]


def _embedder(kind: SlotKind, width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3 * (2 * kind.frequencies or 1), width), nn.GELU(), nn.Linear(width, width))
