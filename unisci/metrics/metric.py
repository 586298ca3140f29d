"""Metric: one measured number, its interval, its sample count, what failed on the way, what it was compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Metric:
    """One number about a set of samples.

    value, with the 95 % interval [low, high] around it; NaN where undefined (no valid sample; an interval from one).
    n: how many samples the number rests on; failures: how many samples could not be used, by reason;
    reference, reference_hash: name and sha256 of the set compared with, None where there is none.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    failures: dict[str, int] = field(default_factory=dict)
    reference: str | None = None
    reference_hash: str | None = None


def table(metrics: Sequence[Metric]) -> DataFrame:
    """One row a metric, columns as the fields of Metric; failures becomes text, "reason: count; ..."."""
    import pandas

    rows = [{**vars(m), "failures": _text(m.failures)} for m in metrics]
    return pandas.DataFrame(rows, columns=list(Metric.__dataclass_fields__))


def markdown(metrics: Sequence[Metric]) -> str:
    """The same as a Markdown table, four significant digits, the reference as name@first eight digits of its hash."""
    lines = ["| metric | value | 95 % interval | n | failures | reference |", "| --- | --- | --- | --- | --- | --- |"]
    for m in metrics:
        reference = f"{m.reference}@{(m.reference_hash or '')[:8]}" if m.reference else ""
        cells = (m.name, f"{m.value:.4g}", f"{m.low:.4g} to {m.high:.4g}", m.n, _text(m.failures), reference)
        # A reason may come from anywhere; a bar or a line break in it would tear the table.
        lines.append("| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _text(failures: dict[str, int]) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in sorted(failures.items()))
