"""Tables against their formulas, the count of evaluations, grids and refusals (S35)."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import GaussianOracle, Given, Literal, normal, three_modes
from unisci.batch import Field
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP, lam
from unisci.processes.mean_reverting import Shifted
from unisci.rng import Rng
from unisci.solvers.dpm_solver import fast
from unisci.solvers.formulas import SCHEMES, advance
from unisci.solvers.grids import grid
from unisci.solvers.level import levels
from unisci.solvers.program import compile_solver, run, trace

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]
EVALUATIONS = {name: 1 for name in SCHEMES}
EVALUATIONS |= {"heun": 2, "dpm2": 2, "dpm++2s": 2, "edm-heun": 2, "dpm3": 3, "dpm++3s": 3}
SDE = ("euler_maruyama", "reverse_diffusion", "ancestral", "edm-heun", "sde-dpm++2m", "sde-2m", "sde-dpm++3m")
ODE = tuple(name for name in SCHEMES if name not in SDE)
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
each_scheme = pytest.mark.parametrize("name", SCHEMES)


class Counting:
    """A denoiser that counts its calls and keeps the times it is asked for."""

    def __init__(self, denoise):
        self.denoise, self.process, self.schema, self.times = denoise, denoise.process, denoise.schema, []

    def __call__(self, x, t):
        self.times.append(t.item())
        return self.denoise(x, t)


@each_scheme
@settings(max_examples=15, deadline=None)
@given(
    process=st.sampled_from(PROCESSES),
    kind=st.sampled_from(["lambda", "time", "karras"]),
    n=st.integers(1, 12),
    end=st.sampled_from([0.0, 1e-3, 0.05]),
    start=st.floats(0.6, 0.99),
)
def test_table_is_the_formula(name, process, kind, n, end, start):
    """Executing the table equals executing the formula on tensors, to rounding of the largest term (S35, check 5)."""
    denoise, times = three_modes(process), grid(process, n, kind, start, end)
    x, noises = normal(8, 2) * process.level(times[0])[1], normal(n, 8, 2, seed=1)
    program = compile_solver(process, times, name)
    largest = max(abs(c) for rows in program.steps for row in rows for _, c in row.points + row.cleans)
    got = run(denoise, x, program, Given(noises))
    model, want, past = Literal(denoise, noises), x, None
    for t, s in pairwise(levels(process, times)):
        want, past = advance(SCHEMES[name].formula, model, want, t, s, past)
    assert (got - want).abs().max() <= 1e-12 * max(1, largest) * (1 + x.abs().max())


def test_first_order_is_ddim():
    """DDIM by hand; one step of 2M; and DPM-Solver-1 in noise form, F x - sigma expm1(h) e (S35, check 4)."""
    process, denoise, x = VP(), three_modes(VP()), normal(8, 2)
    times = torch.tensor([0.8, 0.5, 0.2], dtype=F64)
    at, by_hand, noise_form = levels(process, times), x, x
    for t, s in pairwise(at):
        d = denoise(by_hand, torch.tensor(t.time, dtype=F64))
        by_hand = s.alpha * d + s.sigma / t.sigma * (by_hand - t.alpha * d)
        e = (noise_form - t.alpha * denoise(noise_form, torch.tensor(t.time, dtype=F64))) / t.sigma
        noise_form = s.alpha / t.alpha * noise_form - s.sigma * math.expm1(s.lam - t.lam) * e
    ddim = run(denoise, x, compile_solver(process, times, "ddim"))
    torch.testing.assert_close(ddim, by_hand, rtol=0, atol=1e-12)
    torch.testing.assert_close(ddim, noise_form, rtol=0, atol=1e-12)
    one = {name: run(denoise, x, compile_solver(process, times[:2], name)) for name in ODE}
    torch.testing.assert_close(one["dpm++2m"], one["ddim"], rtol=0, atol=1e-12)
    times = torch.tensor([0.8, 0.5, 0.3, 0.2, 0.1], dtype=F64)
    four = {name: run(denoise, x, compile_solver(process, times, name)) for name in ODE}
    for a, b in ((a, b) for a in ODE for b in ODE if a < b):
        assert (four[a] - four[b]).abs().max() > 1e-4, f"{a} is an alias of {b}"


def test_first_step_of_the_sde_solver_is_ancestral():
    process, denoise, x, noises = VP(), three_modes(VP()), normal(8, 2), normal(2, 8, 2, seed=1)
    times = torch.tensor([0.8, 0.5, 0.2], dtype=F64)
    ends = [
        [run(denoise, x, compile_solver(process, times[:n], name), Given(noises)) for n in (2, 3)]
        for name in ("ancestral", "sde-dpm++2m")
    ]
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-12)
    assert (ends[0][1] - ends[1][1]).abs().max() > 1e-4


@each_scheme
@pytest.mark.parametrize("end", [0.0, 1e-3])
def test_evaluations_are_counted(name, end):
    """program.nfe is what a counting denoiser sees (S35, check 6), which is never asked at sigma = 0 or upwards."""
    process = VP()
    for n in range(1, 9):
        denoise = Counting(three_modes(VP()))
        program = compile_solver(process, grid(process, n, end=end), name)
        run(denoise, normal(4, 2), program, Rng(0, torch.arange(4)))
        last = 1 if end == 0 else EVALUATIONS[name]
        assert len(denoise.times) == program.nfe == EVALUATIONS[name] * (n - 1) + last
        assert min(denoise.times) > 0
        assert name == "edm-heun" or denoise.times == sorted(denoise.times, reverse=True)
        assert denoise.times[0] == pytest.approx(1)
        assert program.stages == (1 if n == 1 and end == 0 else EVALUATIONS[name])


@each_scheme
@each_process
def test_last_step_to_zero_returns_the_denoiser(name, process):
    program = compile_solver(process, grid(process, 6), name)
    assert program.grid[-1] == 0
    (row,) = program.steps[-1]
    assert row == (pytest.approx(1e-3), (), ((0, 1.0),), None)
    coefficients = [c for rows in program.steps for row in rows for _, c in row.points + row.cleans]
    assert all(map(math.isfinite, coefficients)) and max(program.depth) <= 2 * SCHEMES[name].order + 2
    assert program.stochastic == (name in SDE) and program.order == SCHEMES[name].order


@pytest.mark.parametrize("name", ["ddim", "ancestral", "dpm++2m", "sde-dpm++2m"])
@pytest.mark.parametrize("process", [Cosine(), Linear()])
def test_start_from_pure_noise(name, process):
    """Where alpha(1) = 0, data-form schemes start at t = 1 itself; the first step is alpha D + sigma noise."""
    denoise, x = GaussianOracle(process, 0.3, 0.5), normal(16, 1)
    out = run(denoise, x, compile_solver(process, grid(process, 200, "time", 1.0), name), Given(normal(200, 16, 1)))
    assert out.isfinite().all()
    if name in ODE:
        torch.testing.assert_close(out, 0.3 + 0.5 * x, rtol=0, atol=0.02)


@each_scheme
def test_float32_follows_float64(name):
    process, times = VP(), grid(VP(), 25)
    program, x, noises = compile_solver(process, times, name), normal(64, 2), normal(25, 64, 2, seed=1)
    wide = run(three_modes(VP()), x, program, Given(noises))
    narrow = run(three_modes(VP(), torch.float32), x.float(), program, Given(noises.float()))
    assert narrow.dtype == torch.float32
    # The mixture amplifies rounding between its modes; the median shows the arithmetic.
    assert (narrow - wide).abs().median() < 3e-6 and (narrow - wide).abs().max() < 1e-3


@each_scheme
@settings(max_examples=6, deadline=None)
@given(rows=st.lists(st.integers(0, 63), min_size=1, max_size=9, unique=True), seed=st.integers(0, 99))
def test_a_sample_does_not_know_its_batch(name, rows, seed):
    """Samples `rows` of a batch of 64 are the same alone, bit for bit, by (seed, id)."""
    process, ids = VP(), torch.arange(64) + 5
    program, denoise = compile_solver(process, grid(process, 8), name), GaussianOracle(process, 0.3, 0.5)

    def draw(ids):
        rng = Rng(seed, ids)
        return run(denoise, process.prior(torch.zeros(len(ids), 5, 3), rng), program, rng)

    assert torch.equal(draw(ids)[rows], draw(ids[rows]))
    assert torch.equal(draw(ids)[:1], draw(ids[:1])) and torch.equal(draw(ids)[7:14], draw(ids[7:14]))
    assert not torch.equal(draw(ids)[0], draw(ids)[1])


def test_fields_draw_by_their_layout():
    """Noise of a pair field is symmetric, fields draw independently, and padding a site changes no other site."""
    schema = {"position": Field("site", (3,)), "bond": Field("pair"), "cell": Field("whole", (2,))}
    process = VP()
    denoise = GaussianOracle(process, 0.0, {"position": 0.5, "bond": 2.0, "cell": 1.0}, schema)
    program = compile_solver(process, grid(process, 10), "sde-dpm++2m")

    def draw(n):
        rng = Rng(0, torch.arange(4))
        like = {"position": torch.zeros(4, n, 3), "bond": torch.zeros(4, n, n), "cell": torch.zeros(4, 2)}
        return run(denoise, {k: process.prior(v, rng, k, schema[k].axes) for k, v in like.items()}, program, rng)

    small, large = draw(5), draw(8)
    assert torch.equal(small["bond"], small["bond"].transpose(1, 2))
    assert torch.equal(small["position"], large["position"][:, :5])
    assert torch.equal(small["bond"], large["bond"][:, :5, :5]) and torch.equal(small["cell"], large["cell"])
    alone = GaussianOracle(process, 0.0, 0.5, {"position": schema["position"]})
    rng = Rng(0, torch.arange(4))
    x = {"position": process.prior(torch.zeros(4, 5, 3), rng, "position", 1)}
    assert torch.equal(run(alone, x, program, rng)["position"], small["position"])
    twins = GaussianOracle(process, 0.0, 0.5, {"a": Field("whole", (2,)), "b": Field("whole", (2,))})
    out = run(twins, {"a": torch.zeros(4, 2), "b": torch.zeros(4, 2)}, program, rng)
    assert not torch.isclose(out["a"], out["b"], atol=1e-4).any()


@settings(max_examples=60, deadline=None)
@given(
    process=st.sampled_from(PROCESSES),
    kind=st.sampled_from(["lambda", "time", "karras"]),
    n=st.integers(1, 400),
    start=st.one_of(st.none(), st.floats(0.2, 0.999)),
    end=st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_grids(process, kind, n, start, end):
    times = grid(process, n, kind, start, end)
    assert times.shape == (n + 1,) and times.dtype == F64 and (times.diff() < 0).all()
    assert times[-1] == end
    assert times[0] == (start or (0.999 if isinstance(process, Cosine | Linear) else 1.0))
    body = times[:-1] if end == 0 and kind != "time" else times
    if len(body) < 3:
        return
    at = {"time": body, "lambda": lam(process, body), "karras": torch.exp(-lam(process, body) / 7)}[kind]
    torch.testing.assert_close(at.diff(), at.diff().mean().expand(len(at) - 1), rtol=1e-6, atol=1e-9)


def test_bad_input_is_refused():
    p, times, x, denoise = VP(), grid(VP(), 4), normal(2, 2), three_modes(VP())
    with pytest.raises(ValueError, match=r"unknown solver 'dpm9'; known are ddim.*sde-dpm\+\+2m"):
        compile_solver(p, times, "dpm9")
    for bad in ([0.5, 0.5, 0.1], [0.1, 0.5], [1.2, 0.5], [0.5, -0.1], [0.5, math.nan]):
        with pytest.raises(ValueError, match="decrease strictly"):
            compile_solver(p, torch.tensor(bad), "ddim")
    for bad in ([0.5], [[0.5, 0.1]]):
        with pytest.raises(ValueError, match="one axis and two times"):
            compile_solver(p, torch.tensor(bad), "ddim")
    for name in SDE:
        with pytest.raises(ValueError, match="pass rng"):
            run(denoise, x, compile_solver(p, times, name))
    with pytest.raises(ValueError, match="unknown grid kind"):
        grid(p, 4, "uniform")
    for bad in ({"n": 0}, {"n": 3, "start": 0.1, "end": 0.2}, {"n": 3, "start": 1.5}, {"n": 3, "end": -0.1}):
        with pytest.raises(ValueError, match="0 <= end < start <= 1"):
            grid(p, **bad)
    with pytest.raises(ValueError, match="alpha is 0"):
        grid(Linear(), 4, start=1.0)
    for name in ("heun", "dpm2", "euler_maruyama"):
        with pytest.raises(ValueError, match="singular where alpha is 0"):
            compile_solver(Linear(), grid(Linear(), 4, "time", 1.0), name)
    with pytest.raises(ValueError, match="was compiled for VP"):
        run(three_modes(Linear()), x, compile_solver(p, times, "ddim"))
    shifted = Shifted(p, torch.zeros(2))
    with pytest.raises(ValueError, match="compile for its base"):
        compile_solver(shifted, times, "ddim")
    with pytest.raises(ValueError, match=r"step in Framed\(program\)"):
        run(GaussianOracle(shifted), x, compile_solver(p, times, "ddim"))
    fields = GaussianOracle(p)
    with pytest.raises(ValueError, match="schema must give their layout"):
        run(fields, {"a": x}, compile_solver(p, times, "ancestral"), Rng(0, torch.arange(2)))


class Spoilt:
    """A denoiser which at the time `bad` gives a NaN to sample 1 of the field."""

    def __init__(self, denoise, bad, field=None):
        self.denoise, self.process, self.schema = denoise, denoise.process, denoise.schema
        self.bad, self.field = bad, field

    def __call__(self, x, t):
        out = self.denoise(x, t)
        if abs(t.item() - self.bad) < 1e-9:
            (out[self.field] if self.field else out)[1] = math.nan
        return out


@pytest.mark.parametrize("k", [0, 2, 3])
def test_non_finite_output_says_where(k):
    p = VP()
    program = compile_solver(p, grid(p, 4), "dpm++2m")
    at = program.grid[k]
    with pytest.raises(
        ValueError, match=rf"output at step {k}, t = .*not finite in field 'x' of samples \[1\] \(of 3\)"
    ):
        run(Spoilt(three_modes(p), at), normal(3, 2), program)
    fields = {"a": Field("whole", (2,)), "b": Field("whole", (2,))}
    spoilt = Spoilt(GaussianOracle(p, 0.3, 0.5, fields), at, "b")
    with pytest.raises(ValueError, match=rf"step {k}, .*field 'b' of samples \[1\]"):
        run(spoilt, {"a": normal(3, 2), "b": normal(3, 2)}, program)
    assert run(Spoilt(three_modes(p), at), normal(3, 2), program, check=False)[1].isnan().all()


def test_non_finite_start_or_projection_says_so():
    p = VP()
    program, x = compile_solver(p, grid(p, 4), "dpm++2m"), normal(3, 2)
    with pytest.raises(ValueError, match=r"the start is not finite in field 'x' of samples \[2\]"):
        run(three_modes(p), torch.where(torch.arange(3)[:, None] == 2, math.inf, x), program)
    with pytest.raises(ValueError, match="the state after step 0"):
        run(three_modes(p), x, program, after=lambda x, s: x / 0)


def test_a_name_for_each_step():
    """DPM-Solver-fast: singlestep formulas that spend the calls exactly (S35, check 6)."""
    p, x, want = VP(), normal(8, 2), None
    for nfe in range(1, 22):
        names = fast(nfe)
        program = compile_solver(p, grid(p, len(names), end=1e-3), names)
        assert program.nfe == nfe
        denoise = Counting(three_modes(p))
        want = run(denoise, x, program)
        assert len(denoise.times) == nfe
    exact = run(three_modes(p), x, compile_solver(p, grid(p, 300, end=1e-3), "dpm3"))
    assert (want - exact).norm(dim=1).median() < 0.03
    with pytest.raises(ValueError, match="one call or more"):
        fast(0)
    with pytest.raises(ValueError, match="2 steps, the grid has 3"):
        compile_solver(p, grid(p, 3), ["ddim", "dpm2"])
    with pytest.raises(ValueError, match="unknown solver 'dpm9'"):
        compile_solver(p, grid(p, 2), ["ddim", "dpm9"])


def test_another_formula_starts_anew():
    """Where the name changes, what the formula before remembered is not its own to use."""
    p, x, denoise = VP(), normal(8, 2), three_modes(VP())
    times = grid(p, 6, end=1e-3)
    mixed = run(denoise, x, compile_solver(p, times, ["dpm3m"] * 3 + ["3m"] * 3))
    apart = run(denoise, x, compile_solver(p, times[:4], "dpm3m"))
    apart = run(denoise, apart, compile_solver(p, times[3:], "3m"))
    torch.testing.assert_close(mixed, apart, rtol=0, atol=1e-12)


def test_a_formula_cannot_reuse_a_draw():
    def reuses(model, x, t, s, past):
        xi = past or model.noise()
        return x + xi, xi

    with pytest.raises(ValueError, match="a draw enters one row"):
        trace("reuses", reuses, 1, VP(), grid(VP(), 3, end=0.1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_scheme
def test_no_wait_for_the_device(name):
    """A whole run on the GPU never synchronises with the host, and gives the numbers of the CPU."""
    process, ids = VP(), torch.arange(16)
    program, denoise = compile_solver(process, grid(process, 10), name), GaussianOracle(process, 0.3, 0.5)
    here = run(denoise, process.prior(torch.zeros(16, 3), Rng(0, ids)), program, Rng(0, ids))
    rng = Rng(0, ids.cuda())
    x = process.prior(torch.zeros(16, 3, device="cuda"), rng)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = run(denoise, x, program, rng, check=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-5)
