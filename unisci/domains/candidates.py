"""A formula's candidate templates as the tensors that `unisci.networks.template_ranker` reads."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from unisci.domains.elements import radii
from unisci.domains.pair_densities import RADII, density_distance, pair_densities
from unisci.domains.templates import Candidate, TemplateLibrary, species

# Neighbourhoods in which candidates vote: scale of the chemical distance, scale of the distance of pair densities.
VOTES = ((0.1, 3.0), (0.2, 1.0), (0.2, 3.0), (0.4, 3.0), (0.4, 10.0), (0.8, 10.0))
SAME = 1e-4  # the chemical distance below which a template has the formula itself
SLACK = 0.15  # a template comes once more for an assignment of its species that is this little worse
POLYMORPH = (5.0, 30.0)  # scales of pair densities on which a candidate is like a known crystal of the very formula
CANDIDATES = 24
FACTS = len(VOTES) + len(POLYMORPH) + 6  # numbers about a candidate


class CandidateReader:
    """Reads candidates of one library; remembers the pair densities of the last `remembered` templates it met."""

    def __init__(self, library: TemplateLibrary, remembered: int = 20_000):
        self.library = library
        self._density = lru_cache(remembered)(self._of_row)

    def _of_row(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        crystal = self.library[row]
        elements, _ = species(crystal.numbers)
        return elements, pair_densities(crystal, elements).astype(np.float16)

    def density(self, candidate: Candidate) -> np.ndarray:
        """(S, S, R) in the order of the candidate's species."""
        elements, g = self._density(candidate.row)
        order = np.array([np.flatnonzero(elements == z)[0] for z in candidate.species])
        return g[np.ix_(order, order)].astype(np.float32)

    def touching(self, numbers: np.ndarray) -> np.ndarray:
        """(S, S): the sum of two species' radii over the mean spacing of sites (n,), both guessed from the library."""
        elements, counts = species(numbers)
        radius = radii()[elements]
        return (radius[:, None] + radius) / self._spacing(elements, counts)

    def _spacing(self, elements: np.ndarray, counts: np.ndarray) -> float:
        return (self.library.atomic_volumes[elements] @ counts / counts.sum()) ** (1 / 3)

    def read(
        self, numbers: np.ndarray, k: int = CANDIDATES, without: Sequence[int] = ()
    ) -> tuple[list[Candidate], np.ndarray, np.ndarray]:
        """The candidates for sites (n,), their densities (K, S, S, R) and their facts (K, FACTS)."""
        found = self.library.nearest(numbers, k, without, SLACK)
        elements, counts = species(numbers)
        if not found:
            return [], np.zeros((0, len(elements), len(elements), len(RADII))), np.zeros((0, FACTS))
        g = np.stack([self.density(c) for c in found])
        volumes = self.library.atomic_volumes
        distance = np.array([c.distance for c in found])
        apart = density_distance(g[:, None], g[None], counts)
        facts = [_votes(distance, apart, *scales) for scales in VOTES]
        same = distance < SAME
        like = [_likeness(apart, same, scale) for scale in POLYMORPH]
        exchanged = [(c.species != elements) @ counts / counts.sum() for c in found]
        looseness = [np.log(self.library.volumes[c.row] / (volumes[c.species] @ counts)) for c in found]
        size = np.full(len(found), np.log(self._spacing(elements, counts)) - 1)
        facts += [distance - distance.min(), distance, looseness, same, *like, exchanged, size]
        return found, g, np.stack(facts, 1)


def _votes(distance: np.ndarray, apart: np.ndarray, near: float, alike: float) -> np.ndarray:
    """The share of the candidates, weighed by chemistry, that look like each."""
    weight = np.exp(-(distance - distance.min()) / near)
    return np.exp(-apart / alike) @ weight / weight.sum()


def _likeness(apart: np.ndarray, same: np.ndarray, scale: float) -> np.ndarray:
    """How much each candidate looks like the nearest of the very formula, 0 where there is none such."""
    return np.exp(-apart[:, same].min(1, initial=np.inf) / scale)
