"""One model of molecules in space: atoms, bonds and positions, a time for the graph and one for the positions.

    t = (t_graph, t_position):   (0, s) folds a given graph into a conformer, (s, 0) assigns atoms and bonds to given
    positions, (s, s) makes all at once; training draws all three, and random parts of the sites.

Atoms, hydrogens included, and bonds by absorbing diffusion, positions in angstrom by a Gaussian one about their mean,
which nothing tells. Any-to-any training by separate times as in UniDiffuser (arXiv 2303.06555), discrete and continuous
parts together as in MiDi (2302.09048). In blocks (see site_blocks) of any order, or of the graph's own structural order
(Pard, 2402.03687): its ranks are then told, and how many sites each has is drawn from a table of the training graphs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unisci.autoregression.site_blocks import Still, part_times, parts, solve
from unisci.batch import Batch, Field, Schema
from unisci.denoiser import Denoiser
from unisci.order import Order, structural_order
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import Cosine
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import Solver, Together
from unisci.solvers.tokens import Ancestral
from unisci.state import State, pad

FOLD, ASSIGN = 0.75, 0.04  # of the training draws; the others make all at once, a share of them in parts
NEAR = 1.6  # power of the training times of positions, 1 = even ones: bond lengths settle at the end
POLISH, POLISHING = 0.06, 5  # where a polish starts, and its calls
PROFILES = 2048  # of the block sizes of training graphs, the most frequent ones, that are kept
RANK: Schema = {"rank": Field("site")}


def structure_product(schema: Schema) -> Product:
    """The processes of "atom", "bond" and "position"."""
    fields = {k: schema[k] for k in ("atom", "bond", "position")}
    atom, bond = (absorbing(len(fields[k].classes)) for k in ("atom", "bond"))
    return Product({"atom": atom, "bond": bond, "position": Cosine()}, fields)


def centred(position: Tensor, mask: Tensor, known: Tensor | None = None) -> Tensor:
    """Positions (B, N, 3) less their mean over the known sites (B, N), over all where none is; 0 at padding."""
    about = mask if known is None else torch.where(known.any(1, keepdim=True), known, mask)
    mean = (position * about[..., None]).sum(1, keepdim=True) / about.sum(1).clamp(min=1)[:, None, None]
    return torch.where(mask[..., None], position - mean, 0.0)


class Profiles(NamedTuple):
    """sizes (P, R): sites of each rank of structural orders; counts (P,): of the training graphs that have them."""

    sizes: Tensor
    counts: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Profiles":
        """Those of a batch of graphs."""
        rank = structural_order(batch.state["bond"] > 0, batch.mask)[0].rank
        sizes = torch.stack([(rank == k).sum(1) for k in range(int(rank.max()) + 1)], 1)
        sizes, counts = sizes.unique(dim=0, return_counts=True)
        most = counts.argsort(descending=True, stable=True)[:PROFILES]
        return cls(sizes[most], counts[most].float())

    def order(self, rng: Rng) -> Order:
        """One for each of rng.ids: sites by rank."""
        drawn = rng.categorical("profile", 0, self.counts.expand(len(rng.ids), -1), 0)
        ends = self.sizes[drawn].cumsum(1)
        site = torch.arange(int(ends.max()), device=ends.device)
        rank = (site >= ends[:, :, None]).sum(1)
        return Order(torch.where(site < ends[:, -1:], rank, -1))


class StructureModel(nn.Module):
    """denoiser: of "atom", "bond" and "position"; sizes (N + 1,): counts of molecules by number of sites; profiles: see
    Profiles; parts: of the draws that make all at once, the share that learns a part of the sites, half of them in the
    graph's own order."""

    def __init__(self, denoiser: Denoiser, sizes: Tensor, profiles: Profiles, parts: float = 0.3):
        super().__init__()
        self.denoiser, self.parts = denoiser, parts
        self.register_buffer("sizes", sizes.float())
        self.register_buffer("profile_sizes", profiles.sizes.long())
        self.register_buffer("profile_counts", profiles.counts.float())

    @property
    def profiles(self) -> Profiles:
        return Profiles(self.profile_sizes, self.profile_counts)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar training loss of molecules, mean over samples."""
        t, ranks = self.times(batch, rng)
        known = batch.mask & (t["position"] == 0)
        state = batch.state | {"position": centred(batch.state["position"], batch.mask, known)}
        batch = Batch(batch.schema | RANK, state, batch.mask, {"rank": ranks}, batch.ids)
        noisy = self.denoiser.product.to(batch.mask.device).perturb(batch.state, t, rng.at(0))
        free = ~known.any(1)[:, None, None]  # where nothing is known the noise has no mean
        moved = torch.where(free, centred(noisy["position"], batch.mask), noisy["position"])
        return self.denoiser.loss(batch, rng.at(0), t, noisy=noisy | {"position": moved})

    def times(self, batch: Batch, rng: Rng) -> tuple[dict[str, Tensor], Tensor]:
        """Training times by field, one for each site or pair, and the ranks (B, N) that are told, -1 where none is."""
        b, mask = len(batch), batch.mask
        task, part = (rng.uniform(name, 0, (b,), 0) for name in ("task", "parts"))
        u = 1e-3 + (1 - 1e-3) * rng.uniform("time", 0, (b,), 0)
        fold, assign = task < FOLD, (task >= FOLD) & (task < FOLD + ASSIGN)
        graph, position = torch.where(fold, 0.0, u), torch.where(assign, 0.0, torch.where(fold, u**NEAR, u))
        t = {"atom": graph, "bond": graph, "position": position}
        partly, structural = ~fold & ~assign & (part < self.parts), part < self.parts / 2
        known, moving = parts(mask, rng)
        rank = structural_order(batch.state["bond"] > 0, mask)[0].rank if self.parts else torch.where(mask, 0, -1)
        block = (rng.uniform("block", 0, (b,), 0) * (rank.amax(1) + 1)).long()[:, None]
        known = torch.where(structural[:, None], (rank >= 0) & (rank < block), known) & partly[:, None]
        moving = torch.where(structural[:, None], rank == block, moving)
        moving = torch.where(partly[:, None], moving, mask)
        first = {k: torch.where(v > 0, 1.0, 0.0) for k, v in t.items()}
        fields = {k: batch.schema[k] for k in t}
        told = (partly & structural)[:, None]
        return part_times(fields, known, moving, t, first), torch.where(told, rank, -1)

    @torch.no_grad()
    def fold(
        self, batch: Batch, rng: Rng, steps: int = 20, solver: str = "ancestral", power: float = 2.0, start: float = 1.0
    ) -> Batch:
        """Conformers of the given graphs: the batch with "position" drawn by `steps` network calls.

        batch.state holds "atom" and "bond"; where start < 1 its "position", noised to that time, is what is solved
        from. power: of the even times."""
        product = self.denoiser.product.to(batch.mask.device)
        like = batch.state.get("position", batch.mask.new_zeros((*batch.mask.shape, 3), dtype=torch.float32))
        x, position = {k: batch.state[k] for k in ("atom", "bond")}, product.processes["position"]
        if start < 1:
            moved = position.perturb(like, torch.tensor(start, device=like.device), rng.at(0), "position", 1)
        else:
            moved = position.prior(like, rng.at(0), "position", 1)
        times = start * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power
        grid = [{"atom": 0.0 * t, "bond": 0.0 * t, "position": t} for t in times]
        together = Together(atom=Still(), bond=Still(), position=compile_solver(position, times, solver))
        return self._solved(batch, x | {"position": centred(moved, batch.mask)}, grid, together, rng, None)

    @torch.no_grad()
    def assign(self, batch: Batch, rng: Rng, steps: int = 20, power: float = 2.0) -> Batch:
        """Atoms and bonds for given positions: the batch with "atom" and "bond" drawn by `steps` network calls."""
        product, (b, n) = self.denoiser.product.to(batch.mask.device), batch.mask.shape
        like = {"atom": batch.mask.new_zeros(b, n, dtype=torch.long)}
        like["bond"] = like["atom"].new_zeros(b, n, n)
        x = {k: product.processes[k].prior(v, rng.at(0), k, product.schema[k].axes) for k, v in like.items()}
        x["position"] = centred(batch.state["position"], batch.mask)
        grid = [{"atom": t, "bond": t, "position": 0.0 * t} for t in torch.linspace(1, 0, steps + 1) ** power]
        together = Together(atom=Ancestral(), bond=Ancestral(), position=Still())
        return self._solved(batch, x, grid, together, rng, None)

    @torch.no_grad()
    def generate(
        self,
        rng: Rng,
        steps: int = 50,
        solver: str = "dpm++2m",
        power: float = 1.5,
        sites: Tensor | None = None,
        order: Order | None = None,
        told: bool = False,
        polish: bool = True,
    ) -> Batch:
        """New molecules, one for each of rng.ids: the number of sites by the data's histogram, given (B,) or those of
        the order, then all fields together, `steps` network calls a block of the order, all at once where there is
        none. told: whether the order is the molecules' own structural one, such as profiles.order draws. polish: a last
        stretch of POLISHING calls for all positions, the graph held."""
        device, b = self.sizes.device, len(rng.ids)
        if order is not None:
            sites = (order.rank >= 0).sum(1)
        elif sites is None:
            sites = rng.categorical("sites", 0, self.sizes.expand(b, -1), 0)
        n = int(sites.max())
        mask = torch.arange(n, device=device) < sites[:, None]
        product = self.denoiser.product.to(device)
        like = {"atom": torch.zeros(b, n, dtype=torch.long, device=device)}
        like |= {"bond": torch.zeros(b, n, n, dtype=torch.long, device=device)}
        like |= {"position": torch.zeros(b, n, 3, device=device)}
        x = product.prior(like, rng.at(0))
        if order is None:  # in blocks the noise of later sites is about those that are then known
            x["position"] = centred(x["position"], mask)
        given = {"rank": order.rank} if told and order is not None else {}
        batch = Batch(product.schema | RANK, like, mask, given, rng.ids)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power
        together = Together(
            atom=Ancestral(), bond=Ancestral(), position=compile_solver(product.processes["position"], times, solver)
        )
        made = self._solved(batch, x, [dict.fromkeys(like, t) for t in times], together, rng, order)
        if not polish:
            return made
        plain = Batch(made.schema, made.state, made.mask, {}, made.ids)  # folding is learnt without ranks
        return self.fold(plain, rng.at(0), POLISHING, solver, 1.0, POLISH)

    @torch.no_grad()
    def grow(
        self,
        batch: Batch,
        known: Tensor,
        rng: Rng,
        steps: int = 50,
        solver: str = "dpm++2m",
        power: float = 1.5,
        polish: bool = True,
    ) -> Batch:
        """The batch with all but its sites `known` (B, N) bool, at least one of each sample, and their pairs drawn at
        once; known ones stay as they are, and where they are to each other. The other arguments: see `generate`."""
        product = self.denoiser.product.to(batch.mask.device)
        order = Order(torch.where(batch.mask, (~known).long(), -1))
        held = {k: batch.state[k] for k in ("atom", "bond", "position")}
        held["position"] = centred(held["position"], batch.mask, known)
        fixed = {"atom": known, "bond": known[:, :, None] & known[:, None], "position": known}
        keep = lambda x: {k: torch.where(pad(fixed[k], v), held[k], v) for k, v in x.items()}
        position, times = product.processes["position"], torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power
        together = Together(atom=Ancestral(), bond=Ancestral(), position=compile_solver(position, times, solver))
        grid = [dict.fromkeys(held, t) for t in times]
        made = self._solved(batch, keep(product.prior(held, rng.at(0))), grid, together, rng, order, 1)
        if not polish:
            return made
        x = {k: made.state[k] for k in held} | {"position": centred(made.state["position"], batch.mask, known)}
        moved = position.perturb(x["position"], torch.tensor(POLISH, device=known.device), rng.at(0), "position", 1)
        times = torch.linspace(POLISH, 0, POLISHING + 1, dtype=torch.float64)
        grid = [{"atom": 0.0 * t, "bond": 0.0 * t, "position": t} for t in times]
        together = Together(atom=Still(), bond=Still(), position=compile_solver(position, times, solver))
        return self._solved(batch, keep(x | {"position": moved}), grid, together, rng.at(0), order, 1)

    def _solved(
        self,
        batch: Batch,
        x: dict[str, Tensor],
        grid: Sequence[State],
        solver: Solver,
        rng: Rng,
        order: Order | None,
        first: int = 0,
    ) -> Batch:
        """The batch with what is drawn from x; nothing where there is no site or pair. first: see `solve`."""
        shaped = Batch(self.denoiser.product.schema | RANK, x, batch.mask, batch.given, batch.ids)
        exists = {k: shaped.exists(k) for k in ("atom", "bond")}
        x = x | {k: torch.where(there, x[k], 0) for k, there in exists.items()}

        def about(x: dict[str, Tensor], known: Tensor) -> dict[str, Tensor]:
            """Known sites about their own mean; the noise of the others is about it already."""
            moved = centred(x["position"], batch.mask, known)
            return x | {"position": torch.where(known[..., None], moved, x["position"])}

        out = solve(self.denoiser.on(shaped), x, grid, solver, rng, order, first, settle=about)
        out = batch.state | out | {"position": centred(out["position"], batch.mask)}
        return Batch(batch.schema | shaped.schema, out, batch.mask, batch.given, batch.ids)
