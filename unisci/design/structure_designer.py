"""StructureDesigner: molecules in space behind one call, conformers, graphs of shapes, grown fragments."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from unisci.autoregression.structures import StructureModel
from unisci.design.designer import Designer, check_ids
from unisci.design.samples import Samples
from unisci.design.structure_orders import Draw, structural
from unisci.design.structure_parts import grown, named, shapes
from unisci.design.structure_samples import StructureSamples
from unisci.design.structure_tasks import BATCH, asked, asked_or_reason, complete, conformers, draw
from unisci.design.table import OWN
from unisci.design.wants import Want, Wants
from unisci.domains.molecule import Molecule
from unisci.rng import Rng

AT_ONCE = 50  # network calls of a draw of all fields together, by default
GENERATE, CONFORMERS, GRAPHS, GROW = range(10, 14)  # streams of randomness


@dataclass(frozen=True)
class StructureDesigner:
    """graphs: what draws heavy-atom graphs; structures: what places atoms and draws all together; steps: network calls
    of a conformer that the card's numbers were measured at; hash: of the weights; card: what they say of themselves."""

    graphs: Designer
    structures: StructureModel
    steps: int
    hash: str
    card: dict

    def generate(
        self,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        where: Want | Wants | Sequence[Want] | None = None,
        particles: int = 4,
        push: float = 1.0,
        at_once: bool = False,
        order: Draw | None = None,
    ) -> StructureSamples:
        """n new molecules in space (samples 0 to n - 1 of the seed), or the samples `ids` again.

        By default the heavy-atom graph is drawn first, steered by where, particles and push as `Designer.generate` has
        them; then come the hydrogens by valence, and the positions in `steps` network calls. A graph that is not valid,
        or not for the model of structures, stays as a row with its reason and without positions. at_once: all fields,
        hydrogens too, are drawn together; order: so, but block by block, such as `structure_orders.structural`, with
        `steps` calls a block. A sample depends on the weights, (seed, id), steps and what it is steered by, not on n or
        batch_size. Raises ValueError where an argument makes no sense, before anything is drawn.
        """
        made = self.stream(n, seed, steps, ids, batch_size, where, particles, push, at_once, order)
        return StructureSamples.join(list(made))

    def stream(
        self,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        where: Want | Wants | Sequence[Want] | None = None,
        particles: int = 4,
        push: float = 1.0,
        at_once: bool = False,
        order: Draw | None = None,
    ) -> Iterator[StructureSamples]:
        """The same, batch by batch, so that memory does not grow with n."""
        ids = check_ids(n, ids)
        together = at_once or order is not None
        if together and where is not None:
            raise ValueError("where steers the drawing of graphs: leave out at_once and order")
        steps = self._steps(steps, AT_ONCE if together and order is None else None)
        if together:
            _check_seed(seed, batch_size)
            size = batch_size or BATCH
            parts = (ids[k : k + size] for k in range(0, len(ids), size))
            return (self._together(part, seed, steps, order) for part in parts)
        graphs = self.graphs.stream(
            seed=seed, ids=ids, batch_size=batch_size, where=where, particles=particles, push=push
        )
        return (self._placed(made, seed, steps) for made in graphs)

    def conformers(
        self, molecules: str | Molecule | Sequence[str | Molecule], n: int, seed: int = 0, steps: int | None = None
    ) -> StructureSamples:
        """n conformers of a SMILES or molecule, or of each of several; ids 0 to n - 1 of each, its text as `input`.

        The stereochemistry that a SMILES names, or the positions of a molecule show, is kept: a draw that is its mirror
        image is reflected, another one is drawn again, 20 times at most, and is then a row with the reason. Conformer i
        depends on the weights, (seed, i), steps and the molecule as it is written. Raises MoleculeError for a
        molecule that cannot be read or placed, where it is asked for alone; in a sequence it is one row with the
        reason. Raises ValueError where n, seed or steps make no sense, or there is no molecule.
        """
        steps = self._steps(steps)
        _check_seed(seed, n)
        if isinstance(molecules, str | Molecule):
            wanted = [asked(molecules, self.structures)]
        else:
            wanted = [asked_or_reason(m, self.structures) for m in molecules]
        if not wanted:
            raise ValueError("no molecules: give a SMILES or a Molecule, or a sequence of them")
        began = time.perf_counter()
        tasks = [(a, i) for a in wanted for i in range(1 if a.reason else n)]
        rng = Rng(seed, torch.zeros(0, dtype=torch.long)).at(CONFORMERS)
        made, reasons = conformers(self.structures, tasks, rng, steps)
        seconds = (time.perf_counter() - began) / len(tasks)
        extra = pd.DataFrame({"input": [a.text for a, _ in tasks]})
        return StructureSamples.of(made, [i for _, i in tasks], seconds, self.hash, seed, reasons, extra)

    def graphs_of(
        self, positions: np.ndarray | Sequence[np.ndarray], n: int = 1, seed: int = 0, steps: int | None = None
    ) -> StructureSamples:
        """n molecules whose atoms, hydrogens too, lie at positions (N, 3) in angstrom, or at those of each of several
        arrays: their elements and bonds are drawn. The column `shape` is the number of the array.

        Raises ValueError where an array is no such positions or is of too many atoms, or n, seed or steps make no
        sense.
        """
        steps = self._steps(steps)
        _check_seed(seed, n)
        arrays = shapes(positions, len(self.structures.sizes) - 1)
        began, ids = time.perf_counter(), [i for _ in arrays for i in range(n)]
        made = named(self.structures, arrays, n, lambda ids: Rng(seed, ids).at(GRAPHS), steps)
        extra = pd.DataFrame({"shape": [k for k in range(len(arrays)) for _ in range(n)]})
        seconds = (time.perf_counter() - began) / len(made)
        return StructureSamples.of(made, ids, seconds, self.hash, seed, extra=extra)

    def grow(
        self, fragment: Molecule, n: int, atoms: int | None = None, seed: int = 0, steps: int | None = None
    ) -> StructureSamples:
        """n molecules that hold a fragment: its atoms come first, with their bonds and coordinates (of its first
        conformer) as they are; all others, hydrogens too, are drawn.

        fragment: with positions; its valences may be open, and hydrogens that it shows stay. atoms: of the whole
        molecule with hydrogens; by default each sample draws it as the training molecules have it. Raises MoleculeError
        where the fragment is not for this model, ValueError where it has no positions or another argument makes no
        sense.
        """
        steps = self._steps(steps, AT_ONCE)
        _check_seed(seed, n)
        began = time.perf_counter()
        made = grown(self.structures, fragment, n, atoms, lambda ids: Rng(seed, ids).at(GROW), steps)
        return StructureSamples.of(made, range(n), (time.perf_counter() - began) / n, self.hash, seed)

    def to(self, device: torch.device | str) -> "StructureDesigner":
        """The same designer with its models moved to a device."""
        return replace(self, graphs=self.graphs.to(device), structures=self.structures.to(device))

    def _steps(self, steps: int | None, default: int | None = None) -> int:
        steps = (default or self.steps) if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        return steps

    def _placed(self, graphs: Samples, seed: int, steps: int) -> StructureSamples:
        """Samples of graphs with all hydrogens and positions."""
        began = time.perf_counter()
        found = [complete(m, self.structures) for m in graphs]
        rows = [i for i, (_, reason) in enumerate(found) if reason is None]
        ids, molecules = graphs.table["id"].tolist(), [m for m, _ in found]
        rng = lambda ids: Rng(seed, ids).at(GENERATE)
        fold = lambda batch, own: self.structures.fold(batch, own, steps)
        placed = draw(self.structures, [molecules[i] for i in rows], [ids[i] for i in rows], rng, fold)
        for i, molecule in zip(rows, placed, strict=True):
            molecules[i] = molecule
        extra = graphs.table.drop(columns=list(OWN))
        seconds = graphs.table["seconds"] + (time.perf_counter() - began) / len(ids)
        return StructureSamples.of(molecules, ids, seconds, self.hash, seed, [reason for _, reason in found], extra)

    def _together(self, ids: Sequence[int], seed: int, steps: int, order: Draw | None) -> StructureSamples:
        """Samples of all fields at once, or block by block."""
        began = time.perf_counter()
        rng = Rng(seed, torch.tensor(ids, device=self.structures.sizes.device)).at(GENERATE)
        blocks = None if order is None else order(self.structures, rng)
        made = self.structures.generate(rng, steps, order=blocks, told=order is structural)
        seconds = (time.perf_counter() - began) / len(ids)
        return StructureSamples.of(Molecule.unbatch(made), ids, seconds, self.hash, seed)


def _check_seed(seed: int, count: int | None) -> None:
    Rng(seed, torch.zeros(0))  # refuses a bad seed before any compute
    if count is not None and count < 1:
        raise ValueError(f"n and batch_size must be at least 1, got {count}")
