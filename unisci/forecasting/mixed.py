"""Training windows of several sources, dealt by weight: a source of few windows is not drowned by one of many.

Row i of a batch is of source k with probability w_k / sum w, at one of its places, all equally likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unisci.batch import Batch
from unisci.forecasting.windows import Source, WindowShape, at_places, places
from unisci.rng import Rng


def joined(sources: Sequence[Source]) -> Source:
    """One source of all series, those of the first source first. Raises ValueError where they have other channels or
    covariates, or ahead is not the same."""
    alike = {
        (s.values.shape[1], s.covariates.shape[1], s.future, s.phases.shape[1], s.static.shape[1], s.ahead)
        for s in sources
    }
    if len(alike) != 1:
        raise ValueError(
            f"one model needs sources of the same channels and covariates, got {sorted(alike)} as "
            "(channels, covariates, future, phases, static, ahead)"
        )
    rows = torch.tensor([0] + [len(s.values) for s in sources]).cumsum(0)[:-1].tolist()
    cat = lambda name: torch.cat([getattr(s, name) for s in sources])
    moved = lambda name: torch.cat([getattr(s, name) + row for s, row in zip(sources, rows, strict=True)])
    same = {name: cat(name) for name in ("values", "covariates", "phases", "static", "spread", "structure", "bounds")}
    return replace(sources[0], **same, first=moved("first"), end=moved("end"))


@dataclass(frozen=True, eq=False)
class Mixed:
    """`prepare` of the training loop for `slots` rows of nothing, whose randomness chooses the windows. Not copied with
    a model.

    source: all series; at: their places, a source's together; counts: how many places each source has; weights: > 0,
    one for each source."""

    source: Source
    shape: WindowShape
    at: Batch
    counts: tuple[int, ...]
    weights: tuple[float, ...]

    @classmethod
    def of(cls, sources: Sequence[Source], shape: WindowShape, weights: Sequence[float]) -> "Mixed":
        """Raises ValueError as `joined` does, where a source has no window, and where weights are not positive."""
        if len(weights) != len(sources) or not all(w > 0 for w in weights):
            raise ValueError(f"weights must be {len(sources)} positive numbers, got {tuple(weights)}")
        source = joined(sources)
        counts = tuple(len(places(one, shape)) for one in sources)
        return cls(source, shape, places(source, shape), counts, tuple(weights))

    def __call__(self, batch: Batch, rng: Rng) -> Batch:
        which, where = rng.uniform("window", 0, (len(batch), 2), 0).double().cpu().T.contiguous()
        counts, share = torch.tensor(self.counts), torch.tensor(self.weights, dtype=torch.float64).cumsum(0)
        k = torch.searchsorted(share[:-1] / share[-1], which, right=True)
        row = (counts.cumsum(0) - counts)[k] + (counts[k] * where).long()
        windows = at_places(self.source, self.shape, self.at[row])
        return replace(windows, ids=batch.ids.cpu()).to(batch.mask.device)


def slots(rows: int) -> Batch:
    """Rows (B = rows) that `Mixed` fills with windows."""
    return Batch({}, {}, torch.ones(rows, 1, dtype=torch.bool))
