"""What is measured on one molecule: QED, logP, SA, and its atoms, bonds and rings; and how two sets of them differ.

QED: Bickerton et al., DOI 10.1038/nchem.1243. logP: Wildman and Crippen, DOI 10.1021/ci990307l. SA: Ertl and
Schuffenhauer, DOI 10.1186/1758-2946-1-8, 1 (easy) to 10 (hard to make), RDKit's own implementation and fragment table.
"""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from rdkit import Chem, RDConfig
from rdkit.Chem import Crippen
from rdkit.Chem.QED import qed


def sa(mol: Chem.Mol) -> float:
    """Synthetic accessibility, 1 to 10, of the molecule without explicit hydrogens (with them aspirin scores 6.44)."""
    return _sascorer().calculateScore(Chem.RemoveHs(mol))


@cache
def _sascorer() -> ModuleType:
    # RDKit ships it as a script outside its packages, so it is loaded by path; sys.path stays as it is.
    path = Path(RDConfig.RDContribDir, "SA_Score", "sascorer.py")
    if not path.exists():
        raise ModuleNotFoundError(f"RDKit's SA score is not at {path}; its wheel ships it: pip install rdkit")
    spec = importlib.util.spec_from_file_location("sascorer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def atoms(mol: Chem.Mol) -> Counter[str]:
    """Heavy atoms by element."""
    return Counter(a.GetSymbol() for a in mol.GetAtoms() if a.GetAtomicNum() > 1)


def bonds(mol: Chem.Mol) -> Counter[str]:
    """Bonds between heavy atoms by type, aromatic being a type of its own."""
    heavy = (b for b in mol.GetBonds() if min(b.GetBeginAtom().GetAtomicNum(), b.GetEndAtom().GetAtomicNum()) > 1)
    return Counter(str(b.GetBondType()).lower() for b in heavy)


def rings(mol: Chem.Mol) -> Counter[str]:
    """Rings of the smallest set of smallest rings, by size."""
    return Counter(str(len(ring)) for ring in mol.GetRingInfo().AtomRings())


VALUES = {"qed": qed, "logp": Crippen.MolLogP, "sa": sa}
PARTS = {"atoms": atoms, "bonds": bonds, "rings": rings}


@dataclass(frozen=True)
class Profile:
    """Measurements of n molecules, in their order.

    values: "qed", "logp", "sa" -> (n,) float; parts: "atoms", "bonds", "rings" -> n Counters; failures: any of these
    names -> how many molecules raised, by reason. A molecule that raised is absent under that name only.
    """

    values: dict[str, np.ndarray]
    parts: dict[str, list[Counter[str]]]
    failures: dict[str, Counter[str]]


def profile(smiles: Sequence[str]) -> Profile:
    """Measure valid SMILES; a repeated one is measured once and counted each time."""
    mols = {s: Chem.MolFromSmiles(s) for s in dict.fromkeys(smiles)}
    measured, failures = {}, {}
    for name, measure in (VALUES | PARTS).items():
        results = {s: _try(measure, mol) for s, mol in mols.items()}
        good = [results[s] for s in smiles if not isinstance(results[s], str)]
        measured[name] = np.array(good, float) if name in VALUES else good
        failures[name] = Counter(results[s] for s in smiles if isinstance(results[s], str))
    return Profile({k: measured[k] for k in VALUES}, {k: measured[k] for k in PARTS}, failures)


def _try(measure, mol: Chem.Mol) -> float | Counter[str] | str:
    try:
        result = measure(mol)
    except Exception as error:  # whatever RDKit raises on one molecule must be counted, not end the evaluation
        return f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
    if isinstance(result, Counter) or (result is not None and np.isfinite(result)):
        return result
    return f"not a number: {result}"


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """W1 between the values a (n,) and b (m,), in their unit: the area between their distribution functions.

    NaN where one is empty.
    """
    if len(a) == 0 or len(b) == 0:
        return float("nan")
    a, b = np.sort(a), np.sort(b)
    grid = np.sort(np.concatenate([a, b]))
    gap = np.searchsorted(a, grid[:-1], "right") / len(a) - np.searchsorted(b, grid[:-1], "right") / len(b)
    return float(np.abs(gap) @ np.diff(grid))


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """Half the L1 distance of two normalised histograms of counts (k,), 0 to 1.

    0 where both are empty, 1 where one is (no ring against rings).
    """
    if a.sum() == 0 or b.sum() == 0:
        return float(a.sum() != b.sum())
    return float(np.abs(a / a.sum() - b / b.sum()).sum() / 2)
