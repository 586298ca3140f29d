"""How good predicted and generated crystals are: `evaluate_prediction` and `evaluate_generation` give lists of Metric.

Prediction (the composition is given): unisci.metrics.structure_match has the definitions; arXiv 2509.12178 says why
cRMSE and METRe stand beside the match rate. Generation: validity as in CDVAE (arXiv 2110.06197), coverage with other
fingerprints than CDVAE's (unisci.metrics.coverage), distances of distributions, uniqueness, novelty.
Every sample is counted; whatever failed, a time limit too, is in `failures` by its reason.

    truth, training = Reference.from_crystals("mp20-val", val), Reference.from_crystals("mp20-train", train)
    print(markdown(evaluate_prediction(predictions, truth, floors(train) | {"nearest_template": nearest})))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unisci.metrics.cells import Cell, Reference, cell
from unisci.metrics.coverage import CUTOFFS, Cutoffs, average_minimum_distances, covered, cumulative
from unisci.metrics.crystal_baselines import Baseline, floors
from unisci.metrics.crystal_prediction import curve, scores
from unisci.metrics.crystal_validity import faults
from unisci.metrics.descriptors import wasserstein
from unisci.metrics.intervals import distinct, jackknife, proportion
from unisci.metrics.metric import Metric, markdown, table
from unisci.metrics.structure_groups import group, known
from unisci.metrics.structure_match import TOLERANCES, Matches, Matching, Tolerances, everyone, match
from unisci.metrics.structure_match import prepare as prepare_matcher
from unisci.metrics.workers import Answer, Workers

__all__ = ["Metric", "Reference", "evaluate_generation", "evaluate_prediction", "floors", "markdown", "table"]

NO_BASELINES: Mapping[str, Baseline] = {}
LIMIT = 10.0  # seconds for one pair of crystals; most take 0.02
SETTINGS = ("", "_as_given")  # suffixes: cells reduced first (primitive_cell=True), cells as given (False)
VALUES = {"density": lambda c: float(c.structure.density), "elements": lambda c: float(len(c.counts))}


def prepare() -> None:
    """Import in a new worker what its tasks need."""
    import smact  # noqa: F401

    prepare_matcher()


def evaluate_prediction(
    generated: Sequence[Sequence[Any]],
    truth: Reference,
    baselines: Mapping[str, Baseline] = NO_BASELINES,
    tolerances: Tolerances = TOLERANCES,
    workers: int = 2,
    limit: float = LIMIT,
    seed: int = 0,
) -> list[Metric]:
    """generated[i]: k >= 1 predictions, None for a failed one, of truth.cells[i]; k is the same for all.

    Names: match_rate, rmse, crmse of the first prediction; valid_match_rate, where prediction and truth must be valid
    too (DiffCSP's rule); metre_* of the first predictions for all compounds; for k > 1 best_of_{k}_* and *_at_{j}, the
    mean over choices of j of the k; {name}_* of each baseline (see `floors`), a function of the atomic numbers, such as
    a nearest template. All again with the suffix _as_given: cells are not reduced first.

    workers: processes; limit: seconds a pair. Raises ValueError where the numbers of predictions differ or are 0.
    """
    k, targets, n = _size(generated, truth), truth.cells, len(generated)
    first, more = [g[0] for g in generated], [p for g in generated for p in g[1:]]
    pairs, metre = everyone(first, targets)
    with Workers(workers, limit, prepare) as pool:

        def matches(predictions: Sequence[Any], of: Sequence[Cell]) -> Matches:
            return match(predictions, of, tolerances, pool)

        ones = matches(first, targets)
        everything = ones + matches(more, [t for t in targets for _ in range(k - 1)])
        everyones = ones + matches([first[i] for i, _ in pairs], [targets[j] for _, j in pairs])
        floor = {f"{name}_": matches([f(t.numbers) for t in targets], targets) for name, f in baselines.items()}
        wrong = [a or b for a, b in zip(*faults([*map(cell, first), *targets], pool), strict=True)]
    samples = [[i, *range(n + i * (k - 1), n + (i + 1) * (k - 1))] for i in range(n)]
    best = {f"best_of_{k}_": everything.best(samples)} if k > 1 else {}
    found = {"": ones, "metre_": everyones.best(metre)} | best | floor
    rows, stol = [], tolerances.stol
    for setting, suffix in enumerate(SETTINGS):
        rows += [row for prefix, m in found.items() for row in scores(m[setting], stol, prefix, suffix, seed)]
        rows += curve(everything[setting].rms[samples], stol, suffix, seed)
        rows.append(_valid_match(ones[setting], wrong, suffix))
    return _stamped(rows, truth)


def evaluate_generation(
    generated: Sequence[Any],
    reference: Reference,
    tolerances: Tolerances = TOLERANCES,
    cutoffs: Cutoffs = CUTOFFS,
    workers: int = 2,
    limit: float = LIMIT,
    seed: int = 0,
) -> list[Metric]:
    """generated: n crystals, None for a failed one. Names:

    structure_valid, composition_valid, valid (both): of all n, see unisci.metrics.crystal_validity;
    uniqueness: distinct of valid, which falls as their number grows; novelty: not in the reference, of distinct;
    unique_novel: valid, distinct and novel ones of all n;
    amd_precision: valid ones that the reference covers, of all n; amd_recall: of the reference, those that a valid one
    covers; both NOT CDVAE's COV, see unisci.metrics.coverage;
    density_w1 (g/cm^3), elements_w1: Wasserstein-1 distance of densities, of numbers of elements, over valid ones.
    """
    items, n = [cell(g) for g in generated], len(generated)
    with Workers(workers, limit, prepare) as pool:
        structure, composition = faults(items, pool)
        wrong = [a or b for a, b in zip(structure, composition, strict=True)]
        valid = [item for item, reason in zip(items, wrong, strict=True) if reason is None]
        first, undecided = group(valid, pool, tolerances)
        distinct_ones = [valid[i] for i in np.unique(first)]
        seen, unknown = known(distinct_ones, reference.cells, pool, tolerances)
        here, there = (pool.map(average_minimum_distances, [(c,) for c in cs]) for cs in (valid, reference.drawn))
    rows = [_share("structure_valid", structure), _share("composition_valid", composition), _share("valid", wrong)]
    repeats = Counter(first.tolist())
    singles, m = sum(count == 1 for count in repeats.values()), len(valid)
    rate = len(repeats) / m if m else float("nan")
    rows.append(Metric("uniqueness", rate, *distinct(len(repeats), singles, m), m, undecided))
    fresh = int((~seen).sum())
    rows += _stamped([_rate("novelty", fresh, len(seen), unknown), _rate("unique_novel", fresh, n, unknown)], reference)
    rows += _stamped(_coverage(valid, reference.drawn, here, there, n, cutoffs), reference)
    return rows + _stamped([_w1(name, valid, reference.drawn, seed) for name in VALUES], reference)


def _size(generated: Sequence[Sequence[Any]], truth: Reference) -> int:
    sizes = sorted({len(g) for g in generated})
    if len(generated) != len(truth.cells) or len(sizes) != 1 or sizes[0] < 1:
        raise ValueError(
            f"{len(generated)} lists of {sizes} predictions for {len(truth.cells)} crystals; "
            "give one list to each crystal, all of one length >= 1"
        )
    return sizes[0]


def _stamped(rows: list[Metric], reference: Reference) -> list[Metric]:
    return [replace(row, reference=reference.name, reference_hash=reference.sha256) for row in rows]


def _rate(name: str, successes: int, n: int, failures: dict[str, int]) -> Metric:
    return Metric(name, successes / n if n else float("nan"), *proportion(successes, n), n, failures)


def _share(name: str, reasons: Sequence[str | None]) -> Metric:
    """The share of those without a reason."""
    failures = dict(sorted(Counter(r for r in reasons if r).items()))
    return _rate(name, len(reasons) - sum(failures.values()), len(reasons), failures)


def _valid_match(one: Matching, wrong: list[str | None], suffix: str) -> Metric:
    """wrong: why each prediction is not valid, then each truth."""
    n = len(one.reasons)
    reasons = zip(one.reasons, wrong[:n], wrong[n:], strict=True)
    return _share(
        f"valid_match_rate{suffix}",
        [a or (b and f"not valid: {b}") or (c and f"truth not valid: {c}") for a, b, c in reasons],
    )


def _coverage(
    valid: Sequence[Cell],
    drawn: Sequence[Cell],
    here: Sequence[Answer],
    there: Sequence[Answer],
    n: int,
    cutoffs: Cutoffs,
) -> list[Metric]:
    """here, there: answers with the average minimum distances of valid and drawn; n: generated, valid or not."""
    sides, failures = [], []
    for crystals, answers in ((valid, here), (drawn, there)):
        kept = [(a.value, cumulative(c)) for c, a in zip(crystals, answers, strict=True) if a.reason is None]
        sides += [np.array([x for x, _ in kept]), np.array([y for _, y in kept])]
        failures.append(dict(Counter(a.reason for a in answers if a.reason)))
    precision, recall = covered(*sides, cutoffs)
    if n > len(valid):
        failures[0]["not valid"] = n - len(valid)
    return [
        _rate("amd_precision", int(precision.sum()), n, failures[0]),
        _rate("amd_recall", int(recall.sum()), len(drawn), failures[1]),
    ]


def _w1(name: str, valid: Sequence[Cell], drawn: Sequence[Cell], seed: int) -> Metric:
    x, y = (np.array([VALUES[name](c) for c in cells]) for cells in (valid, drawn))
    return Metric(f"{name}_w1", *jackknife(lambda i: wasserstein(x[i], y), len(x), seed), len(x))
