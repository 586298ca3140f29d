"""One model of crystals for structure prediction, type assignment and new crystals: a time for each field.

    t = (t_atom, t_position, t_cell):   (0, s, s) predicts a structure of given atoms, (s, 0, 0) assigns atoms to given
    sites, (s, 1, 1) composes, (s, s, s) makes all at once; training draws all of them, and all three times apart.

Types by absorbing diffusion, positions by a flow on the torus with aligned noise (`unisci.processes.torus`), the cell
by six Gaussian numbers (see `unisci.lattice`). Any-to-any training by separate times as in UniDiffuser (arXiv
2303.06555). A network may read a template, the known crystal that retrieval found (`unisci.domains.templates`); it
then learns the last stretch alone, times up to FROM_TEMPLATE, from which `predict` refines the noised template. There
positions keep their places (noise of a few tenths of an angstrom) and the cell is drawn nearly anew. See site_blocks
for sites in blocks of any order, which a model may learn too.
"""

import torch
from torch import Tensor, nn

from unisci.autoregression.crystal_blocks import of_parts
from unisci.autoregression.site_blocks import Still, solve
from unisci.batch import Batch, Field, Schema
from unisci.denoiser import Denoiser
from unisci.order import Order
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import Cosine
from unisci.processes.product import Product
from unisci.processes.torus import TorusFlow, aligned, exchanged
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import Together, sample
from unisci.solvers.tokens import Ancestral

FROM_TEMPLATE = {"position": 0.1, "cell": 0.3}
PREDICT, ASSIGN, COMPOSE = 0.7, 0.04, 0.16  # of the training draws; half of the rest has three times, the others one

TEMPLATE_FIELDS: Schema = {
    "template_position": Field("site", (3,)),
    "template_cell": Field("whole", (6,)),
    "template_distance": Field("whole"),
}


def crystal_product(schema: Schema, classes: int) -> Product:
    """The processes of "atom", "position" and "cell"."""
    fields = {k: schema[k] for k in ("atom", "position", "cell")}
    return Product({"atom": absorbing(classes), "position": TorusFlow(), "cell": Cosine()}, fields)


def templates(batch: Batch, choice: Tensor) -> dict[str, Tensor]:
    """One template a sample of a batch that holds K: given fields of TEMPLATE_FIELDS. choice (B,) in [0, K); -1: none.

    The batch's fields are as TEMPLATE_FIELDS with an axis K before each one's shape; a negative distance: no template.
    """
    rows, k = torch.arange(len(batch), device=choice.device), choice.clamp(min=0)
    position, cell, distance = (batch.given[name] for name in TEMPLATE_FIELDS)
    return {
        "template_position": position[rows, :, k],
        "template_cell": cell[rows, k],
        "template_distance": torch.where(choice < 0, -1.0, distance[rows, k]),
    }


def _mirrored(batch: Batch, rng: Rng) -> Batch:
    """Half of the crystals inverted, x -> -x, which is as good a crystal of the same cell."""
    flip = (rng.uniform("mirror", 0, (len(batch),), 0) < 0.5)[:, None, None]
    state, given = dict(batch.state), dict(batch.given)
    for fields, name in ((state, "position"), (given, "template_position")):
        if name in fields:
            fields[name] = torch.where(flip, -fields[name], fields[name])
    return Batch(batch.schema, state, batch.mask, given, batch.ids)


class CrystalModel(nn.Module):
    """denoiser: of "atom", "position" and "cell"; sizes (N + 1,): counts of crystals by number of sites; without: share
    of examples that see no template; parts: of these, the share that learns a part of the sites, for orders of blocks.
    """

    def __init__(self, denoiser: Denoiser, sizes: Tensor, without: float = 0.7, parts: float = 0.0):
        super().__init__()
        self.denoiser, self.without, self.parts = denoiser, without, parts
        self.register_buffer("sizes", sizes.float())

    def times(self, rng: Rng, told: Tensor | None = None) -> dict[str, Tensor]:
        """Training times (B,) by field; told (B,) bool: who has a template, which is read for prediction alone."""
        b = len(rng.ids)
        task = rng.uniform("task", 0, (b,), 0)
        shared, atom, position = (1e-3 + (1 - 1e-3) * rng.uniform(f"time {k}", 0, (b,), 0) for k in "abc")
        zero, one = torch.zeros_like(shared), torch.ones_like(shared)
        edges = torch.tensor([PREDICT, PREDICT + ASSIGN, PREDICT + ASSIGN + COMPOSE], device=task.device)
        which = torch.bucketize(task, edges, right=True)
        predict, assign, compose = which == 0, which == 1, which == 2
        apart = task > (1 + PREDICT + ASSIGN + COMPOSE) / 2
        if told is not None:
            predict, assign, compose, apart = predict | told, assign & ~told, compose & ~told, apart & ~told
        t = {
            "atom": torch.where(predict, zero, torch.where(apart, atom, shared)),
            "position": torch.where(assign, zero, torch.where(apart, position, torch.where(compose, one, shared))),
            "cell": torch.where(assign, zero, torch.where(compose, one, shared)),
        }
        return t if told is None else t | {k: torch.where(told, v * t[k], t[k]) for k, v in FROM_TEMPLATE.items()}

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar training loss of crystals, mean over samples; a template is drawn among the K that the batch gives."""
        given = {}
        if "template_position" in batch.given:
            k = batch.given["template_cell"].shape[1]
            u = rng.uniform("template", 0, (len(batch), 2), 0)
            choice = torch.where(u[:, 0] < self.without, -1, (u[:, 1] * k).long())
            given = templates(batch, choice)
        schema = {k: batch.schema[k] for k in batch.state} | TEMPLATE_FIELDS
        batch = _mirrored(Batch(schema, batch.state, batch.mask, given, batch.ids), rng)
        told = batch.given["template_distance"] >= 0 if given else None
        t, told = self.times(rng, told), torch.zeros_like(batch.mask[:, 0]) if told is None else told
        partly = torch.zeros_like(told)
        if self.parts:
            t, partly = of_parts(batch.mask, t, self.parts, told, rng)
        return self.denoiser.loss(batch, rng.at(0), t, noisy=self._noised(batch, t, told, partly, rng.at(0)))

    def _noised(self, batch: Batch, t: dict[str, Tensor], told: Tensor, partly: Tensor, rng: Rng) -> dict[str, Tensor]:
        """x_t, positions on the way to aligned noise where no template says where they are, told (B,) being False."""
        product = self.denoiser.product.to(batch.mask.device)
        flow, clean = product.processes["position"], batch.state["position"]
        noisy = product.perturb(batch.state, t, rng)
        noise = flow.prior(clean, rng, "position", batch.schema["position"].axes)
        near, time = aligned(noise, clean, noisy["atom"], batch.mask), t["position"]
        if self.parts:  # a time for each site
            kind = 2 * noisy["atom"] + (time == 1)
            near = torch.where(partly[:, None, None], exchanged(noise, clean, kind, batch.mask & (time > 0)), near)
        x = flow.between(clean, near, time)
        return noisy | {"position": torch.where(told[:, None, None], noisy["position"], x)}

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        rng: Rng,
        steps: int = 20,
        solver: str = "dpm++2m",
        start: dict[str, float] | None = None,
        times: Tensor | None = None,
        order: Order | None = None,
    ) -> Batch:
        """Structures of the given atoms: the batch with "position" and "cell" drawn, `steps` network calls a block.

        batch.state holds "atom"; its "position" and "cell" are read only where a start is given, a time for each, and
        are then what is noised to it and solved from. times (steps + 1,): shares of the start, from 1 to 0, even ones
        where not given. batch.given may hold one template a sample. order: blocks of sites, all at once where not
        given. Positions end in [0, 1). Raises ValueError for a start and an order at once.
        """
        if start is not None and order is not None:
            raise ValueError("an order draws from noise alone: give it or a start, not both")
        product = self.denoiser.product.to(batch.mask.device)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64) if times is None else times
        if start is None:
            x = product.prior(batch.state, rng.at(0)) | {"atom": batch.state["atom"]}
        else:
            first = {k: torch.tensor(start.get(k, 0.0), device=batch.mask.device) for k in product.processes}
            x = product.perturb(batch.state, first, rng.at(0))
        grids = {k: times * (start[k] if start else 1.0) for k in ("position", "cell")}
        programs = {k: compile_solver(product.processes[k], t, solver) for k, t in grids.items()}
        grid = [{"atom": 0.0 * p, "position": p, "cell": c} for p, c in zip(*grids.values(), strict=True)]
        out = solve(self.denoiser.on(batch), x, grid, Together(atom=Still(), **programs), rng, order)
        return batch.replace(position=out["position"] - out["position"].floor(), cell=out["cell"])

    @torch.no_grad()
    def assign(self, batch: Batch, rng: Rng, steps: int = 20) -> Batch:
        """Atoms for the given sites and cell: the batch with "atom" drawn, `steps` network calls."""
        product = self.denoiser.product.to(batch.mask.device)
        x = batch.state | {"atom": product.prior(batch.state, rng.at(0))["atom"]}
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        grid = [{"atom": t, "position": 0.0 * t, "cell": 0.0 * t} for t in times]
        given = Together(atom=Ancestral(), position=Still(), cell=Still())
        return batch.replace(atom=sample(self.denoiser.on(batch), x, grid, given, rng.at(1))["atom"])

    @torch.no_grad()
    def generate(
        self,
        rng: Rng,
        steps: int = 50,
        solver: str = "dpm++2m",
        sites: Tensor | None = None,
        order: Order | None = None,
    ) -> Batch:
        """New crystals, one for each of rng.ids: number of sites by the data's histogram, given (B,) or those of the
        order, then all fields together, block by block of the order where there is one."""
        device, b = self.sizes.device, len(rng.ids)
        if sites is None:
            drawn = rng.categorical("sites", 0, self.sizes.expand(b, -1), 0)
            sites = drawn if order is None else (order.rank >= 0).sum(1)
        n = int(sites.max())
        mask = torch.arange(n, device=device) < sites[:, None]
        product = self.denoiser.product.to(device)
        like = {"atom": torch.zeros(b, n, dtype=torch.long, device=device)}
        like |= {"position": torch.zeros(b, n, 3, device=device), "cell": torch.zeros(b, 6, device=device)}
        batch = Batch(product.schema, like, mask, {}, rng.ids)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        programs = {k: compile_solver(product.processes[k], times, solver) for k in ("position", "cell")}
        together = Together(atom=Ancestral(), **programs)
        out = solve(self.denoiser.on(batch), product.prior(like, rng.at(0)), list(times), together, rng, order)
        return batch.replace(atom=out["atom"], position=out["position"] - out["position"].floor(), cell=out["cell"])
