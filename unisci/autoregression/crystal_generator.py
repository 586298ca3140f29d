"""All that it takes to draw crystals: three trained models, the words that they know, and what they were trained on.

p(orbits | formula) by `orbits`;   p(template | formula) by `rankers`;   p(sites | formula, template) by `refiner`
"""

from dataclasses import dataclass

import torch

from unisci.autoregression.crystals import CrystalModel
from unisci.autoregression.orbits import OrbitModel
from unisci.domains.orbit_batches import WyckoffTable
from unisci.networks.template_ranker import TemplateRanker


@dataclass(frozen=True, eq=False)
class CrystalGenerator:
    """table: the Wyckoff positions of `orbits`; elements: ascending atomic numbers seen in training; most_sites: of the
    primitive cells that were trained on; rankers: none where templates are taken by chemistry alone."""

    orbits: OrbitModel
    table: WyckoffTable
    refiner: CrystalModel
    rankers: tuple[TemplateRanker, ...]
    elements: tuple[int, ...]
    most_sites: int

    def to(self, device: torch.device | str) -> "CrystalGenerator":
        """The same generator, its models moved to a device."""
        orbits, refiner, *rankers = (m.to(device) for m in (self.orbits, self.refiner, *self.rankers))
        return CrystalGenerator(orbits, self.table, refiner, tuple(rankers), self.elements, self.most_sites)
