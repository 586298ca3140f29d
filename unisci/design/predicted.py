"""Properties that RDKit cannot measure and a model of properties predicts, E[v | G] of the finished molecule
(`unisci.autoregression.property_model`): a want of such a name is steered by the model, and judged by it too."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from unisci.autoregression.generate import fill_group
from unisci.autoregression.pard import ordered
from unisci.autoregression.property_model import PropertyModel
from unisci.design.properties import known
from unisci.design.targets import Interval, Maximize
from unisci.design.wants import Want, Wants
from unisci.domains.molecule import Molecule
from unisci.order import Order


@dataclass(frozen=True)
class Predicted:
    """A property of valid molecules, in the unit of the model's data: `Above(Predicted(model, "gap"), 6)`.

    Its own name is "gap (predicted)", in tables too. Raises ValueError where the model does not know `name`.
    """

    model: PropertyModel
    name: str

    def __post_init__(self) -> None:
        if self.name not in self.model.names:
            raise ValueError(f"this model predicts {', '.join(self.model.names)}, not {self.name!r}")

    @property
    def __name__(self) -> str:
        return f"{self.name} (predicted)"

    @torch.no_grad()
    def __call__(self, molecules: list[Molecule]) -> np.ndarray:
        """The values (n,), each the same whatever stands beside it. Raises ValueError for atoms that the model does not
        know."""
        sizes, out = np.array([len(m.atoms) for m in molecules]), np.empty(len(molecules))
        column, device = self.model.names.index(self.name), self.model.mean.device
        for n in np.unique(sizes):
            rows = np.flatnonzero(sizes == n)
            batch = ordered(Molecule.batch([molecules[i] for i in rows], self.model.classes), self.model.hops)
            batch = batch[fill_group(torch.arange(len(rows)))].to(device)
            mean, _ = self.model(batch.state, None, batch.mask, batch.given, Order(batch.given["rank"]))
            out[rows] = mean[: len(rows), column].double().cpu().numpy()
        return out


def spoken_name(want: Want) -> str | None:
    """The name of the property that is wanted, None where it is none or a function of the user's own."""
    if not isinstance(want, Interval | Maximize):
        return None
    if isinstance(want.property, Predicted):
        return want.property.name
    return want.name if isinstance(want.property, str) else None


def with_predictions(where: Wants, model: PropertyModel | None) -> Wants:
    """The wants, with each property that RDKit cannot measure but this model knows as its prediction."""

    def known_to(want: Want) -> Want:
        name = spoken_name(want)
        asked = model is not None and name in model.names and isinstance(want.property, str)
        return replace(want, property=Predicted(model, name)) if asked and name not in known() else want

    return Wants(tuple(map(known_to, where.parts)))
