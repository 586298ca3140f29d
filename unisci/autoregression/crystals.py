"""One model of crystals for structure prediction, type assignment and new crystals: a time for each field.

    t = (t_atom, t_position, t_cell):   (0, s, s) predicts a structure of given atoms, (s, 0, 0) assigns atoms to given
    sites, (s, s, s) makes new crystals; training draws all of them, and all three times apart.

Types by absorbing diffusion, positions on the torus (DiffCSP, arXiv 2309.04475), the cell by six Gaussian numbers (see
`unisci.lattice`). Any-to-any training by separate times as in UniDiffuser (arXiv 2303.06555). A network may read a
template, the known crystal that retrieval found (`unisci.domains.templates`), or none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unisci.batch import Batch, Field, Schema
from unisci.denoiser import Denoiser
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import Cosine
from unisci.processes.product import Product
from unisci.processes.torus import Torus
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import Together, sample
from unisci.solvers.tokens import Ancestral
from unisci.state import State, Time

UNIFORM_DEVIATION = 0.2887  # of a fractional coordinate
PREDICT, ASSIGN = 0.5, 0.05  # of the training draws; a quarter of the rest has three times, the others one

TEMPLATE_FIELDS: Schema = {
    "template_position": Field("site", (3,)),
    "template_cell": Field("whole", (6,)),
    "template_distance": Field("whole"),
}


def crystal_product(schema: Schema, classes: int) -> Product:
    """The processes of "atom", "position" and "cell"."""
    fields = {k: schema[k] for k in ("atom", "position", "cell")}
    return Product({"atom": absorbing(classes), "position": Torus(), "cell": Cosine()}, fields)


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


@dataclass(frozen=True)
class Still:
    """The solver of a field that is given: nothing moves."""

    def step(self, denoise, x: State, t: Time, s: Time, memory: None, rng: Rng | None) -> tuple[State, None]:
        return x, None


class CrystalModel(nn.Module):
    """denoiser: of "atom", "position" and "cell"; sizes (N + 1,): counts of crystals by number of sites;
    without: the share of training examples that see no template."""

    def __init__(self, denoiser: Denoiser, sizes: Tensor, without: float = 0.4):
        super().__init__()
        self.denoiser, self.without = denoiser, without
        self.register_buffer("sizes", sizes.float())

    def times(self, rng: Rng) -> dict[str, Tensor]:
        """Training times (B,) by field; see the module."""
        b = len(rng.ids)
        task = rng.uniform("task", 0, (b,), 0)
        shared, atom, position = (1e-3 + (1 - 1e-3) * rng.uniform(f"time {k}", 0, (b,), 0) for k in "abc")
        zero = torch.zeros_like(shared)
        predict, assign = task < PREDICT, (task >= PREDICT) & (task < PREDICT + ASSIGN)
        apart = task > 1 - (1 - PREDICT - ASSIGN) / 4
        t_atom = torch.where(predict, zero, torch.where(apart, atom, shared))
        t_position = torch.where(assign, zero, torch.where(apart, position, shared))
        return {"atom": t_atom, "position": t_position, "cell": torch.where(assign, zero, shared)}

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar training loss of crystals, mean over samples; a template is drawn among the K that the batch gives."""
        given = {}
        if "template_position" in batch.given:
            k = batch.given["template_cell"].shape[1]
            u = rng.uniform("template", 0, (len(batch), 2), 0)
            choice = torch.where(u[:, 0] < self.without, -1, (u[:, 1] * k).long())
            given = templates(batch, choice)
        schema = {k: batch.schema[k] for k in batch.state} | TEMPLATE_FIELDS
        batch = Batch(schema, batch.state, batch.mask, given, batch.ids)
        return self.denoiser.loss(batch, rng.at(0), self.times(rng))

    @torch.no_grad()
    def predict(
        self,
        batch: Batch,
        rng: Rng,
        steps: int = 20,
        solver: str = "dpm++2m",
        start: float = 1.0,
        times: Tensor | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Batch:
        """Structures of the given atoms: the batch with "position" and "cell" drawn, `steps` network calls.

        batch.state holds "atom"; its "position" and "cell" are read only where start < 1, and are then what is noised
        to that time and solved from; batch.given may hold one template a sample. Positions end in [0, 1).
        """
        product = self.denoiser.product.to(batch.mask.device)
        zero = batch.mask.new_zeros((), dtype=torch.float32)
        if times is None:
            times = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        noise = rng.at(0)
        if start < 1:
            first = {k: times[0].float() for k in ("position", "cell")} | {"atom": zero}
            x = product.perturb(batch.state, first, noise)
        else:
            x = product.prior(batch.state, noise) | {"atom": batch.state["atom"]}
        programs = {k: compile_solver(product.processes[k], times, solver) for k in ("position", "cell")}
        grid = [{"atom": 0.0 * t, "position": t, "cell": t} for t in times]
        denoise = self.denoiser.on(batch)
        out = sample(denoise, x, grid, Together(atom=Still(), **programs), rng.at(1))
        return batch.replace(position=out["position"] - out["position"].floor(), cell=out["cell"])

    @torch.no_grad()
    def generate(self, rng: Rng, steps: int = 50, solver: str = "dpm++2m", sites: Tensor | None = None) -> Batch:
        """New crystals, one for each of rng.ids: number of sites by the data's histogram or given (B,), then all fields
        together."""
        device, b = self.sizes.device, len(rng.ids)
        if sites is None:
            sites = rng.categorical("sites", 0, self.sizes.expand(b, -1), 0)
        n = int(sites.max())
        mask = torch.arange(n, device=device) < sites[:, None]
        product = self.denoiser.product.to(device)
        like = {"atom": torch.zeros(b, n, dtype=torch.long, device=device)}
        like |= {"position": torch.zeros(b, n, 3, device=device), "cell": torch.zeros(b, 6, device=device)}
        batch = Batch(product.schema, like, mask, {}, rng.ids)
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        programs = {k: compile_solver(product.processes[k], times, solver) for k in ("position", "cell")}
        together = Together(atom=Ancestral(), **programs)
        out = sample(self.denoiser.on(batch), product.prior(like, rng.at(0)), list(times), together, rng.at(1))
        return batch.replace(atom=out["atom"], position=out["position"] - out["position"].floor(), cell=out["cell"])
