"""Judge a folder or file of molecules against a reference, and weights against their own card."""

import csv
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unisci.jobs.config import ConfigError
from unisci.jobs.models import load
from unisci.jobs.references import chemnet_statistics, read_smiles, reference
from unisci.metrics.intervals import proportion
from unisci.metrics.metric import Metric, table
from unisci.metrics.molecules import evaluate as measure


def evaluate(samples: Path, against: str | None = None, fcd: bool = True, seed: int = 0) -> list[Metric]:
    """Metrics of a run's folder, a samples.parquet, or a .smi or .csv file (one sample a line); see
    unisci.metrics.molecules.

    against: an embedded set ("qm9", "nci") or a file; fcd: also the Fréchet ChemNet distance, which needs the extra
    "metrics". Writes metrics.csv beside the samples where they are a run's folder.
    """
    smiles, reasons = _read(samples)
    known = reference(against) if against else None
    statistics = chemnet_statistics(against, known) if known is not None and fcd else None
    metrics = measure(smiles, reasons, known, statistics, seed)
    if samples.is_dir():
        table(metrics).to_csv(samples / "metrics.csv", index=False, quoting=csv.QUOTE_MINIMAL)
    return metrics


def _read(samples: Path) -> tuple[list[str | None], list[str | None] | None]:
    path = samples / "samples.parquet" if samples.is_dir() else samples
    if not path.is_file():
        raise ConfigError(f"{samples} is neither a run's folder nor a file of samples")
    if path.suffix != ".parquet":
        return [s for _, s in read_smiles(str(path))], None
    found = pd.read_parquet(path)
    none = lambda column: [None if pd.isna(v) else v for v in found[column]]
    if "smiles" not in found:
        raise ConfigError(f"{path} has no column smiles; its columns are {', '.join(found.columns)}")
    return none("smiles"), none("reason") if "reason" in found else None


Z_CHECK = 3.29  # a right card fails once in a thousand times


@dataclass(frozen=True)
class Check:
    """One number of a card, measured again. It holds where the card's value lies in the new 99.9 % interval."""

    name: str
    card: float
    measured: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low <= self.card <= self.high


def verify(weights: str, n: int = 500, seed: int = 12345) -> list[Check]:
    """Draw n molecules from weights and compare validity with what their card claims at the card's steps.

    Raises ConfigError where the card claims nothing.
    """
    designer = load(weights)
    claimed = designer.card.get("measured")
    if not claimed:
        raise ConfigError(f"the card of {weights} holds no measured numbers to compare with")
    samples = designer.generate(n, seed)
    valid = len(samples.valid())
    low, high = proportion(valid, n, Z_CHECK)
    return [Check("validity", claimed["validity"], valid / n, low, high)]
