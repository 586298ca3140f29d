"""The share of molecules that pass all checks of PoseBusters (arXiv 2308.05777), package `posebusters`, config "mol".

The checks of a molecule alone, without a protein: it is chemically sane and connected, its lengths and angles lie
within 25 % of the bounds of distance geometry, no atoms clash, aromatic rings and double bonds are flat, and its energy
is at most 100 times the mean of 50 relaxed conformers'.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pandas import isna
from rdkit import Chem, rdBase

from unisci.metrics.intervals import proportion
from unisci.metrics.metric import Metric
from unisci.metrics.strain import fault
from unisci.metrics.workers import Workers

if TYPE_CHECKING:
    from unisci.domains.molecule import Molecule

LIMIT = 60.0  # seconds for one molecule; small ones take 0.1, drugs 0.5


def pose_checks(molecules: Sequence[Molecule], workers: int = 2, limit: float = LIMIT) -> Metric:
    """posebusters_valid, of all molecules; failures: the first check that each other one fails, or what went wrong.

    Of the first conformer, hydrogens as sites. workers: processes; limit: seconds a molecule.
    Raises ModuleNotFoundError where posebusters is not installed.
    """
    if find_spec("posebusters") is None:
        fix = 'the checks of PoseBusters need posebusters: pip install "unisci[molecules]"'
        raise ModuleNotFoundError(fix, name="posebusters")
    reasons = [fault(m) for m in molecules]
    tasks = [(m.rdkit,) for m, reason in zip(molecules, reasons, strict=True) if reason is None]
    with Workers(workers, limit, prepare) as pool:
        answers = iter(pool.map(first_failure, tasks))
    failures: dict[str, int] = {}
    for reason in reasons:
        if reason is None:
            answer = next(answers)
            reason = answer.reason or answer.value
        if reason is not None:
            failures[reason] = failures.get(reason, 0) + 1
    n, passed = len(reasons), len(reasons) - sum(failures.values())
    share = passed / n if n else float("nan")
    return Metric("posebusters_valid", share, *proportion(passed, n), n, dict(sorted(failures.items())))


def first_failure(mol: Chem.Mol) -> str | None:
    """The first check that the first conformer of a molecule fails, in words, None where it passes all.

    A check that could not be made, such as that of the energy of some cages, is not passed, and says so.
    """
    with rdBase.BlockLogs():
        row = _checks().bust([mol], None, None).iloc[0]
    for name, passed in row.items():
        if isna(passed) or not passed:
            return name.replace("_", " ") + (" could not be checked" if isna(passed) else "")
    return None


def prepare() -> None:
    """Import in a new worker what its tasks need; what the package logs is in the answers too."""
    logging.getLogger("posebusters").setLevel(logging.CRITICAL)
    _checks()


@cache
def _checks() -> Any:
    from posebusters import PoseBusters

    return PoseBusters(config="mol")
