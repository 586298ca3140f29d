"""What a designer of structures is asked to place, checked before any compute, and the draws in batches."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from rdkit import Chem

from unisci.autoregression.structures import StructureModel
from unisci.batch import Batch
from unisci.design.stereo import Hand, hand, placed
from unisci.domains.molecule import POSITION, Molecule, MoleculeError, schema
from unisci.domains.molecule_rdkit import parse_smiles
from unisci.rng import Rng

BATCH = 64  # molecules placed at once
TRIES = 20  # draws of a conformer until it has the stereochemistry asked for
MIRROR = np.array([-1.0, 1.0, 1.0])
NOTHING = Molecule((), np.zeros((0, 0), np.int8))  # stands for what could not be read


class Asked(NamedTuple):
    """text: as it was asked for; molecule: with all hydrogens as sites, no positions; target: the same with the
    stereochemistry asked for; reason: why it cannot be placed, else None."""

    text: str
    molecule: Molecule
    target: Chem.Mol | None
    reason: str | None = None


def asked(what: str | Molecule, model: StructureModel) -> Asked:
    """A SMILES, or a molecule, whose first conformer says which stereoisomer it is, if it has one.

    Raises MoleculeError where it cannot be read or placed by this model, ValueError where it is neither.
    """
    if not isinstance(what, str | Molecule):
        raise ValueError(f"a molecule is a SMILES or a Molecule, got {what!r}")
    text = what if isinstance(what, str) else what.smiles or repr(what)
    try:
        if isinstance(what, str):
            target = Chem.AddHs(parse_smiles(what))
            molecule = Molecule.from_rdkit(target, hydrogens=True)
        else:
            molecule = what.add_hydrogens()
            target = placed(molecule.rdkit, molecule.positions[0]) if molecule.conformers else molecule.rdkit
        check(molecule, model)
    except MoleculeError as error:
        raise MoleculeError(f"{text}: {error}") from error
    return Asked(text, molecule.with_positions(None), target)


def asked_or_reason(what: str | Molecule, model: StructureModel) -> Asked:
    """The same, with the reason in place of the MoleculeError."""
    try:
        return asked(what, model)
    except MoleculeError as error:
        text = what if isinstance(what, str) else what.smiles or repr(what)
        molecule = what if isinstance(what, Molecule) else NOTHING
        return Asked(text, molecule.with_positions(None), None, str(error).removeprefix(f"{text}: "))


def check(molecule: Molecule, model: StructureModel, room: int = 0) -> None:
    """Raise MoleculeError where its atoms, and `room` more, are not among those of the model, or too many."""
    classes, most = model.denoiser.product.schema["atom"].classes, len(model.sizes) - 1
    if unknown := sorted(set(molecule.atoms) - set(classes)):
        raise MoleculeError(f"this model knows no {', '.join(unknown)}; its atoms are {', '.join(classes)}")
    if len(molecule.atoms) + room > most:
        n = len(molecule.atoms) + room
        raise MoleculeError(f"{n} atoms with all hydrogens, this model places at most {most}")


def complete(molecule: Molecule, model: StructureModel) -> tuple[Molecule, str | None]:
    """With all hydrogens as sites, and why it cannot be placed, else None."""
    if molecule.reason is not None:
        return molecule, molecule.reason
    try:
        molecule = molecule.add_hydrogens()
        check(molecule, model)
        return molecule, None
    except MoleculeError as error:
        return molecule, str(error)


def keys(data: bytes, ids: Sequence[int]) -> list[int]:
    """Of the randomness of samples `ids` of an object, so that two objects share none."""
    return [(zlib.crc32(data) + i) % 2**32 for i in ids]


def draw(
    model: StructureModel,
    molecules: Sequence[Molecule],
    keys: Sequence[int],
    rng: Callable[[torch.Tensor], Rng],
    solve: Callable[[Batch, Rng], Batch],
) -> list[Molecule]:
    """solve(batch, rng) of the molecules, those of like size together; the randomness of each by its key alone."""
    classes, device = model.denoiser.product.schema["atom"].classes, model.sizes.device
    order = sorted(range(len(molecules)), key=lambda i: len(molecules[i].atoms))
    out: list[Molecule] = [NOTHING] * len(molecules)
    for k in range(0, len(order), BATCH):
        rows = order[k : k + BATCH]
        made = Molecule.batch([molecules[i] for i in rows], classes)
        ids = torch.tensor([keys[i] for i in rows])
        batch = Batch(schema(classes) | {"position": POSITION}, made.state, made.mask, {}, ids).to(device)
        for i, molecule in zip(rows, Molecule.unbatch(solve(batch, rng(batch.ids))), strict=True):
            out[i] = molecule
    return out


def conformers(
    model: StructureModel, tasks: Sequence[tuple[Asked, int]], rng: Rng, steps: int
) -> tuple[list[Molecule], list[str | None]]:
    """Conformer i of each task (what is asked for, i) that has no reason not to, and the reasons of those without.

    A draw that is the mirror image of what is asked for is reflected, another one is drawn again, TRIES times at most.
    """
    made, reasons = [a.molecule for a, _ in tasks], [a.reason for a, _ in tasks]
    own = [keys(a.text.encode(), [i])[0] for a, i in tasks]
    left = [i for i, reason in enumerate(reasons) if reason is None]
    fold = lambda batch, own: model.fold(batch, own, steps)
    for k in range(TRIES):
        stream = lambda ids, k=k: replace(rng, ids=ids).at(k)
        drawn = draw(model, [tasks[i][0].molecule for i in left], [own[i] for i in left], stream, fold)
        again = []
        for i, molecule in zip(left, drawn, strict=True):
            side = hand(tasks[i][0].target, molecule.positions[0])
            made[i] = molecule.with_positions(molecule.positions * MIRROR) if side is Hand.MIRROR else molecule
            again += [i] if side is Hand.OTHER else []
        left = again
    for i in left:
        made[i] = made[i].with_positions(None)
        reasons[i] = f"none of {TRIES} draws has the stereochemistry asked for"
    return made, reasons
