"""How good a set of generated molecules is: `evaluate(smiles, reasons, reference)` gives a list of Metric.

Every sample is counted: one that is invalid, or on which a descriptor fails, appears in `failures` with its reason.
Molecules are compared as canonical SMILES without stereochemistry. Definitions of validity, uniqueness and novelty as
in GDSS (arXiv 2202.02514); the rest is measured over all valid samples, repeats too, as in MOSES (arXiv 1811.12823).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from rdkit import Chem, rdBase

from unisci.metrics.chemnet import Statistics, digest, frechet_chemnet
from unisci.metrics.descriptors import PARTS, VALUES, Profile, profile, total_variation, wasserstein
from unisci.metrics.intervals import bootstrap_mean, distinct, jackknife, proportion
from unisci.metrics.metric import Metric, markdown, table

__all__ = ["Metric", "Reading", "Reference", "canonical", "evaluate", "markdown", "read", "table"]


def canonical(smiles: str) -> tuple[str | None, str | None]:
    """(canonical SMILES without stereochemistry, isotopes or explicit hydrogens, None), or (None, why it is invalid).

    Valid: RDKit parses and sanitises it, and it is one fragment of one atom or more.
    """
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            return None, _why(smiles)
        if mol.GetNumAtoms() == 0:
            return None, "no atoms"
        if len(Chem.GetMolFrags(mol)) > 1:
            return None, "fragments"
        text = Chem.MolToSmiles(mol, isomericSmiles=False)
        # Deuterium loses its mark only in writing; read again it becomes an implicit hydrogen.
        return (Chem.CanonSmiles(text, useChiral=0) if "[H]" in text else text), None


def _why(smiles: str) -> str:
    mol = Chem.MolFromSmiles(smiles, sanitize=False)
    problems = Chem.DetectChemistryProblems(mol) if mol is not None else ()
    return f"sanitising: {problems[0].GetType().removesuffix('Exception')}" if problems else "not a SMILES"


@dataclass(frozen=True)
class Reading:
    """n samples: `valid` canonical SMILES, sorted, repeats kept, and how many others there are, by reason."""

    n: int
    valid: tuple[str, ...]
    failures: dict[str, int]


def read(smiles: Sequence[str | None], reasons: Sequence[str | None] | None = None) -> Reading:
    """One entry a generated sample; it is valid where its reason is None and its SMILES is valid (see `canonical`).

    A SMILES that comes with a reason was corrected or refused by its maker: it counts as invalid, for that reason.
    Raises ValueError where the lengths differ, or an entry is neither text nor None.
    """
    reasons = [None] * len(smiles) if reasons is None else reasons
    if len(smiles) != len(reasons):
        raise ValueError(f"{len(smiles)} smiles but {len(reasons)} reasons; give one reason (or None) for each sample")
    seen: dict[str, tuple[str | None, str | None]] = {}
    valid, failures = [], Counter()
    for i, (text, reason) in enumerate(zip(smiles, reasons, strict=True)):
        if not isinstance(text, str | None):
            raise ValueError(f"smiles[{i}] is {text!r}; a sample is text, or None where there is no molecule")
        if text is not None and reason is None:
            if text not in seen:
                seen[text] = canonical(text)
            text, reason = seen[text]
        if reason is None and text is not None:
            valid.append(text)
        else:
            failures[reason or "no reason given"] += 1
    return Reading(len(smiles), tuple(sorted(valid)), dict(sorted(failures.items())))


@dataclass(frozen=True, eq=False)
class Reference:
    """A set to compare with, such as a training set.

    smiles: canonical, distinct, sorted, as `from_smiles` makes them. A file of datasets/*/prepare.py holds them so, and
    is read without that work by Reference("qm9", tuple(Path("qm9.smi").read_text().split())).

    failures: the entries of the source that are no molecule (see `canonical`), by reason. Distributions are measured
    on at most `limit` molecules, drawn evenly with a fixed seed; novelty uses all.
    """

    name: str
    smiles: tuple[str, ...]
    failures: dict[str, int] = field(default_factory=dict)
    limit: int = 10_000

    def __post_init__(self) -> None:
        if not self.smiles:
            raise ValueError(f"reference {self.name!r} has no valid molecule; left out: {self.failures or 'nothing'}")
        if any(a >= b for a, b in zip(self.smiles, self.smiles[1:], strict=False)):
            raise ValueError(f"smiles of reference {self.name!r} are not sorted, distinct: use Reference.from_smiles")

    @classmethod
    def from_smiles(cls, name: str, smiles: Iterable[str], limit: int = 10_000) -> Reference:
        """From any SMILES, about 7,000 a second. Raises ValueError where none is valid."""
        reading = read(list(smiles))
        return cls(name, tuple(sorted(set(reading.valid))), reading.failures, limit)

    @cached_property
    def sha256(self) -> str:
        """Of the SMILES, one a line: the sha256sum of a file that holds them."""
        return digest(self.smiles)

    @cached_property
    def known(self) -> frozenset[str]:
        """The SMILES for membership."""
        return frozenset(self.smiles)

    @cached_property
    def profile(self) -> Profile:
        """Descriptors and parts of (at most `limit`) molecules; measured at first use."""
        keep = np.random.default_rng(0).permutation(len(self.smiles))[: self.limit]
        return profile([self.smiles[i] for i in keep])


def evaluate(
    smiles: Sequence[str | None],
    reasons: Sequence[str | None] | None = None,
    reference: Reference | None = None,
    fcd: Statistics | None = None,
    seed: int = 0,
) -> list[Metric]:
    """All metrics of a set of samples (smiles, reasons: see `read`); those against a reference only where it is given.

    The order of the samples does not matter; `seed` draws the bootstrap and the jackknife groups. Names:
    validity: valid of all, without correction; uniqueness: distinct of valid, which falls as their number grows;
    novelty: distinct ones that are not in the reference, of distinct;
    qed, logp, sa: means; *_w1: Wasserstein-1 distance of their values to the reference's, in their unit;
    atoms_tv, bonds_tv, rings_tv: total variation distance (0 to 1) of the counts of elements, bond types, ring sizes;
    fcd_torch: see unisci.metrics.chemnet, only where `fcd` is given. Raises as `read`.
    """
    reading = read(smiles, reasons)
    measured = profile(reading.valid)
    metrics = [validity(reading), uniqueness(reading)]
    if reference is not None:
        metrics.append(novelty(reading, reference))
    metrics += [_mean(name, measured, seed) for name in VALUES]
    if reference is not None:
        metrics += [_w1(name, measured, reference, seed) for name in VALUES]
        metrics += [_tv(name, measured, reference, seed) for name in PARTS]
    return metrics if fcd is None else [*metrics, frechet_chemnet(reading.valid, fcd, seed)]


def _share(count: int, n: int) -> float:
    return count / n if n else float("nan")


def validity(reading: Reading) -> Metric:
    """Valid of all, without correction."""
    n, k = reading.n, len(reading.valid)
    return Metric("validity", _share(k, n), *proportion(k, n), n, reading.failures)


def uniqueness(reading: Reading) -> Metric:
    """Distinct of valid."""
    n, counts = len(reading.valid), Counter(reading.valid)
    singles = sum(c == 1 for c in counts.values())
    return Metric("uniqueness", _share(len(counts), n), *distinct(len(counts), singles, n), n)


def novelty(reading: Reading, reference: Reference) -> Metric:
    """Distinct ones that are not in the reference, of distinct, which are taken as independent draws."""
    unique = set(reading.valid)
    n, k = len(unique), len(unique - reference.known)
    return Metric("novelty", _share(k, n), *proportion(k, n), n, {}, reference.name, reference.sha256)


def _mean(name: str, measured: Profile, seed: int) -> Metric:
    x = np.sort(measured.values[name])
    value = float(x.mean()) if len(x) else float("nan")
    return Metric(name, value, *bootstrap_mean(x, seed), len(x), dict(measured.failures[name]))


def _w1(name: str, measured: Profile, reference: Reference, seed: int) -> Metric:
    x, y = measured.values[name], reference.profile.values[name]
    value, low, high = jackknife(lambda i: wasserstein(x[i], y), len(x), seed)
    failures = dict(measured.failures[name])
    return Metric(f"{name}_w1", value, low, high, len(x), failures, reference.name, reference.sha256)


def _tv(name: str, measured: Profile, reference: Reference, seed: int) -> Metric:
    counts, others = measured.parts[name], sum(reference.profile.parts[name], Counter())
    keys = sorted(set().union(others, *counts))
    x = np.array([[c[k] for k in keys] for c in counts], float).reshape(len(counts), len(keys))
    y = np.array([others[k] for k in keys], float)
    value, low, high = jackknife(lambda i: total_variation(x[i].sum(0), y), len(x), seed)
    failures = dict(measured.failures[name])
    return Metric(f"{name}_tv", value, low, high, len(x), failures, reference.name, reference.sha256)
