"""One model of molecules in space: atoms, bonds and positions, a time for the graph and one for the positions.

    t = (t_graph, t_position):   (0, s) folds a given graph into a conformer, (s, 0) assigns atoms and bonds to given
    positions, (s, s) makes all at once; training draws all three, and random parts of the sites.

Atoms, hydrogens included, and bonds by absorbing diffusion, positions in angstrom by a Gaussian one about their mean,
which nothing tells. Any-to-any training by separate times as in UniDiffuser (arXiv 2303.06555), discrete and continuous
parts together as in MiDi (2302.09048). In blocks (see site_blocks) of any order, or of the graph's own structural order
(Pard, 2402.03687): its ranks are then told, and how many sites each has is drawn from a table of the training graphs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unisci.autoregression.site_blocks import Still, solve
from unisci.autoregression.structure_fields import RANK, Placing, Profiles, centred
from unisci.autoregression.structure_times import training_times
from unisci.batch import Batch
from unisci.denoiser import Denoiser
from unisci.order import Order
from unisci.rng import Rng
from unisci.solvers.program import Program, compile_solver, run
from unisci.solvers.sample import Solver, Together
from unisci.solvers.tokens import Ancestral
from unisci.state import State, pad

FOLDING = "sde-dpm++2m"  # the scheme that folds where no program was searched
POLISH, POLISHING = 0.06, 5  # where a polish starts, and its calls


class StructureModel(nn.Module):
    """denoiser: of "atom", "bond" and "position"; sizes (N + 1,): counts of molecules by number of sites; profiles: see
    Profiles; parts: of the draws that make all at once, the share that learns a part of the sites, half of them in the
    graph's own order; programs: searched for this model, each folds graphs in its number of calls."""

    def __init__(
        self,
        denoiser: Denoiser,
        sizes: Tensor,
        profiles: Profiles,
        parts: float = 0.3,
        programs: Sequence[Program] = (),
    ):
        super().__init__()
        self.denoiser, self.parts, self.programs = denoiser, parts, tuple(programs)
        self.register_buffer("sizes", sizes.float())
        self.register_buffer("profile_sizes", profiles.sizes.long())
        self.register_buffer("profile_counts", profiles.counts.float())

    @property
    def profiles(self) -> Profiles:
        return Profiles(self.profile_sizes, self.profile_counts)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar training loss of molecules, mean over samples."""
        t, ranks = training_times(batch, rng, self.parts)
        known = batch.mask & (t["position"] == 0)
        state = batch.state | {"position": centred(batch.state["position"], batch.mask, known)}
        batch = Batch(batch.schema | RANK, state, batch.mask, {"rank": ranks}, batch.ids)
        noisy = self.denoiser.product.to(batch.mask.device).perturb(batch.state, t, rng.at(0))
        free = ~known.any(1)[:, None, None]  # where nothing is known the noise has no mean
        moved = torch.where(free, centred(noisy["position"], batch.mask), noisy["position"])
        return self.denoiser.loss(batch, rng.at(0), t, noisy=noisy | {"position": moved})

    @torch.no_grad()
    def fold(
        self,
        batch: Batch,
        rng: Rng,
        steps: int = 20,
        solver: str | Program | None = None,
        power: float = 2.0,
        start: float = 1.0,
    ) -> Batch:
        """Conformers of the given graphs: the batch with "position" drawn by `steps` network calls.

        batch.state holds "atom" and "bond"; where start < 1 its "position", noised to that time, is what is solved
        from. solver: a scheme, on even times to the given power; a Program, which has its own times; or None, the
        model's own program of so many calls where there is one and start is 1, else the scheme FOLDING."""
        position = self.denoiser.product.processes["position"]
        like = batch.state.get("position", batch.mask.new_zeros((*batch.mask.shape, 3), dtype=torch.float32))
        if start < 1:
            moved = position.perturb(like, torch.tensor(start, device=like.device), rng.at(0), "position", 1)
        else:
            moved = position.prior(like, rng.at(0), "position", 1)
        if solver is None:
            solver = next((p for p in self.programs if p.nfe == steps and start == 1), FOLDING)
        if isinstance(solver, str):
            solver = compile_solver(
                position, start * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** power, solver
            )
        shaped, x = self._shaped(batch, {k: batch.state[k] for k in ("atom", "bond")})
        denoise = Placing(self.denoiser.on(shaped), x)
        out = run(denoise, {"position": centred(moved, batch.mask)}, solver, rng.at(1), check=False)
        return self._made(batch, x | out)

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
        shaped, x = self._shaped(batch, x)

        def about(x: dict[str, Tensor], known: Tensor) -> dict[str, Tensor]:
            """Known sites about their own mean; the noise of the others is about it already."""
            moved = centred(x["position"], batch.mask, known)
            return x | {"position": torch.where(known[..., None], moved, x["position"])}

        return self._made(batch, solve(self.denoiser.on(shaped), x, grid, solver, rng, order, first, settle=about))

    def _shaped(self, batch: Batch, x: dict[str, Tensor]) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with the state x and the model's fields, and x, 0 where there is no site or pair."""
        shaped = Batch(self.denoiser.product.schema | RANK, x, batch.mask, batch.given, batch.ids)
        return shaped, x | {k: torch.where(shaped.exists(k), x[k], 0) for k in ("atom", "bond")}

    def _made(self, batch: Batch, out: dict[str, Tensor]) -> Batch:
        """The batch with what was drawn, about its mean."""
        out = batch.state | out | {"position": centred(out["position"], batch.mask)}
        return Batch(batch.schema | self.denoiser.product.schema | RANK, out, batch.mask, batch.given, batch.ids)
