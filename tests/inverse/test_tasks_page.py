"""docs/tasks.md says what exists: every task x domain cell is filled, every name is there, and its code runs (S27,
check 1)."""

import re
from pathlib import Path

import torch

import unisci
from tests.oracles import GaussianOracle, normal
from unisci.processes.gaussian import VP
from unisci.rng import Rng

ROOT = Path(unisci.__file__).parent
PAGE = (ROOT.parent / "docs" / "tasks.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a line that starts with `heading`, without its head."""
    lines = PAGE[PAGE.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| "))
    table = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_every_cell_is_accounted_for():
    """Each task stands in both tables; a gap says so, and the number of gaps does not grow unseen."""
    tasks, cells = rows("# Which"), rows("## For which")
    assert [r[0] for r in cells] == [r[0] for r in tasks] and len(tasks) == 16
    states = [c for r in cells for c in r[1:]]
    assert len(states) == 64
    gaps = [c for c in states if c.startswith("not yet")]
    assert len(gaps) == 18 and states.count("**yes**") == 14 and set(states) - set(gaps) == {"**yes**", "state"}
    for task, row in zip(tasks, cells, strict=True):
        assert (task[3] == "not yet") == all(c.startswith("not yet") for c in row[1:]), task[0]


def test_every_name_is_there():
    """`name`, `name` (file.py): each is defined in that file; each path in backticks exists."""
    found = re.findall(r"((?:`\w+`(?:, )?)+) \(([\w/]+\.py)\)", PAGE)
    assert len(found) >= 18
    for names, path in found:
        text = (ROOT / path).read_text()
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(class|def) {name}\b", text, re.MULTILINE), f"{path} has no {name}"
    for path in re.findall(r"`((?:[\w]+/)+[\w.]*)`", PAGE):
        assert (ROOT / path).exists() or (ROOT.parent / path).exists(), path


def test_the_code_runs():
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    process, x = VP(), normal(6, 4)
    rng, rows_c, rows_t, rows_n = (
        Rng(0, torch.arange(6)),
        normal(1, 4, seed=1),
        normal(2, 4, seed=2),
        normal(3, 4, seed=3),
    )
    space = {
        "process": process,
        "denoise": GaussianOracle(process),
        "denoise_of_a": GaussianOracle(process, -1.0),
        "denoise_of_b": GaussianOracle(process, 1.0),
        "x": x,
        "rng": rng,
        "held_out": normal(50, 4, seed=4),
        "held_out_rng": Rng(1, torch.arange(50)),
        "network": lambda x, t, operator, context, seen: operator.adjoint(x, torch.zeros(6, 4, dtype=x.dtype)),
        "rows_c": rows_c,
        "rows_t": rows_t,
        "rows_n": rows_n,
        "observed_c": x @ rows_c.T,
        "observed_t": x @ rows_t.T,
        "observed_n": x @ rows_n.T,
    }
    exec(code, space)
    assert space["strange"].shape == (6,) and space["new"].shape == space["clean"].shape == (6, 4)
    assert space["probabilities"].shape == (6, 2) and space["spread"].shape == (6, 4)
    assert space["left"].tolist() == [1] * 6 and space["observed"].shape == (6, 2) and space["loss"].isfinite()
