"""Judge a folder or file of molecules or crystals against a reference, and weights against their own card."""

import csv
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from unisci.design.crystal_samples import CrystalSamples
from unisci.design.structure_samples import POSITIONS, StructureSamples
from unisci.domains.crystal_files import read_crystals
from unisci.jobs.config import ConfigError
from unisci.jobs.models import load
from unisci.jobs.references import chemnet_statistics, read_smiles, reference
from unisci.metrics.crystals import Reference, evaluate_generation
from unisci.metrics.intervals import proportion
from unisci.metrics.metric import Metric, table
from unisci.metrics.molecules import evaluate as measure
from unisci.metrics.stability import stability_by_bonds, stability_by_distances


def evaluate(samples: Path, against: str | None = None, fcd: bool = True, seed: int = 0) -> list[Metric]:
    """Metrics of a run's folder, a samples.parquet, or a .smi or .csv file (one sample a line); see
    unisci.metrics.molecules.

    Of molecules in space also their stability, see unisci.metrics.stability. Crystals, a run's folder or
    samples.parquet of them, are judged against a file or folder that `read_crystals` reads.
    against: an embedded set ("qm9", "nci") or a file; fcd: also the Fréchet ChemNet distance, which needs the extra
    "metrics". Writes metrics.csv beside the samples where they are a run's folder.
    """
    if (path := _table(samples, "lattice")) is not None:
        metrics = _judge_crystals(path, against, seed)
        return _written(metrics, samples)
    smiles, reasons = _read(samples)
    known = reference(against) if against else None
    statistics = chemnet_statistics(against, known) if known is not None and fcd else None
    metrics = measure(smiles, reasons, known, statistics, seed)
    if (path := _table(samples, POSITIONS)) is not None:
        placed = StructureSamples.from_parquet(path)
        metrics += [*stability_by_distances(placed), *stability_by_bonds(placed)]
    return _written(metrics, samples)


def _written(metrics: list[Metric], samples: Path) -> list[Metric]:
    if samples.is_dir():
        table(metrics).to_csv(samples / "metrics.csv", index=False, quoting=csv.QUOTE_MINIMAL)
    return metrics


def _table(samples: Path, column: str) -> Path | None:
    """The table of the samples, where it has a column."""
    path = samples / "samples.parquet" if samples.is_dir() else samples
    is_table = path.suffix == ".parquet" and path.is_file()
    return path if is_table and column in pq.read_schema(path).names else None


def _judge_crystals(path: Path, against: str | None, seed: int) -> list[Metric]:
    if against is None:
        raise ConfigError("crystals are judged against others: --reference with a folder of CIFs or a table of them")
    found = read_crystals(against)
    if not found.crystals:
        raise ConfigError(f"{against} holds no crystal that can be read: {found.rejects['reason'].head(3).tolist()}")
    reference = Reference.from_crystals(Path(against).name, found.crystals)
    return evaluate_generation(list(CrystalSamples.from_parquet(path)), reference, seed=seed)


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
    """Draw n samples from weights and compare validity, and of molecules in space stability, with what their card
    claims at the card's steps.

    Raises ConfigError where the card claims nothing.
    """
    designer = load(weights)
    claimed = designer.card.get("measured")
    if not claimed:
        raise ConfigError(f"the card of {weights} holds no measured numbers to compare with")
    samples = designer.generate(n, seed=seed)
    valid = len(samples.valid())
    low, high = proportion(valid, n, Z_CHECK)
    checks = [Check("validity", claimed["validity"], valid / n, low, high)]
    return checks + (_stability(samples, claimed) if isinstance(samples, StructureSamples) else [])


def _stability(samples: StructureSamples, claimed: dict) -> list[Check]:
    """What the card claims of whole molecules, by the rules of unisci.metrics.stability."""
    found = [*stability_by_distances(samples), *stability_by_bonds(samples)]
    intervals = {
        m.name: (m.value, *proportion(round(m.value * m.n), m.n, Z_CHECK)) for m in found if "molecules" in m.name
    }
    return [Check(name, claimed[name], *values) for name, values in intervals.items() if name in claimed]
