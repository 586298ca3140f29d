"""What the geometries of molecules are worth by the force field MMFF94: energy and strain, one row a molecule."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from unisci.domains.molecule import Molecule
from unisci.metrics.strain import Strain
from unisci.metrics.structures import mmff_strains


def mmff(molecules: Sequence[Molecule], workers: int = 2) -> pd.DataFrame:
    """energy (kcal/mol, of the first conformer as it is), strain (kcal/mol above the minimum that it falls into),
    strain_rmsd (angstrom to that, heavy atoms) and strain_reason of valid molecules with positions; NaN where the force
    field fails."""
    found = mmff_strains(molecules, workers) if molecules else []
    strains = [s if isinstance(s, Strain) else Strain(np.nan, np.nan) for s in found]
    columns = {
        "energy": [energy(m.rdkit) for m in molecules],
        "strain": [s.energy for s in strains],
        "strain_rmsd": [s.rmsd for s in strains],
        "strain_reason": pd.Series([s if isinstance(s, str) else None for s in found], dtype="object"),
    }
    return pd.DataFrame(columns)


def energy(mol: Chem.Mol) -> float:
    """kcal/mol of the first conformer; NaN where the force field lacks a parameter. Compare conformers of one molecule
    by it, never two molecules."""
    with rdBase.BlockLogs():
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        if properties is None:
            return np.nan
        return rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, properties).CalcEnergy()
