"""Programs on disk (S46, check 5)."""

import json

import pytest
import torch

from tests.oracles import GaussianOracle
from unisci.processes.gaussian import EDM, VP, Gaussian
from unisci.rng import Rng
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.grids import grid
from unisci.solvers.per_sample import stack
from unisci.solvers.program import compile_solver, run
from unisci.solvers.saved import load, of_json, save, to_json


@pytest.mark.parametrize("name", SCHEMES)
def test_round_trip_is_exact(name, tmp_path):
    process, rng = VP(), Rng(0, torch.arange(4))
    program = compile_solver(process, grid(process, 6), name)
    save(program, tmp_path / "p.json")
    back = load(tmp_path / "p.json", process)
    assert back == program
    denoise, x = GaussianOracle(process, 0.3, 0.5), process.prior(torch.zeros(4, 3), rng)
    assert torch.equal(run(denoise, x, back, rng), run(denoise, x, program, rng))


def test_another_process_is_refused(tmp_path):
    path = tmp_path / "p.json"
    save(compile_solver(VP(), grid(VP(), 6), "dpm++2m"), path)
    for other in (VP(0.1, 19.0), VP(0.11, 20.0), EDM()):
        with pytest.raises(ValueError, match=r"was made for VP\(beta_min=0.1, beta_max=20.0\), not for"):
            load(path, other)

    class Same(Gaussian):
        """The same levels by another name are the same process to a program."""

        def level(self, t):
            return VP().level(t)

    assert load(path, Same()).nfe == 6


def test_another_model_is_refused(tmp_path):
    program = compile_solver(VP(), grid(VP(), 6), "dpm++2m")
    path = tmp_path / "p.json"
    save(program, path)
    assert load(path, VP(), "weights abc").model == ""
    object.__setattr__(program, "model", "weights abc, guidance 2")
    save(program, path)
    assert load(path, VP(), "weights abc, guidance 2") == load(path, VP())
    with pytest.raises(ValueError, match="searched for 'weights abc, guidance 2', not for 'weights abc, guidance 1'"):
        load(path, VP(), "weights abc, guidance 1")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "p.json"
    save(compile_solver(VP(), grid(VP(), 3), "heun"), path)
    text = path.read_text()
    content = json.loads(text)
    damaged = [text[:-40], "[]", "{}", text.replace("unisci program 1", "unisci program 9")]
    damaged += [json.dumps({**content, k: None}) for k in ("grid", "steps", "fingerprint", "order")]
    damaged += [json.dumps({**content, "steps": content["steps"][:-1]})]
    for bad in damaged:
        path.write_text(bad)
        with pytest.raises(ValueError, match="is not a readable program"):
            load(path, VP())


def test_a_grid_for_each_sample_is_not_saved(tmp_path):
    program = stack([compile_solver(VP(), grid(VP(), 3), "ddim")], torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="grid for each sample"):
        save(program, tmp_path / "p.json")


def test_a_program_lies_in_other_json():
    program = compile_solver(VP(), grid(VP(), 6), "sde-2m")
    assert of_json(json.loads(json.dumps(to_json(program))), VP()) == program
    for bad in (None, [], {}, to_json(program) | {"steps": 3}):
        with pytest.raises(ValueError, match="header is not a readable program"):
            of_json(bad, VP(), path="header")
    with pytest.raises(ValueError, match="the content was made for VP"):
        of_json(to_json(program), EDM())
