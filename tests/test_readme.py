"""The commands and the example of README.md are those that a newcomer copies first."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unisci.jobs.models import shipped

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_installing_and_testing_are_one_line_each():
    commands = blocks("sh")[:2]
    if len(commands) < 2:
        pytest.skip("the README has no two blocks of commands yet")
    assert all(c.strip() and len(c.strip().splitlines()) == 1 for c in commands)
    assert "pip install" in commands[0] and "pytest" not in commands[0]
    assert "pytest" in commands[1]
    assert "sudo" not in TEXT


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    examples = blocks("python")
    if not examples:
        pytest.skip("the README has no Python example yet")
    missing = set(re.findall(r'load\("([\w-]+)"\)', examples[0])) - set(shipped())
    if missing:
        pytest.skip(f"the weights {sorted(missing)} are not in this checkout")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-c", "\n".join(examples)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and "Traceback" not in done.stderr


def test_every_file_that_the_readme_names_exists():
    gaps = re.findall(r"@[A-Z]+@", TEXT)
    if gaps and not shipped():
        pytest.skip(f"the README still waits for {', '.join(gaps)}")
    assert not gaps
    root = Path(__file__).parents[1]
    links = [p for p in re.findall(r"\]\(([^)#]+)\)", TEXT) if not p.startswith(("http:", "https:"))]
    links += re.findall(r"\b(?:configs|tutorials|docs|datasets)/[\w./-]+\.(?:yaml|ipynb|md|py|png)\b", TEXT)
    assert not [p for p in links if not (root / p).is_file()]
