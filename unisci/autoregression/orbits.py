"""Crystals orbit by orbit: formula, space group, Wyckoff positions one after another, then all free numbers at once.

    p(crystal) = p(formula) p(group | formula) prod_k p(position_k | group, positions < k) p(u, cell | positions)

The words are drawn one by one, each only among those that can still be completed; the last factor is a diffusion over
the free coordinates (a flow on the torus) and the cell. Sites of an orbit are equivalent by construction, so a crystal
is its own order of blocks and comes out as symmetric as its words say (CrystalFormer, arXiv 2403.15734; WyckoffDiff,
2502.06485). Nothing is copied: the model knows no crystal, only positions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.autoregression.orbit_rules import OrbitRules
from unisci.batch import Batch
from unisci.denoiser import Denoiser
from unisci.domains.orbit_batches import MAX_SPECIES, ORBIT_FIELDS, WyckoffTable
from unisci.networks.orbit_transformer import MOST, OrbitGeometry, OrbitTransformerConfig, OrbitWords, facts_of
from unisci.processes.gaussian import Cosine
from unisci.processes.product import Product
from unisci.processes.torus import UNIFORM_DEVIATION, TorusFlow
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import Together, sample

GEOMETRY = ("free", "cell")


class Words(NamedTuple):
    """B draws: group (B,), element and wyckoff (B, M), mask (B, M), log_probability (B,), -inf where unfinished."""

    group: Tensor
    element: Tensor
    wyckoff: Tensor
    mask: Tensor
    log_probability: Tensor

    @classmethod
    def none(cls, b: int, device: torch.device) -> "Words":
        """Before the first word."""
        empty = torch.zeros(b, 0, dtype=torch.long, device=device)
        return cls(torch.ones_like(empty.sum(1)), empty, empty, empty.bool(), torch.zeros(b, device=device))

    def __getitem__(self, rows: Tensor) -> "Words":  # of the draws, as of a Batch
        return Words(
            self.group[rows], self.element[rows], self.wyckoff[rows], self.mask[rows], self.log_probability[rows]
        )


class OrbitModel(nn.Module):
    """table: the positions it knows; features (101, F): facts of the elements; volumes (101,): cubic angstrom."""

    def __init__(self, config: OrbitTransformerConfig, table: WyckoffTable, features: Tensor, volumes: Tensor):
        super().__init__()
        self.rules = OrbitRules(table)
        affine = [p.affine for p in table.positions]
        form = torch.tensor([[[*row, shift] for row, shift in zip(a, b, strict=True)] for a, b in affine])
        facts = facts_of(self.rules.multiplicity.double(), form)
        self.words = OrbitWords(config, features, facts)
        product = Product({"free": TorusFlow(origin=True), "cell": Cosine()}, {k: ORBIT_FIELDS[k] for k in GEOMETRY})
        geometry = OrbitGeometry(config, features, facts, form, volumes)
        self.denoiser = Denoiser(geometry, product, {"free": UNIFORM_DEVIATION})

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar: minus the log probability of the words plus the denoising loss of the geometry, mean over samples."""
        with torch.random.fork_rng([batch.mask.device] if batch.mask.is_cuda else []):
            torch.manual_seed(
                rng.key
            )  # what is hidden and dropped belongs to the step, so that a resumed run repeats it
            return sum(self.surprise(batch)).mean() + self.geometry_loss(batch, rng)

    def surprise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Minus the log probability of the formula (B,), and of group and positions given it (B,)."""
        s = dict(batch.state)
        longest = int((s["species"] > 0).sum(1).max())
        species, counts = s["species"][:, :longest], s["counts"][:, :longest]
        left = self.rules.left(s["element"], s["wyckoff"], species, counts, batch.mask)
        before = self.rules.before(s["wyckoff"])
        element, count, group, wyckoff = self.words(species, counts, s["group"], s["element"], left, before, batch.mask)
        group = group.masked_fill(~self.rules.possible(counts), -1e9)
        wyckoff = wyckoff.masked_fill(~self.rules.allowed(s["group"], s["element"], left, before), -1e9)
        given = _cross_entropy(group, s["group"]) + (_cross_entropy(wyckoff, s["wyckoff"]) * batch.mask).sum(1)
        return _of_formula(element, count, species, counts), given

    @torch.no_grad()
    def formula_surprise(self, species: Tensor, counts: Tensor) -> Tensor:
        """Minus the log probability (B,) of formulas (B, S)."""
        element, count, _, _ = self._logits(species, counts, Words.none(len(species), species.device))
        return _of_formula(element, count, species, counts)

    def geometry_loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar denoising loss of free numbers and cell, mean over samples."""
        product = self.denoiser.product.to(batch.mask.device)
        state = {k: batch.state[k] for k in GEOMETRY}
        given = {k: v for k, v in batch.state.items() if k not in GEOMETRY}
        t = product.times(rng)
        noisy = self._held(product.perturb(state, t, rng), batch.state["wyckoff"])
        return self.denoiser.loss(Batch(ORBIT_FIELDS, state, batch.mask, given, batch.ids), rng, t, noisy=noisy)

    def _held(self, state: dict[str, Tensor], wyckoff: Tensor) -> dict[str, Tensor]:
        """The state with 0 for what is not free."""
        return state | {"free": torch.where(self.rules.free[wyckoff], state["free"], 0.0)}

    @torch.no_grad()
    def draw_words(
        self, species: Tensor, counts: Tensor, rng: Rng, temperature: float = 1.0, groups: Tensor | None = None
    ) -> Words:
        """Groups and positions of formulas (B, S): one draw for each of rng.ids. groups (231,) bool: those to choose
        from."""
        b, device, total = len(species), species.device, counts.sum(1)
        possible = self.rules.possible(counts)
        possible = possible if groups is None else possible & groups
        logits = self._logits(species, counts, Words.none(b, device))[2].masked_fill(~possible, -torch.inf)
        group = rng.categorical("group", 0, (logits / temperature).softmax(-1), 0)
        log_p, most = _chosen(logits, group), int(total.max())
        element, wyckoff = torch.zeros(2, b, most, dtype=torch.long, device=device).unbind(0)
        mask = torch.zeros(b, most, dtype=torch.bool, device=device)
        for k in range(most):
            placed = self.rules.held(wyckoff, mask).sum(1)
            rows = ((placed < total) & (log_p > -torch.inf)).nonzero()[:, 0]
            if not len(rows):  # only those that still grow cost anything
                break
            begun = Words(group[rows], element[rows, :k], wyckoff[rows, :k], mask[rows, :k], log_p[rows])
            z, chosen, gained = self._next(
                species[rows], counts[rows], begun, placed[rows], rng[rows].at(k), temperature
            )
            element[rows, k], wyckoff[rows, k], mask[rows, k] = z, chosen, gained > -torch.inf
            log_p[rows] += gained
        longest = max(1, int(mask.sum(1).max()))
        log_p = torch.where(self.rules.held(wyckoff, mask).sum(1) == total, log_p, -torch.inf)
        return Words(group, element[:, :longest], wyckoff[:, :longest], mask[:, :longest], log_p)

    def _next(
        self, species: Tensor, counts: Tensor, begun: Words, placed: Tensor, rng: Rng, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Element, position and log probability (B,) of one more orbit; -inf where no position is allowed. The element
        is the first whose sites are not all placed."""
        which = (counts.cumsum(1) <= placed[:, None]).sum(1, keepdim=True)
        add = lambda x, last: torch.cat([x, last.to(x.dtype)], 1)
        element = add(begun.element, species.gather(1, which))
        asked = begun._replace(
            element=element, wyckoff=add(begun.wyckoff, 0 * which), mask=add(begun.mask, torch.ones_like(which))
        )
        left, before = self._context(species, counts, asked)
        allowed = self.rules.allowed(asked.group, element, left, before)[:, -1]
        stuck = ~allowed.any(1)
        logits = self._logits(species, counts, asked)[3][:, -1].masked_fill(~allowed & ~stuck[:, None], -torch.inf)
        chosen = rng.categorical("wyckoff", 0, (logits / temperature).softmax(-1), 0)
        gained = torch.where(stuck, -torch.inf, _chosen(logits, chosen))
        return element[:, -1], torch.where(stuck, 0, chosen), gained

    @torch.no_grad()
    def draw_geometry(
        self, words: Words, species: Tensor, counts: Tensor, rng: Rng, steps: int = 10, solver: str = "dpm++2m"
    ) -> Batch:
        """The crystals of words: a batch of ORBIT_FIELDS, `steps` network calls."""
        given = {"element": words.element, "wyckoff": words.wyckoff, "group": words.group}
        given |= {k: F.pad(v, (0, MAX_SPECIES - v.shape[1])) for k, v in (("species", species), ("counts", counts))}
        b, m = words.element.shape
        like = {"free": torch.zeros(b, m, 3, device=species.device), "cell": torch.zeros(b, 6, device=species.device)}
        batch = Batch(ORBIT_FIELDS, like, words.mask, given, rng.ids)
        product = self.denoiser.product.to(species.device)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        together = Together(**{k: compile_solver(p, times, solver) for k, p in product.processes.items()})
        x = self._held(product.prior(like, rng.at(0)), words.wyckoff)
        out = sample(self.denoiser.on(batch), x, list(times), together, rng.at(1))
        u = out["free"] - out["free"].floor()  # 1 where a little below a whole number
        state = given | {"free": torch.where(u < 1, u, 0.0), "cell": out["cell"]}
        return Batch(ORBIT_FIELDS, state, words.mask, {}, rng.ids)

    @torch.no_grad()
    def draw_formulas(
        self, rng: Rng, most: int = 20, temperature: float = 1.0, elements: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """New formulas: species and counts (B, MAX_SPECIES), of at most `most` sites; one for each of rng.ids. elements
        (101,) bool: those to choose from."""
        b, device = len(rng.ids), self.rules.multiplicity.device
        species, counts = torch.zeros(2, b, MAX_SPECIES, dtype=torch.long, device=device).unbind(0)
        none, growing = Words.none(b, device), torch.ones(b, dtype=torch.bool, device=device)
        z, n = torch.arange(101, device=device), torch.arange(MOST + 1, device=device)
        for s in range(MAX_SPECIES):
            left = most - counts.sum(1, keepdim=True)
            last = species[:, s - 1 : s] if s else torch.zeros_like(left)
            fits = torch.where(growing[:, None], (z > last) & (left > 0), z == 0)
            fits = fits if elements is None else fits & (elements | (z == 0))
            fits |= (z == 0) & (s > 0)
            logits = self._logits(species, counts, none)[0][:, s].masked_fill(~fits, -torch.inf)
            chosen = rng.at(s).categorical("element", 0, (logits / temperature).softmax(-1), 0)
            growing = growing & (chosen > 0)
            species = species.index_copy(1, torch.tensor([s], device=device), chosen[:, None])
            fits = torch.where(growing[:, None], (n > 0) & (n <= left), n == 0)
            logits = self._logits(species, counts, none)[1][:, s].masked_fill(~fits, -torch.inf)
            drawn = rng.at(s).categorical("count", 0, (logits / temperature).softmax(-1), 0)
            counts = counts.index_copy(1, torch.tensor([s], device=device), drawn[:, None])
        return species, counts

    def _logits(self, species: Tensor, counts: Tensor, words: Words) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        left, before = self._context(species, counts, words)
        return self.words(species, counts, words.group, words.element, left, before, words.mask)

    def _context(self, species: Tensor, counts: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        left = self.rules.left(words.element, words.wyckoff, species, counts, words.mask)
        return left, self.rules.before(words.wyckoff)


def _of_formula(element: Tensor, count: Tensor, species: Tensor, counts: Tensor) -> Tensor:
    """Minus the log probability (B,) of a formula, its end counted, under the logits of the words before each."""
    there = species > 0
    kinds = (_cross_entropy(element, F.pad(species, (0, 1))) * F.pad(there, (1, 0), value=True)).sum(1)
    return kinds + (_cross_entropy(count, counts) * there).sum(1)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits.movedim(-1, 1), target, reduction="none")


def _chosen(logits: Tensor, index: Tensor) -> Tensor:
    """The log probability (B,) of the class `index` (B,) under logits (B, K)."""
    return logits.log_softmax(-1).gather(1, index[:, None])[:, 0]
