"""How good made molecules in space are: `evaluate_structures(molecules, reference)` gives a list of Metric.

Validity, uniqueness and novelty of the graphs as in unisci.metrics.molecules; stability by both rules as in
unisci.metrics.stability; distributions of lengths, angles and torsions as in unisci.metrics.internal_coordinates;
strain as in unisci.metrics.strain. Every molecule is counted: what failed is in `failures` by its reason.

    truth = [Molecule.from_rdkit(mol, hydrogens=True) for mol in Chem.SDMolSupplier("qm9.sdf", removeHs=False)]
    print(markdown([*evaluate_structures(samples, truth), pose_checks(samples)]))
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from scipy.sparse.csgraph import connected_components

from unisci.domains.molecule import Molecule
from unisci.metrics import molecules as graphs
from unisci.metrics.internal_coordinates import MEASURES, compare, gather
from unisci.metrics.intervals import proportion
from unisci.metrics.metric import Metric, markdown, table
from unisci.metrics.pose_checks import pose_checks
from unisci.metrics.stability import stability_by_bonds, stability_by_distances
from unisci.metrics.strain import Strain, fault, mmff_strain, prepare, strain_metrics
from unisci.metrics.workers import Workers

__all__ = ["Metric", "evaluate_structures", "markdown", "pose_checks", "table"]

LIMIT = 20.0  # seconds for one molecule's relaxation; most take 0.01


def evaluate_structures(
    molecules: Sequence[Molecule],
    reference: Sequence[Molecule] | None = None,
    seed: int = 0,
    workers: int = 2,
    limit: float = LIMIT,
) -> list[Metric]:
    """molecules: the samples, with hydrogens as sites and positions, of which the first conformer counts. Names:

    validity (of all), uniqueness (of valid), connected (one fragment, of all); atoms_stable_*, molecules_stable_* with
    by_distances and by_bonds, of all; mmff_strain_median, mmff_strain_mean (kcal/mol) and mmff_rmsd (angstrom) of valid
    ones. With a reference also novelty, and lengths_w1 (angstrom), angles_w1, torsions_w1 (degrees) of valid ones.

    reference: such as 10,000 molecules of the training set; novelty needs all of it. seed draws bootstrap and jackknife
    groups. workers: processes for the force field; limit: seconds for one molecule. Raises ValueError where no molecule
    of the reference is valid, with hydrogens as sites and positions.
    """
    reasons = [fault(m) for m in molecules]
    usable = [m for m, reason in zip(molecules, reasons, strict=True) if reason is None]
    failures = dict(sorted(Counter(r for r in reasons if r).items()))
    rows = [*_graphs(molecules, reference), _connected(molecules)]
    rows += [*stability_by_distances(molecules), *stability_by_bonds(molecules)]
    if reference is not None:
        rows += _distances(usable, reference, failures, seed)
    return rows + strain_metrics("mmff", [*mmff_strains(usable, workers, limit), *filter(None, reasons)], seed)


def mmff_strains(molecules: Sequence[Molecule], workers: int = 2, limit: float = LIMIT) -> list[Strain | str]:
    """The strain of each valid, complete molecule with positions, or why there is none."""
    with Workers(workers, limit, prepare) as pool:
        answers = pool.map(mmff_strain, [(m.rdkit,) for m in molecules])
    return [a.value if a.reason is None else a.reason.removeprefix("StrainError: ") for a in answers]


def _graphs(molecules: Sequence[Molecule], reference: Sequence[Molecule] | None) -> list[Metric]:
    # A reason names its atom, "unfinished: C at 3 has 3 of 4 bonds"; without the place equal ones are counted together.
    reasons = [m.reason and m.reason.partition(" at ")[0] for m in molecules]
    reading = graphs.read([m.smiles for m in molecules], reasons)
    rows = [graphs.validity(reading), graphs.uniqueness(reading)]
    if reference is None:
        return rows
    known = graphs.Reference.from_smiles("reference", [m.smiles for m in reference if m.smiles is not None])
    return [*rows, graphs.novelty(reading, known)]


def _connected(molecules: Sequence[Molecule]) -> Metric:
    pieces = Counter(int(connected_components(m.bonds)[0]) for m in molecules)
    n, k = len(molecules), pieces.pop(1, 0)
    failures = {f"{c} fragments" if c else "no atoms": count for c, count in sorted(pieces.items())}
    return Metric("connected", k / n if n else float("nan"), *proportion(k, n), n, failures)


def _distances(
    usable: Sequence[Molecule], reference: Sequence[Molecule], failures: dict[str, int], seed: int
) -> list[Metric]:
    known = [m for m in reference if fault(m) is None]
    if not known:
        raise ValueError(f"none of the {len(reference)} reference molecules is valid with positions and hydrogen sites")
    stamp, rows = _digest(known), []
    for name, (measure, distance) in MEASURES.items():
        here, there = (gather([m.rdkit for m in side], measure) for side in (usable, known))
        row = compare(f"{name}_w1", here, there, distance, seed)
        rows.append(replace(row, failures=failures | row.failures, reference="reference", reference_hash=stamp))
    return rows


def _digest(molecules: Sequence[Molecule]) -> str:
    """sha256 of atoms, bonds and positions to 0.001 angstrom, independent of the order of the molecules."""
    # Adding 0 turns -0 into 0.
    lines = sorted(" ".join(m.to_text()) + str((m.positions[0].round(3) + 0.0).tolist()) for m in molecules)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
