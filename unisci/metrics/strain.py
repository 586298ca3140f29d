"""Strain: how far a made geometry is from the minimum it falls into, in energy and in distance.

    strain = E(made) - E(relaxed),   rmsd = min over rotations and translations of |made - relaxed| over heavy atoms,
E being MMFF94 (Halgren, DOI 10.1002/(SICI)1096-987X(199604)17:5/6<490::AID-JCC1>3.0.CO;2-P) or any ASE calculator, such
as GFN2-xTB (DOI 10.1021/acs.jctc.8b01176) of package tblite. Hydrogens must be sites, and are relaxed too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdForceFieldHelpers

from unisci.metrics.intervals import bootstrap_mean, median_interval
from unisci.metrics.metric import Metric

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

    from unisci.domains.molecule import Molecule

STEPS = 5000  # of the force field's relaxation; most molecules take less than 500


class StrainError(ValueError):
    """A molecule whose strain cannot be measured; the message is the reason."""


class Strain(NamedTuple):
    """energy in kcal/mol, rmsd in angstrom."""

    energy: float
    rmsd: float


def prepare() -> None:
    """For a new worker process: to call it imports this module, and that is all."""


def fault(molecule: Molecule) -> str | None:
    """Why a molecule is not one in space with all its atoms, None where it is."""
    if molecule.reason is not None:
        return f"not valid: {molecule.reason.partition(':')[0]}"
    if molecule.positions is None:
        return "no positions"
    return None if molecule.explicit else "implicit hydrogens"


def mmff_strain(mol: Chem.Mol) -> Strain:
    """Of the first conformer of a sanitised molecule with all its hydrogens, by MMFF94.

    Raises StrainError where the force field lacks a parameter, gives no finite energy, or does not converge.
    """
    with rdBase.BlockLogs():
        relaxed = Chem.Mol(mol)
        properties = rdForceFieldHelpers.MMFFGetMoleculeProperties(relaxed)
        if properties is None:
            raise StrainError("MMFF94 lacks a parameter")
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(relaxed, properties)
        before = field.CalcEnergy()
        if not np.isfinite(before):
            raise StrainError("MMFF94 gives no finite energy")
        if field.Minimize(maxIts=STEPS) != 0:
            raise StrainError("MMFF94 did not converge")
    heavy = [a.GetIdx() for a in mol.GetAtoms() if a.GetAtomicNum() > 1]
    first, last = (m.GetConformer().GetPositions()[heavy] for m in (mol, relaxed))
    return Strain(before - field.CalcEnergy(), superposed_rmsd(first, last))


def strain(molecule: Molecule, calculator: BaseCalculator, fmax: float = 0.01, steps: int = 500) -> Strain:
    """Of the first conformer, relaxed by ASE's L-BFGS until no force is above fmax (eV/angstrom), in `steps` at most.

    calculator: for GFN2-xTB `tblite.ase.TBLite(method="GFN2-xTB")`; it sees the formal charges as initial charges.
    Raises StrainError where the molecule is not valid, has no positions or implicit hydrogens, or does not converge.
    What the calculator raises goes through.
    """
    from ase import Atoms, units
    from ase.optimize import LBFGS

    if (reason := fault(molecule)) is not None:
        raise StrainError(reason)
    sites = list(molecule.rdkit.GetAtoms())
    charges = [a.GetFormalCharge() for a in sites]
    atoms = Atoms([a.GetAtomicNum() for a in sites], molecule.positions[0], charges=charges)
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    if not LBFGS(atoms, logfile=None).run(fmax=fmax, steps=steps):
        raise StrainError(f"not converged to {fmax} eV/A in {steps} steps")
    heavy = atoms.numbers > 1
    energy = (before - atoms.get_potential_energy()) / (units.kcal / units.mol)
    return Strain(float(energy), superposed_rmsd(molecule.positions[0][heavy], atoms.positions[heavy]))


def rotation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The proper rotation R (3, 3) with which a R is nearest to b, both (n, 3) about one origin (Kabsch, DOI
    10.1107/S0567739476001873)."""
    u, _, v = np.linalg.svd(a.T @ b)
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(v))]) @ v


def superposed_rmsd(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square distance of positions a, b (n, 3) after the best translation and proper rotation; 0 for no
    atoms."""
    if len(a) == 0:
        return 0.0
    a, b = a - a.mean(0), b - b.mean(0)
    return float(np.sqrt(np.square(a @ rotation(a, b) - b).sum() / len(a)))


def strain_metrics(name: str, results: Sequence[Strain | str], seed: int = 0) -> list[Metric]:
    """{name}_strain_median, {name}_strain_mean (kcal/mol) and {name}_rmsd (angstrom, mean).

    results: one a molecule, its strain or why there is none; the reasons are the failures of all three.
    """
    good = [r for r in results if isinstance(r, Strain)]
    failures = dict(sorted(Counter(r for r in results if isinstance(r, str)).items()))
    energy, rmsd = (np.array([r[k] for r in good], float) for k in (0, 1))
    n = len(good)
    median = float(np.median(energy)) if n else float("nan")
    rows = [Metric(f"{name}_strain_median", median, *median_interval(energy), n, failures)]
    for label, x in ((f"{name}_strain_mean", energy), (f"{name}_rmsd", rmsd)):
        mean = float(x.mean()) if n else float("nan")
        rows.append(Metric(label, mean, *bootstrap_mean(x, seed), n, failures))
    return rows
