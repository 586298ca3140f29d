"""The twisted sampler reaches p(x_0) h_0(x_0) / Z by particles where its guidance alone does not (S16, item F)."""

import math
from dataclasses import dataclass

import pytest
import torch

from tests.oracles import EnumeratedOracle, GaussianOracle, normal
from unisci.batch import Field
from unisci.guidance.observation import Isotropic, Reward
from unisci.guidance.particles import prior, sample_particles
from unisci.guidance.potential import Potential
from unisci.guidance.terms import Term, guided
from unisci.guidance.twisted import Twisted, at_estimate, at_state
from unisci.processes.categorical import absorbing, marginal
from unisci.processes.gaussian import VE, VP
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.reverse_kernel import ancestral

F64 = torch.float64
MEAN, STD = 0.5, 0.8
LAW = GaussianOracle(VP(), MEAN, STD)
GENTLE, FAR = 1.5, (2.0, 0.7)


def linear(x):
    return GENTLE * x[:, 0]


def quadratic(x):
    return -((x[:, 0] - FAR[0]) ** 2) / (2 * FAR[1] ** 2)


def guidance(log_h):
    """Too weak for the linear reward; the other is not what h_t of the estimate says."""
    return Reward(log_h=log_h, scale=0.5 if log_h is linear else 1.0)


PRECISION = 1 / STD**2 + 1 / FAR[1] ** 2
TILTED = {
    linear: (MEAN + GENTLE * STD**2, STD, GENTLE * MEAN + (GENTLE * STD) ** 2 / 2),
    quadratic: (
        (MEAN / STD**2 + FAR[0] / FAR[1] ** 2) / PRECISION,
        PRECISION**-0.5,
        math.log(FAR[1] / math.hypot(STD, FAR[1])) - (MEAN - FAR[0]) ** 2 / (2 * (STD**2 + FAR[1] ** 2)),
    ),
}  # mean, standard deviation, log Z


def solve(n, solver, steps, law=LAW, like=None, seed=0, first=0):
    rng = Rng(seed, torch.arange(first, first + n))
    x = prior(law, torch.zeros(n, 1, dtype=F64) if like is None else like, rng.at(99), solver.particles)
    return sample_particles(law, x, grid(law.process, steps), solver, rng)


def moments(report):
    """Mean and standard deviation of the weighted particles, each group by its own sum."""
    w, x = report.log_weights.softmax(1).flatten() / len(report.log_weights), report.particles[:, 0]
    mean = (w * x).sum()
    return mean.item(), (w * (x - mean) ** 2).sum().sqrt().item()


def reaches(got, log_h):
    mean, std, _ = TILTED[log_h]
    return abs(got[0] / mean - 1) < 0.03 and abs(got[1] / std - 1) < 0.03


def heuristic(log_h, term, steps=40):
    x = prior(LAW, torch.zeros(10000, 1, dtype=F64), Rng(0, torch.arange(10000)), 1)
    program = compile_solver(VP(), grid(VP(), steps), "ancestral")
    x = run(guided(LAW, term), x, program, Rng(0, torch.arange(10000)))
    return x.mean().item(), x.std().item()


@pytest.mark.parametrize("log_h", [linear, quadratic])
def test_rewards_of_gaussian_data(log_h):
    """One large group, a proposal and twists that are wrong: 3 % of the closed form, where the guidance alone fails."""
    for twist in (at_estimate(log_h), at_state(lambda x, t: 0.3 * log_h(x))):
        solver = Twisted(log_h0=log_h, twist=twist, particles=20000, terms=(guidance(log_h),), variance=STD**2)
        _, report = solve(1, solver, 8)
        assert reaches(moments(report), log_h)
        assert report.log_z.item() == pytest.approx(TILTED[log_h][2], abs=0.05)
    assert not reaches(heuristic(log_h, guidance(log_h)), log_h)
    assert not reaches(heuristic(log_h, Potential(log_h=lambda x, t: log_h(x))), log_h)


@pytest.mark.parametrize("log_h", [linear, quadratic])
def test_one_draw_of_each_group(log_h):
    solver = Twisted(log_h0=log_h, twist=at_estimate(log_h), particles=64, terms=(guidance(log_h),), variance=STD**2)
    x, report = solve(2500, solver, 6)
    assert x.shape == (2500, 1) and report.ess.shape == (6, 2500) and report.log_weights.shape == (2500, 64)
    assert reaches((x.mean().item(), x.std().item()), log_h)
    assert report.log_z.exp().mean().log().item() == pytest.approx(TILTED[log_h][2], abs=0.02)


def test_no_weights_no_tilt():
    """The same solver without resampling and weights keeps the proposal's law: it is the weights that correct it."""
    solver = Twisted(
        log_h0=quadratic,
        twist=lambda at: None,
        particles=20000,
        terms=(guidance(quadratic),),
        threshold=0,
        variance=0.64,
    )
    _, report = solve(1, solver, 8)
    raw = report.particles.mean().item(), report.particles.std().item()
    assert not reaches(raw, quadratic) and reaches(moments(report), quadratic)


class Tabled(EnumeratedOracle):
    """The oracle asked once for each of the few states that there are."""

    def __call__(self, x, t):
        d, states = self.table.ndim, self.process.states
        every = torch.cartesian_prod(*[torch.arange(states)] * d).reshape(-1, d)
        weights = states ** torch.arange(d - 1, -1, -1)
        return super().__call__(every, t).nan_to_num(nan=0.0)[(x * weights).sum(1)]


@dataclass(frozen=True, kw_only=True)
class Tilt(Term):
    """A table (sites, K + 1) added to the logits."""

    table: torch.Tensor

    def push(self, at):
        return self.table[:, :3].expand_as(at.clean)


TABLE = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=F64) ** 2
LOG_H = 1.5 * normal(3, 3, 3, seed=2)


@pytest.mark.parametrize("process", [absorbing(3), marginal(torch.tensor([0.5, 0.2, 0.3]))], ids=["absorb", "marginal"])
def test_enumerated_sequences(process):
    """27 sequences: TV below .02 to p h / Z by a twist and a guidance of single sites, which alone are far."""
    law = Tabled(process, TABLE)
    table = torch.tensor([[0.8, -0.5, 0.3, 0.0], [0.2, 0.4, -0.9, 0.0], [-0.3, 0.6, 0.5, 0.0]], dtype=F64)
    sites = lambda x, t: table.gather(1, x.T).T.sum(1)
    look = lambda x: LOG_H[tuple(x.T)]
    like, n = torch.zeros(1, 3, dtype=torch.long), 30000
    wrong = Tilt(table=table)
    solver = Twisted(log_h0=look, twist=at_state(sites), particles=n, terms=(wrong,))
    times = torch.linspace(1, 0, 41, dtype=F64)
    rng = Rng(0, torch.arange(1))
    _, report = sample_particles(law, prior(law, like, rng.at(9), n), times, solver, rng)
    target = law.table * LOG_H.exp()
    index = (report.particles * torch.tensor([9, 3, 1])).sum(1)
    law_of = lambda w: torch.zeros(27, dtype=F64).index_add(0, index, w)
    far = lambda p: (p - (target / target.sum()).flatten()).abs().sum().item() / 2
    assert far(law_of(report.log_weights.softmax(1)[0])) < 0.02
    assert report.log_z.item() == pytest.approx(target.sum().log().item(), abs=0.02)
    free = Twisted(log_h0=look, twist=lambda at: None, particles=5000, terms=(wrong,), threshold=0)
    _, report = sample_particles(law, prior(law, like, rng.at(9), 5000), times, free, rng)
    index = (report.particles * torch.tensor([9, 3, 1])).sum(1)
    assert far(law_of(torch.full((5000,), 1 / 5000, dtype=F64))) > 0.1


def test_zero_where_h_forbids():
    """h_0 an indicator, and a twist that is 0 for whatever is off: every draw obeys it."""
    law = Tabled(absorbing(3), TABLE)
    log_h0 = lambda x: torch.where(x[:, 0] == x[:, 2], 0.0, -math.inf).double()
    clash = lambda x, t: torch.where((x[:, 0] != x[:, 2]) & (x[:, [0, 2]] < 3).all(1), -math.inf, 0.0).double()
    solver = Twisted(log_h0=log_h0, twist=at_state(clash), particles=32)
    like, rng = torch.zeros(200, 3, dtype=torch.long), Rng(0, torch.arange(200))
    times = torch.linspace(1, 0, 11, dtype=F64)
    x, report = sample_particles(law, prior(law, like, rng.at(9), 32), times, solver, rng)
    assert bool((x[:, 0] == x[:, 2]).all()) and bool(report.log_z.isfinite().all())
    never = Twisted(log_h0=lambda x: torch.full((len(x),), -math.inf), twist=lambda at: None, particles=4)
    _, report = sample_particles(law, prior(law, like, rng.at(9), 4), times, never, rng)
    assert bool((report.log_z == -math.inf).all())


SCHEMA = {"k": Field("site", (), ("a", "b", "c")), "x": Field("site", (2,)), "e": Field("pair", (), ("-", "="))}


PROCESSES = {"k": absorbing(3), "x": VP(), "e": absorbing(2)}


class Mixed:
    """Tokens, positions and pairs side by side; the model couples them and sees each sample alone."""

    process, schema = PROCESSES, SCHEMA

    def __call__(self, x, t):
        code = torch.cos(x["k"].double()[..., None] + torch.arange(3))
        pair = torch.cos(x["x"].sum(-1)[:, :, None] + x["x"].sum(-1)[:, None])
        return {
            "k": code + x["x"].sum(-1, keepdim=True),
            "x": 0.5 * x["x"] + code[..., :2],
            "e": pair[..., None] * PAIR,
        }


PAIR = torch.tensor([1.0, -1.0], dtype=F64)
LIKE = {
    "k": torch.zeros(5, 4, dtype=torch.long),
    "x": torch.zeros(5, 4, 2, dtype=F64),
    "e": torch.zeros(5, 4, 4, dtype=torch.long),
}


def reward(x):
    return x["x"].sum((1, 2)) - (x["x"] ** 2).sum((1, 2)) / 4


def mixed(rows, mask=None, seed=0):
    log_h = lambda c: c["x"].sum((1, 2)) + c["k"][..., 0].sum(1) + c["e"][..., 0].sum((1, 2))
    terms = (Reward(log_h=log_h, covariance=Isotropic(through_model=False)),)
    solver = Twisted(log_h0=reward, twist=at_estimate(reward), particles=6, terms=terms, mask=mask)
    rng = Rng(seed, torch.tensor(rows))
    x = prior(Mixed(), {k: v[rows] for k, v in LIKE.items()}, rng.at(9), 6)
    times = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=F64)
    return sample_particles(Mixed(), x, times, solver, rng)


def test_groups_do_not_depend_on_the_batch():
    """Bitwise, of fields of all kinds, resampling included."""
    whole, report = mixed([0, 1, 2, 3, 4])
    assert bool((report.ess[1:] < 3).any())
    for rows in ([3], [4, 1]):
        part, own = mixed(rows)
        assert all(torch.equal(part[k], whole[k][rows]) for k in whole)
        assert torch.equal(own.log_z, report.log_z[rows]) and torch.equal(own.log_weights, report.log_weights[rows])


class Push(Term):
    """The same for every entry of a class or a coordinate."""

    def push(self, at):
        return {k: torch.full_like(v, 0.3) * torch.arange(v.shape[-1]) for k, v in at.clean.items()}


def log_ratio(name, x, end, clean, ahead, t, s):
    """log p(end | x) - log p'(end | x) of the entries of a discrete field."""
    process = Mixed.process[name]
    kernels = [process.posterior(x, process.logits(v, x).softmax(-1), t, s) for v in (clean, ahead)]
    p, q = (kernel.gather(-1, end[..., None])[..., 0].log() for kernel in kernels)
    return p - q


def test_pairs_count_once_and_padding_not_at_all():
    """The ratio of a step is the sum over tokens, positions and one triangle of the pairs, of sites that exist."""
    mask = torch.ones(5, 4, dtype=torch.bool).index_fill(1, torch.tensor([3]), False).repeat_interleave(6, 0)
    assert not torch.equal(mixed([0], mask[:6])[1].log_z, mixed([0])[1].log_z)
    x = prior(Mixed(), LIKE, Rng(0, torch.arange(5)), 6)
    t, s = torch.tensor(0.8, dtype=F64), torch.tensor(0.4, dtype=F64)

    push = Push()
    solver = Twisted(log_h0=reward, twist=lambda at: None, particles=6, terms=(push,), mask=mask, threshold=0)
    end, memory = solver.step(Mixed(), x, t, s, None, Rng(1, torch.arange(30)))
    clean, ahead = Mixed()(x, t), guided(Mixed(), push)(x, t)
    ratios = {k: log_ratio(k, x[k], end[k], clean[k], ahead[k], t, s) for k in ("k", "e")}
    triangle = mask[:, :, None] & mask[:, None] & torch.ones(4, 4, dtype=torch.bool).tril(-1)
    want = (ratios["k"] * mask).sum(1) + (ratios["e"] * triangle).sum((1, 2))
    keep, gain, deviation = ancestral(VP(), t, s)
    logs = [-((end["x"] - keep * x["x"] - gain * v["x"]) ** 2) / (2 * deviation**2) for v in (clean, ahead)]
    want = want + ((logs[0] - logs[1]) * mask[..., None]).sum((1, 2))
    torch.testing.assert_close(memory.path.flatten(), want)


def test_one_particle_is_the_plain_guided_chain():
    """To the last step but one; the last goes to the model's own estimate, which is what the weights are for."""
    times, rng, term = grid(VP(), 10), Rng(0, torch.arange(30)), guidance(linear)
    solver = Twisted(log_h0=linear, twist=at_estimate(linear), particles=1, terms=(term,))
    x = prior(LAW, torch.zeros(30, 1, dtype=F64), rng.at(9), 1)
    got, _ = sample_particles(LAW, x, times[:-1], solver, rng)
    plain = run(guided(LAW, term), x, compile_solver(VP(), times[:-1], "ancestral"), rng)
    torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-6)
    last, _ = sample_particles(LAW, x, times, solver, rng)
    torch.testing.assert_close(last, LAW(got, times[-2]))


def test_without_terms_there_is_no_ratio():
    """log Z of the weights at the end is the mean of h_0 over the particles of the plain chain."""
    solver = Twisted(log_h0=linear, twist=lambda at: None, particles=500)
    _, report = solve(3, solver, 5)
    torch.testing.assert_close(report.log_weights, linear(report.particles).reshape(3, 500))
    torch.testing.assert_close(report.ess, torch.full_like(report.ess, 500))


def test_the_model_is_asked_once_a_step():
    class Counted(GaussianOracle):
        calls = 0

        def __call__(self, x, t):
            type(self).calls += 1
            return super().__call__(x, t)

    solver = Twisted(log_h0=linear, twist=at_estimate(linear), particles=2, terms=(Reward(log_h=linear),))
    solve(3, solver, 7, law=Counted(VP()))
    assert Counted.calls == 7


def test_a_twist_that_is_too_dear_stands():
    """None keeps the last value: the weights in a step without are those of its parents."""
    asked = []

    def sometimes(at):
        asked.append(float(at.t))
        return 0.1 * at.x[:, 0] if len(asked) % 2 else None

    _, report = solve(1, Twisted(log_h0=linear, twist=sometimes, particles=20000, variance=STD**2, threshold=0.9), 6)
    assert len(asked) == 6 and reaches(moments(report), linear)


def test_what_is_refused():
    make = lambda **named: Twisted(log_h0=linear, twist=lambda at: None, **{"particles": 2} | named)
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="threshold is a share of the particles"):
            make(threshold=threshold)
    for variance in (-1.0, math.inf):
        with pytest.raises(ValueError, match="variance of the data must be finite"):
            make(variance=variance)
    with pytest.raises(ValueError, match="log h must have shape \\(4,\\)"):
        solve(2, Twisted(log_h0=lambda x: x, twist=lambda at: None, particles=2), 3)
    with pytest.raises(ValueError, match="its process StudentT"):
        solve(2, make(), 3, law=GaussianOracle(StudentT(VE(), 64.0)))
