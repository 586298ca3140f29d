"""The configuration of the job that trains a generator of molecules in space."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from unisci.jobs.base_config import Strict, TrainingConfig


class StructureDataConfig(Strict):
    """structures: an .sdf, a .safetensors of collated molecules (see datasets/qm9), or SMILES as of molecules, which
    RDKit embeds; limit: the first rows of these; every `hold_out`-th row judges the model (0 = none); max_atoms: with
    hydrogens; the job refuses to start where more than `max_rejected` of the rows cannot be held."""

    structures: str
    hold_out: int = Field(25, ge=0)
    limit: int | None = Field(None, ge=1)
    max_atoms: int = Field(64, ge=1, le=128)
    max_rejected: float = Field(0.05, ge=0, le=1)


class StructureModelConfig(Strict):
    """Sizes of an AtomTransformer; parts: of the draws that make all at once, the share that learns a part of the
    sites; scale: angstrom, standard deviation of positions."""

    width: int = Field(128, ge=1)
    layers: int = Field(5, ge=1)
    heads: int = Field(8, ge=1)
    edge: int = Field(40, ge=1)
    radial: int = Field(24, ge=1)
    parts: float = Field(0.3, ge=0, le=1)
    scale: float = Field(1.4, gt=0)


class StructureTraining(TrainingConfig):
    """validate_samples: held-out molecules that judge the model."""

    steps: int = Field(11_000, ge=1)
    validate_samples: int = Field(1000, ge=1)


class StructureSample(Strict):
    """n molecules after training (0 = none); steps: network calls of a conformer, here and of the weights."""

    n: int = Field(0, ge=0)
    steps: int = Field(20, ge=1)
    seed: int = Field(0, ge=0)


class StructureJob(Strict):
    """Train what places the atoms of molecules, and draws them all together. graphs: weights, by name or file, that
    draw the heavy-atom graphs; they are copied into the weights that the job writes."""

    job: Literal["molecules3d"]
    out: Path
    graphs: str = "molecules-qm9"
    data: StructureDataConfig
    model: StructureModelConfig = StructureModelConfig()
    training: StructureTraining = StructureTraining()
    sample: StructureSample = StructureSample()
