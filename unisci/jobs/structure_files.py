"""Molecules in space of an SDF, or of SMILES that RDKit embeds: those that can be learnt from, and the others."""

from pathlib import Path

from unisci.domains.molecule import Molecule, MoleculeError
from unisci.domains.molecule_files import read_sdf
from unisci.jobs.references import read_smiles
from unisci.jobs.structure_config import StructureDataConfig
from unisci.metrics.conformers import etkdg

Reject = tuple[int, str, str]  # number of the row, name, reason


def of_sdf(config: StructureDataConfig, path: Path) -> tuple[list[Molecule], list[Reject]]:
    """One molecule a record; hydrogens that a record leaves out are placed by RDKit."""
    molecules, rejects, _ = read_sdf(path)
    refused = {k for k, _, _ in rejects}
    rows = (k for k in range(len(molecules) + len(rejects)) if k not in refused)
    good = []
    for k, molecule in zip(rows, molecules, strict=True):
        if config.limit is None or k < config.limit:
            _take(config, k, molecule.smiles or "", molecule, good, rejects)
    return good, sorted(r for r in rejects if config.limit is None or r[0] < config.limit)


def embedded(config: StructureDataConfig, path: Path) -> tuple[list[Molecule], list[Reject]]:
    """One conformer by ETKDGv3 of each SMILES, those that are too large first rejected."""
    good, rejects = [], []
    for k, (line, smiles) in enumerate(read_smiles(str(path))):
        if config.limit is not None and k == config.limit:
            break
        try:
            molecule = Molecule.from_smiles(smiles, hydrogens=True)
            if len(molecule.atoms) <= config.max_atoms:
                molecule = etkdg(molecule, 1, seed=k)
        except ValueError as error:
            rejects.append((line, smiles, str(error)))
            continue
        _take(config, line, smiles, molecule, good, rejects)
    return good, rejects


def _take(
    config: StructureDataConfig, row: int, name: str, molecule: Molecule, good: list[Molecule], rejects: list[Reject]
) -> None:
    """Into one of the two lists."""
    try:
        molecule = molecule.add_hydrogens()
    except MoleculeError as error:
        rejects.append((row, name, str(error)))
        return
    if len(molecule.atoms) > config.max_atoms:
        rejects.append((row, name, f"too large: {len(molecule.atoms)} atoms, data.max_atoms = {config.max_atoms}"))
    else:
        good.append(molecule)
