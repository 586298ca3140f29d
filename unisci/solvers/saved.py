"""Programs as JSON, in a file or in the header of the weights that they were searched for."""

import json
from pathlib import Path
from typing import Any

import torch

from unisci.processes.gaussian import Gaussian
from unisci.solvers.program import Program
from unisci.solvers.tape import Row

FORMAT = "unisci program 1"


def fingerprint(process: Gaussian, grid: tuple[float, ...]) -> list[list[float]]:
    """alpha and sigma of the process at the grid's times: what a program's coefficients were made of."""
    alpha, sigma = process.level(torch.tensor(grid, dtype=torch.float64))
    return torch.stack([alpha, sigma], 1).tolist()


def to_json(program: Program) -> dict:
    """A program of one grid as what `json.dumps` takes. Raises ValueError for one with a grid for each sample."""
    rows = [row for step in program.steps for row in step]
    if any(isinstance(row.time, torch.Tensor) for row in rows):
        raise ValueError(f"{program.name} has a grid for each sample; save the programs it was stacked from")
    return {
        "format": FORMAT,
        "name": program.name,
        "order": program.order,
        "model": program.model,
        "process": repr(program.process),
        "grid": program.grid,
        "fingerprint": fingerprint(program.process, program.grid),
        "steps": program.steps,
    }


def save(program: Program, path: str | Path) -> None:
    """Write a program of one grid as JSON. Raises ValueError for one with a grid for each sample."""
    Path(path).write_text(json.dumps(to_json(program), indent=1) + "\n")


def load(path: str | Path, process: Gaussian, model: str | None = None) -> Program:
    """Read a program back, bit for bit.

    Raises ValueError where the file is none or damaged, and as `of_json`.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable program ({error}); search or compile it again") from error
    return of_json(content, process, model, str(path))


def of_json(content: Any, process: Gaussian, model: str | None = None, path: str = "the content") -> Program:
    """The program that `to_json` wrote, bit for bit; path: its name in messages.

    Raises ValueError where it is none, where alpha and sigma of `process` on the program's grid differ from those it
    was made with by more than a part in 10^6, and where the program was searched for one model and `model` names
    another; None does not ask.
    """
    try:
        assert content["format"] == FORMAT
        program = Program(
            content["name"],
            process,
            tuple(map(float, content["grid"])),
            tuple(tuple(_row(row) for row in step) for step in content["steps"]),
            int(content["order"]),
            content["model"],
        )
        want = torch.tensor(content["fingerprint"], dtype=torch.float64)
        made_with = content["process"]
        assert want.shape == (len(program.grid), 2) and len(program.steps) == len(program.grid) - 1
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable program ({error or 'wrong format'}); search or compile it again"
        ) from error
    have = torch.tensor(fingerprint(process, program.grid), dtype=torch.float64)
    if not torch.allclose(have, want, rtol=1e-6, atol=1e-9):
        raise ValueError(f"{path} was made for {made_with}, not for {process}: compile it again for this process")
    if model is not None and program.model and program.model != model:
        raise ValueError(f"{path} was searched for {program.model!r}, not for {model!r}: search again for this model")
    return program


def _row(row: Any) -> Row:
    time, points, cleans, noise = row
    terms = [tuple((int(back), float(c)) for back, c in part) for part in (points, cleans)]
    return Row(None if time is None else float(time), *terms, None if noise is None else float(noise))
