"""Every tutorial runs from its first cell to its last, and what is committed shows its results."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra 'tutorials'")
pytest.importorskip("nbclient", reason="needs the extra 'tutorials'")

from unisci.jobs.models import shipped  # noqa: E402

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))


def missing_weights(notebook) -> set[str]:
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    return set(re.findall(r'load\("([a-z][\w-]+)"\)', code)) - set(shipped())


def outputs(notebook) -> list:
    return [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]


def test_there_is_a_tutorial():
    assert TUTORIALS


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_a_tutorial_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    if missing := missing_weights(notebook):
        pytest.skip(f"the weights {sorted(missing)} are not in this checkout")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert not list(tmp_path.iterdir()), "a tutorial leaves nothing behind"
    assert any("image/png" in o.get("data", {}) for o in outputs(notebook))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_a_committed_tutorial_is_valid_and_whole(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert path.stat().st_size < 2 * 2**20
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    if missing := missing_weights(notebook):
        pytest.skip(f"executed once the weights {sorted(missing)} are there")
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run tutorials/execute.py"
    assert sum("image/png" in o.get("data", {}) for o in outputs(notebook)) >= 2
    text = "".join(str(o.get("text", "")) + str(o.get("data", {}).get("text/plain", "")) for o in outputs(notebook))
    assert not re.search(r"(/home/|/work/|/Users/|/tmp/)", text), "a path of someone's machine"
