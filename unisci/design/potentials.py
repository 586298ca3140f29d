"""Potentials: energies, forces and stresses of many structures at once, from CHGNet or from any ASE calculator.

CHGNet (arXiv 2302.14231) is a graph network of the energy E(r, L); here f = -dE/dr and sigma = L^T (dE/dL) / V at fixed
fractional coordinates s = r L^-1, both from one backward pass through one forward pass of all structures.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import BaseCalculator
    from chgnet.graph.crystalgraph import CrystalGraph
    from chgnet.model import CHGNet

ABSENT = "{0} is not installed: pip install 'unisci[crystals]', or pip install {0}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """energy (eV, of all atoms), forces (n, 3) in eV/A, stress (3, 3) in eV/A^3, positive where the cell would shrink.

    reason: None, or why there is no such evaluation; all values are then NaN.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray
    reason: str | None = None

    @classmethod
    def of(cls, energy: float, forces: np.ndarray, stress: np.ndarray) -> Evaluation:
        """A failure where a value is not finite."""
        forces, stress = np.asarray(forces, np.float64), np.asarray(stress, np.float64)
        if not (np.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(stress).all()):
            return cls.failed(len(forces), "the potential gave a value that is not finite")
        return cls(float(energy), forces, (stress + stress.T) / 2)

    @classmethod
    def failed(cls, n: int, reason: str | Exception) -> Evaluation:
        """No evaluation of a structure of n atoms, and why: in words, or the exception."""
        if isinstance(reason, Exception):
            first = str(reason).strip().partition("\n")[0]
            reason = f"{type(reason).__name__}: {first}" if first else type(reason).__name__
        return cls(np.nan, np.full((n, 3), np.nan), np.full((3, 3), np.nan), reason)


Potential = Callable[[Sequence["Atoms"]], list[Evaluation]]


def ase_calculator(calculator: BaseCalculator) -> Potential:
    """A potential that asks an ASE calculator with stresses, one structure after another."""

    def evaluate(structures: Sequence[Atoms]) -> list[Evaluation]:
        return [_ask(calculator, atoms) for atoms in structures]

    return evaluate


def potential_of(calculator: Potential | BaseCalculator) -> Potential:
    """A potential as it is, an ASE calculator as one. Raises ValueError for anything else."""
    if hasattr(calculator, "get_potential_energy"):
        return ase_calculator(calculator)
    if not callable(calculator):
        raise ValueError(f"{calculator!r} is neither a potential nor an ASE calculator")
    return calculator


def _ask(calculator: BaseCalculator, atoms: Atoms) -> Evaluation:
    atoms = atoms.copy()
    atoms.calc = calculator
    try:
        return Evaluation.of(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False))
    except Exception as error:  # whatever one structure raises is its failure alone
        return Evaluation.failed(len(atoms), error)


def chgnet(model: CHGNet | None = None, batch_size: int = 8) -> Potential:
    """A potential that evaluates batch_size structures in one pass of CHGNet, on the device of the model.

    model: one that was loaded or trained; CHGNet 0.3.0 on the CPU where not given, its weights come with the package.
    An atom without a neighbour within 6 A is a failure, unless the model's graph converter says otherwise.
    Raises ImportError where chgnet is not installed, ValueError where batch_size < 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: give at least 1")
    model = _load() if model is None else model

    def evaluate(structures: Sequence[Atoms]) -> list[Evaluation]:
        out: list[Evaluation] = []
        for start in range(0, len(structures), batch_size):
            out += _evaluate(model, structures[start : start + batch_size])
        return out

    return evaluate


def _load() -> CHGNet:
    try:
        from chgnet.model import CHGNet
    except ImportError as error:
        raise ImportError(ABSENT.format("chgnet")) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its number of parameters
        return CHGNet.load(use_device="cpu", verbose=False).eval()


def _evaluate(model: CHGNet, structures: Sequence[Atoms]) -> list[Evaluation]:
    graphs, out = {}, {}
    for i, atoms in enumerate(structures):
        try:
            graphs[i] = _graph(model, atoms)
        except Exception as error:
            out[i] = Evaluation.failed(len(atoms), error)
    try:
        out |= dict(zip(graphs, _differentiate(model, list(graphs.values())), strict=True))
    except Exception as error:
        if len(structures) == 1:
            return [Evaluation.failed(len(structures[0]), error)]
        # One that breaks the pass must not take the others along.
        return [e for atoms in structures for e in _evaluate(model, [atoms])]
    return [out[i] for i in range(len(structures))]


def _graph(model: CHGNet, atoms: Atoms) -> CrystalGraph:
    from pymatgen.core import Structure

    known = model.atom_embedding.embedding.num_embeddings
    if atoms.numbers.max() > known:
        raise ValueError(f"CHGNet knows the elements 1 to {known}, not {atoms.numbers.max()}")
    structure = Structure(np.array(atoms.cell), atoms.numbers, atoms.get_scaled_positions())
    return model.graph_converter(structure)


def _differentiate(model: CHGNet, graphs: list[CrystalGraph]) -> list[Evaluation]:
    """The model's own task "efs" goes back twice, and keeps what training would need: three times as slow."""
    if not graphs:
        return []
    import torch

    device = next(model.parameters()).device
    fractional: list[Any] = [g.atom_frac_coord.detach().to(device).requires_grad_() for g in graphs]
    lattices: list[Any] = [g.lattice.detach().to(device).requires_grad_() for g in graphs]
    graphs = [g.to(device) for g in graphs]
    for g, s, lattice in zip(graphs, fractional, lattices, strict=True):
        g.atom_frac_coord, g.lattice = s, lattice
    sizes = torch.tensor([len(s) for s in fractional], device=device)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")  # of the volumes, unused
        energy = model(graphs, task="e")["e"]
        energy = energy * sizes if model.is_intensive else energy
        slopes = torch.autograd.grad(energy.sum(), fractional + lattices)
    slopes = [g.cpu().double().numpy() for g in slopes]
    cells = [lattice.detach().cpu().double().numpy() for lattice in lattices]
    k = len(graphs)
    return [
        Evaluation.of(e, -ds @ np.linalg.inv(cell).T, cell.T @ dl / abs(np.linalg.det(cell)))
        for e, ds, dl, cell in zip(energy.detach().cpu().tolist(), slopes[:k], slopes[k:], cells, strict=True)
    ]
