"""How well made conformers cover those of a reference: COV and MAT (arXiv 2106.07802), and ETKDGv3 to compare with.

d_kl is the distance of made conformer k to reference conformer l, over heavy atoms, at its least over rotations and the
symmetries of the graph. For one molecule, at the threshold delta (0.5 angstrom for QM9, 0.75 or 1.25 for drugs),
    COV_R = share of l with min_k d_kl <= delta,  MAT_R = mean_l min_k d_kl;  COV_P, MAT_P: the same, k and l swapped.
Recall rises with the number of made conformers; the custom is twice as many as the reference has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers

from unisci.domains.molecule import Molecule
from unisci.metrics.conformer_distances import Coverage, coverage, distances, prepare
from unisci.metrics.intervals import bootstrap_mean, median_interval
from unisci.metrics.metric import Metric
from unisci.metrics.workers import Workers

LIMIT = 120.0  # seconds for all pairs of conformers of one molecule
TRIES = 30  # conformers drawn for each that is wanted, where chirality cannot be enforced
STEPS = 5000  # of a relaxation by the force field

Made = Molecule | Sequence[Molecule] | None


def evaluate_conformers(
    made: Sequence[Made],
    reference: Sequence[Molecule],
    threshold: float = 0.5,
    seed: int = 0,
    workers: int = 2,
    limit: float = LIMIT,
) -> list[Metric]:
    """made[i]: conformers of the molecule reference[i], as one Molecule, or as several, or None for a failure. Names:

    cov_recall, mat_recall, cov_precision, mat_precision: means over molecules; *_median: medians; COV as a share, MAT
    in angstrom. failures counts molecules and, as "conformers: ...", single conformers. A molecule that failed, in a
    time limit too, has COV 0 and no MAT; a conformer that failed (an invalid molecule, another molecule) counts in
    COV_P as one that is near nothing. threshold: angstrom; workers: processes; limit: seconds a molecule.

    Raises ValueError where the lengths differ, a reference has no conformer or no heavy atom or is not valid, or
    threshold <= 0.
    """
    if len(made) != len(reference):
        raise ValueError(
            f"{len(made)} entries made for {len(reference)} reference molecules: give one (or None) to each"
        )
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; it must be a length above 0 angstrom")
    targets = [_heavy(m) for m in reference]
    for i, (m, target) in enumerate(zip(reference, targets, strict=True)):
        if isinstance(target, str):
            raise ValueError(f"reference[{i}], {m!r}, cannot be covered: {target}")
    entries = [[e] if isinstance(e, Molecule) else list(e or ()) for e in made]
    tasks = [([_heavy(m) for m in e], t) for e, t in zip(entries, targets, strict=True)]
    with Workers(workers, limit, prepare) as pool:
        answers = pool.map(distances, tasks)
    scores, failures = [], Counter()
    for answer in answers:
        matrix, faults = answer.value or (np.zeros((0, 0)), {answer.reason: 1})
        scores.append(coverage(matrix, threshold))
        if np.isnan(scores[-1].mat_recall):
            failures[answer.reason or "no conformer"] += 1
        failures.update({f"conformers: {reason}": count for reason, count in faults.items() if answer.reason is None})
    return _metrics(scores, dict(sorted(failures.items())), seed)


def etkdg(molecule: Molecule, n: int, seed: int = 0, relaxed: bool = False) -> Molecule:
    """The molecule with hydrogens as sites and n conformers by ETKDGv3 (Wang et al., DOI 10.1021/acs.jcim.0c00025).

    Its graph is all that is used of it, and where it has positions the stereochemistry of the first conformer; without
    positions every stereocentre is drawn. relaxed: by MMFF94.
    Raises ValueError where n < 1, the molecule is not valid, MMFF94 lacks a parameter, RDKit fails, or fewer than n are
    found.
    """
    if n < 1:
        raise ValueError(f"{n} conformers; n must be at least 1")
    complete = molecule.add_hydrogens()
    try:
        with rdBase.BlockLogs():
            mol = _embed(complete.rdkit, n, seed)
            if relaxed and not rdForceFieldHelpers.MMFFHasAllMoleculeParams(mol):
                raise ValueError(f"MMFF94 lacks a parameter for {molecule.smiles}: leave relaxed at False")
            if relaxed:
                rdForceFieldHelpers.MMFFOptimizeMoleculeConfs(mol, maxIters=STEPS)
    except RuntimeError as error:  # a broken minimisation inside RDKit
        raise ValueError(f"RDKit failed on {molecule.smiles}: {str(error).strip().splitlines()[0]}") from error
    if mol.GetNumConformers() < n:
        raise ValueError(f"ETKDG found {mol.GetNumConformers()} of {n} conformers of {molecule.smiles}")
    return complete.with_positions(np.stack([c.GetPositions() for c in mol.GetConformers()]))


def _embed(graph: Chem.Mol, n: int, seed: int) -> Chem.Mol:
    """The molecule with up to n new conformers, of the stereoisomer of its first one, where it has one."""
    parameters = rdDistGeom.ETKDGv3()
    # RDKit's seed of conformer i is seed + i; neighbouring seeds must not share conformers, so they are spread.
    parameters.randomSeed = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 2)
    parameters.enableSequentialRandomSeeds = True
    mol, wanted = Chem.Mol(graph), None
    if mol.GetNumConformers():
        wanted = _stereoisomer(mol, mol.GetConformer().GetId())
    rdDistGeom.EmbedMultipleConfs(mol, n, parameters)
    if mol.GetNumConformers() == n:
        return mol
    # Chirality that is enforced fails on cages, which 4 % of QM9 are; there it is drawn freely and then chosen.
    mol = Chem.Mol(graph)
    parameters.enforceChirality, parameters.useRandomCoords = False, True
    free = list(rdDistGeom.EmbedMultipleConfs(mol, TRIES * n, parameters))
    right = [i for i in free if wanted is None or _stereoisomer(Chem.Mol(mol), i) == wanted][:n]
    for i in set(free) - set(right):
        mol.RemoveConformer(i)
    return mol


def _stereoisomer(mol: Chem.Mol, conformer: int) -> str:
    """SMILES with the stereochemistry of a conformer, which the molecule then carries."""
    Chem.AssignStereochemistryFrom3D(mol, conformer)
    return Chem.MolToSmiles(mol)


def _heavy(molecule: Molecule | None) -> Chem.Mol | str:
    """The RDKit molecule without hydrogens, or why it cannot be compared."""
    if molecule is None:
        return "not made"
    if molecule.reason is not None:
        return f"not valid: {molecule.reason.partition(' at ')[0]}"
    if molecule.positions is None:
        return "no positions"
    heavy = molecule.heavy()
    return heavy.reason if heavy.rdkit is None else heavy.rdkit


def _metrics(scores: Sequence[Coverage], failures: dict[str, int], seed: int) -> list[Metric]:
    rows = []
    for name in Coverage._fields:
        x = np.array([getattr(s, name) for s in scores], float)
        x = x[np.isfinite(x)]
        mean, median = (float(x.mean()), float(np.median(x))) if len(x) else (float("nan"),) * 2
        rows.append(Metric(name, mean, *bootstrap_mean(x, seed), len(x), failures))
        rows.append(Metric(f"{name}_median", median, *median_interval(x), len(x), failures))
    return rows
