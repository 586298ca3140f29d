"""A small untrained model and a job that trains in seconds: what the tests of jobs and designs run on."""

from pathlib import Path

import torch
from rdkit import RDConfig

from unisci.domains.molecule import Molecule, MoleculeError
from unisci.jobs.config import ModelConfig, MoleculeJob, NetworkConfig
from unisci.jobs.models import build, save_weights
from unisci.jobs.references import read_smiles

SIZES = NetworkConfig(width=16, pair_width=8, layers=1, heads=2, product=2)
MODEL = ModelConfig(denoiser=SIZES, head=SIZES)
CLASSES = ("C", "O", "N", "F", "N+1")
STEPS = 3
NCI = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"


def untrained(seed: int = 11, config: ModelConfig = MODEL):
    """A Pard with random weights; a good part of what it draws is valid, the rest invalid for several reasons."""
    torch.manual_seed(seed)
    first = torch.zeros(4, 4)
    first[1:, 0] = torch.tensor([8.0, 2.0, 1.0])
    atom, bond = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]), torch.tensor([0.5, 0.47, 0.02, 0.01])
    return build(config, CLASSES, 6, atom, bond, first)


def write_weights(path: Path, seed: int = 11, **card) -> str:
    """Write the untrained model; returns the path as the text that `load` and `generate` take."""
    save_weights(path, untrained(seed), MODEL, STEPS, {"summary": "untrained"} | card)
    return str(path)


def small_smiles(count: int = 120, most: int = 6) -> list[str]:
    """The first molecules of RDKit's NCI set with at most `most` heavy atoms."""
    found = []
    for _, smiles in read_smiles("nci"):
        try:
            small = len(Molecule.from_smiles(smiles).atoms) <= most
        except MoleculeError:
            continue
        if small:
            found.append(smiles)
        if len(found) == count:
            return found
    raise AssertionError("the NCI set is smaller than it was")


def small_job(out: Path, smiles: Path, **changes) -> MoleculeJob:
    """A job of 12 steps on a file of SMILES; changes: whole groups, such as training={"steps": 3}."""
    values = {
        "job": "molecules",
        "out": out,
        "data": {"smiles": str(smiles)} | changes.pop("data", {}),
        "model": MODEL,
        "training": {"steps": 12, "batch_size": 8, "ema": 0.9, "warmup": 2, "checkpoint_every": 4}
        | changes.pop("training", {}),
        "sample": {"n": 6, "steps": 2} | changes.pop("sample", {}),
    }
    return MoleculeJob.model_validate(values | changes)
