"""The Fréchet ChemNet distance (Preuer et al., DOI 10.1021/acs.jcim.8b00234), with the network of package fcd_torch.

d^2 = |mu_1 - mu_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), mu and C being mean and covariance of ChemNet's last layer.
The package `fcd` gives other values (7.25, not 7.72, on one set of 640): never compare across the two.
As in the literature the "distance" is d^2. It falls as the sample grows, so compare only at equal n.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from unisci.metrics.intervals import jackknife
from unisci.metrics.metric import Metric

if TYPE_CHECKING:
    from torch import nn

WIDTH = 512


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the distance needs of a reference: mean (512,), covariance (512, 512), of n molecules.

    sha256 is that of the sorted distinct SMILES, one a line: it names the set where only its statistics are at hand.
    """

    name: str
    sha256: str
    n: int
    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        if self.mean.shape != (WIDTH,) or self.covariance.shape != (WIDTH, WIDTH):
            shapes = f"mean {self.mean.shape}, covariance {self.covariance.shape}"
            expected = f"({WIDTH},) and ({WIDTH}, {WIDTH})"
            raise ValueError(f"ChemNet statistics {self.name!r} have {shapes}; expected {expected}")

    @classmethod
    def from_smiles(cls, name: str, smiles: Sequence[str], device: str | None = None) -> Statistics:
        """Run ChemNet over valid SMILES, canonical and without stereochemistry as in Reference.smiles.

        device: see `activations`. Raises ValueError for fewer than two molecules.
        """
        if len(smiles) < 2:
            raise ValueError(f"ChemNet statistics need two molecules or more, {name!r} has {len(smiles)}")
        return cls(name, digest(smiles), len(smiles), *_moments(activations(smiles, device)))

    def save(self, path: str | PathLike) -> None:
        """Write one .npz (about 2 MB); the suffix .npz is added where it is missing."""
        np.savez_compressed(path, **vars(self))

    @classmethod
    def load(cls, path: str | PathLike) -> Statistics:
        """Read what `save` wrote, without unpickling anything. Raises ValueError where the file is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = dict(file)
        except (ValueError, TypeError, EOFError, BadZipFile) as error:  # text, a bare array, nothing, half a file
            raise ValueError(f"{path} is not a readable .npz file; write it again with Statistics.save") from error
        if missing := sorted(cls.__dataclass_fields__.keys() - found.keys()):
            raise ValueError(f"{path} lacks {missing}: it was not written by Statistics.save")
        return cls(str(found["name"]), str(found["sha256"]), int(found["n"]), found["mean"], found["covariance"])


def digest(smiles: Sequence[str]) -> str:
    """sha256 of the sorted distinct SMILES, one a line: what sha256sum prints for a file of them."""
    return hashlib.sha256("".join(f"{s}\n" for s in sorted(set(smiles))).encode()).hexdigest()


def activations(smiles: Sequence[str], device: str | None = None, batch_size: int = 256) -> np.ndarray:
    """ChemNet's last hidden layer (n, 512) of valid SMILES, a repeated one being computed once.

    device: a torch device, by default the GPU where there is one. ChemNet reads 349 characters and ignores the rest.
    Raises ModuleNotFoundError where fcd_torch is not installed.
    """
    import torch

    net = _chemnet()
    from fcd_torch.utils import SmilesDataset

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    net = net.to(device)
    distinct = sorted(set(smiles))
    data = SmilesDataset(distinct, canonize=False)
    rows = [np.zeros((0, WIDTH))]
    for start in range(0, len(distinct), batch_size):
        one_hot = np.stack([data[i] for i in range(start, min(start + batch_size, len(distinct)))])
        with torch.no_grad():
            rows.append(net(torch.from_numpy(one_hot).float().transpose(1, 2).to(device)).cpu().double().numpy())
    index = {s: i for i, s in enumerate(distinct)}
    return np.concatenate(rows)[[index[s] for s in smiles]]


@cache
def _chemnet() -> nn.Module:
    try:
        from fcd_torch import FCD
    except ModuleNotFoundError as error:
        if error.name not in ("fcd_torch", "scipy"):
            raise
        fix = "the Fréchet ChemNet distance needs fcd_torch: pip install 'unisci[metrics]'"
        raise ModuleNotFoundError(fix) from error
    return FCD().model.eval()


def frechet(mean_a: np.ndarray, covariance_a: np.ndarray, mean_b: np.ndarray, covariance_b: np.ndarray) -> float:
    """d^2 between two Gaussians, means (d,), covariances (d, d), which may be singular."""
    return _to(mean_a, _root(covariance_a), np.trace(covariance_a), mean_b, covariance_b)


def frechet_chemnet(smiles: Sequence[str], reference: Statistics, seed: int = 0, device: str | None = None) -> Metric:
    """Metric "fcd_torch" of valid SMILES (repeats count) to the reference, with a delete-a-group jackknife interval.

    SMILES must be written as those of the reference were. NaN for fewer than two, and an interval from three on.
    """
    x = activations(sorted(smiles), device)
    root, trace = _root(reference.covariance), np.trace(reference.covariance)
    value, low, high = jackknife(lambda i: _to(reference.mean, root, trace, *_moments(x[i])), len(x), seed)
    return Metric("fcd_torch", value, low, high, len(x), {}, reference.name, reference.sha256)


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance over rows; one row has no covariance."""
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1) if len(x) > 1 else np.full((x.shape[1],) * 2, np.nan)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def _to(mean_a, root_a, trace_a, mean_b, covariance_b) -> float:
    # Tr (A B)^(1/2) = Tr (A^(1/2) B A^(1/2))^(1/2), which is symmetric: real and stable also where A or B is singular.
    if not np.isfinite(covariance_b).all():
        return float("nan")
    overlap = np.sqrt(np.linalg.eigvalsh(root_a @ covariance_b @ root_a).clip(0)).sum()
    distance = np.square(mean_a - mean_b).sum() + trace_a + np.trace(covariance_b) - 2 * overlap
    return float(max(0.0, distance))
