import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from unisci.batch import Field
from unisci.processes.categorical import Categorical, absorbing, mask_and_replace, uniform
from unisci.rng import Rng
from unisci.solvers.sample import sample
from unisci.solvers.tokens import Ancestral, TauLeaping, jump_hazard, token_grid

V, D = 3, 3
KERNELS = {"absorbing": absorbing, "uniform": uniform, "mask and replace": mask_and_replace}


def table() -> Tensor:
    """A correlated law of D tokens, no entry of which is 0."""
    generator = torch.Generator().manual_seed(1)
    p = torch.rand((V,) * D, generator=generator, dtype=torch.float64) ** 3 + 0.01
    return p / p.sum()


class TableOracle:
    """Exact logits of each clean token given all noised ones, by enumeration of the table."""

    schema = None

    def __init__(self, process: Categorical):
        self.process, self.calls = process, 0
        self.words = torch.tensor(list(product(range(V), repeat=D)))

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        likelihood = self.process.likelihood(x, t.expand(x.shape))  # (B, D, V)
        each = likelihood[:, torch.arange(D), self.words]  # (B, V^D, D)
        weight = table().flatten() * each.prod(-1)
        return torch.log(torch.stack([(weight[..., None] * (self.words == v)).sum(1) for v in range(V)], -1))


class LawRng:
    """Stands in for Rng: keeps the probabilities of a step instead of drawing from them."""

    def at(self, step: int) -> "LawRng":
        return self

    def categorical(self, field: str, step: int, probs: Tensor, axes: int = 1) -> Tensor:
        self.probs = probs / probs.sum(-1, keepdim=True)
        return probs.argmax(-1)


def exact_law(solver, process: Categorical, grid: list[Tensor]) -> Tensor:
    """The law of the solver's result, by the transition matrix over all states of all tokens: no sampling error."""
    k = process.states
    states = torch.tensor(list(product(range(k), repeat=D)))
    one = process.likelihood(torch.arange(k), torch.ones(k, dtype=torch.float64))[:, 0]
    law = one[states].prod(-1)
    oracle, rng = TableOracle(process), LawRng()
    for t, s in pairwise(grid):
        reached = law > 1e-200  # a step keeps a class of no mass with the smallest positive number
        t, s = (v.expand(int(reached.sum()), D) for v in (t, s))
        solver.step(oracle, states[reached], t, s, None, rng)
        step = torch.stack([rng.probs[:, i][:, states[:, i]] for i in range(D)]).prod(0)
        law = law[reached] @ step
    clean = law.reshape((k,) * D)[(slice(V),) * D]
    assert float(law.sum()) == pytest.approx(1) and float(clean.sum()) == pytest.approx(1), "a mask is left"
    return clean


def even(n: int) -> list[Tensor]:
    return list(torch.linspace(1, 0, n + 1, dtype=torch.float64))


def distance(a: Tensor, b: Tensor) -> float:
    return 0.5 * float((a - b).abs().sum())


def marginals() -> Tensor:
    p = table()
    return torch.einsum("i,j,k->ijk", p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_one_step_gives_the_product_of_marginals(solver, kernel):
    law = exact_law(solver, KERNELS[kernel](V), even(1))
    assert distance(law, marginals()) < 1e-6
    assert distance(law, table()) > 0.05


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_the_error_falls_at_first_order(solver, kernel):
    steps = [8, 16, 32, 64]
    errors = [distance(exact_law(solver, KERNELS[kernel](V), even(n)), table()) for n in steps]
    assert all(b < a for a, b in pairwise(errors)), errors
    assert errors[-1] < 0.02, errors
    slope = math.log(errors[-1] / errors[-3]) / math.log(steps[-1] / steps[-3])
    assert -1.35 < slope < -0.75, (slope, errors)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_one_token_at_a_time_is_exact(solver, order):
    """The limit of any-order autoregression: each token has a time of its own and moves alone, from 1 to 0."""
    t, grid = torch.ones(D, dtype=torch.float64), []
    grid.append(t)
    for i in order:
        t = t.clone()
        t[i] = 0
        grid.append(t)
    assert distance(exact_law(solver, absorbing(V), grid), table()) < 1e-6


@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_samples_follow_the_law_of_the_steps(solver, kernel):
    n, process, grid = 20000, KERNELS[kernel](V), even(6)
    rng, oracle = Rng(0, torch.arange(n)), TableOracle(process)
    x = process.prior(torch.zeros(n, D, dtype=torch.long), rng.at(0), "x", 1)
    x = sample(oracle, x, grid, solver, rng.at(1))
    counts = torch.zeros_like(table()).index_put_(tuple(x.T), torch.ones(n, dtype=torch.float64), accumulate=True) / n
    assert distance(counts, exact_law(solver, process, grid)) < 0.03
    assert oracle.calls == 6


@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_absorbing_steps_never_touch_what_is_unmasked_and_leave_no_mask(solver):
    process, b, n = absorbing(5), 200, 9
    rng, seen = Rng(3, torch.arange(b)), []

    class Arbitrary:
        schema = None

        def __init__(self):
            self.process = process

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(x)
            return 5 * torch.sin(x[..., None] * 3.0 + torch.arange(5) + t)

    start = torch.full((b, n), 5)
    seen.append(sample(Arbitrary(), start, torch.linspace(1, 0, 8), solver, rng))
    for before, after in pairwise(seen):
        assert torch.equal(after[before < 5], before[before < 5])
    left = [float((x == 5).float().mean()) for x in seen]
    assert left[0] == 1 and 0.3 < left[4] < 0.75 and left[-1] == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_sites_at_time_0_wait_bit_for_bit(solver, kernel):
    process, b, n = KERNELS[kernel](4), 50, 8
    x = torch.randint(4, (b, n), generator=torch.Generator().manual_seed(0))

    class Contrary:
        schema = None

        def __init__(self):
            self.process = process

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return -30.0 * torch.nn.functional.one_hot(x.clamp(max=3), 4)

    waiting = torch.arange(n) < 5
    grid = [torch.where(waiting, 0.0, t).expand(b, n) for t in torch.linspace(1, 0, 5)]
    noisy = torch.where(waiting, x, process.prior(x, Rng(1, torch.arange(b)), "x", 1))
    y = sample(Contrary(), noisy, grid, solver, Rng(0, torch.arange(b)))
    assert torch.equal(y[:, :5], x[:, :5])


def test_hazard_is_the_integral_of_the_reverse_rate():
    """Forward rates of the redrawing kernel: -a'/a m[k]; over a short step the law of one jump is the posterior's."""
    process, t, f = uniform(V), torch.tensor([0.5] * V, dtype=torch.float64), table().sum((1, 2)).expand(V, -1)
    x = torch.arange(V)
    for h in (1e-3, 1e-4):
        exact = process.posterior(x, f, t, t - h) * (1 - torch.eye(V, dtype=torch.float64))
        got = jump_hazard(process, x, f, t, t - h)
        torch.testing.assert_close(got, exact, rtol=10 * h, atol=0)


@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_fields_draw_by_name_and_pairs_stay_symmetric(solver):
    b, n = 30, 5
    process = {"atom": uniform(4), "bond": absorbing(4)}

    class Flat:
        schema = {"atom": Field("site"), "bond": Field("pair")}  # noqa: RUF012

        def __init__(self):
            self.process = process

        def __call__(self, x: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
            return {k: torch.zeros(*v.shape, 4) for k, v in x.items()}

    rng = Rng(0, torch.arange(b))
    x = {"atom": torch.zeros(b, n, dtype=torch.long), "bond": torch.full((b, n, n), 4)}
    y = sample(Flat(), x, torch.linspace(1, 0, 4), solver, rng)
    assert torch.equal(y["bond"], y["bond"].transpose(1, 2)) and int(y["bond"].max()) < 4
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    alone = solver.step(Flat(), {k: v[3:4] for k, v in x.items()}, one, zero, None, rng[[3]])[0]
    whole = solver.step(Flat(), x, one, zero, None, rng)[0]
    assert all(torch.equal(alone[k][0], whole[k][3]) for k in x)


def test_the_token_grid_falls_from_one_to_zero_and_crowds_there():
    uniform, crowded = token_grid(10, 1.0), token_grid(10)
    for grid in (uniform, crowded):
        assert len(grid) == 11 and grid[0] == 1 and grid[-1] == 0 and bool((grid.diff() < 0).all())
    assert torch.allclose(uniform, torch.linspace(1, 0, 11))
    assert torch.allclose(crowded, uniform**3.5) and bool((crowded[1:-1] < uniform[1:-1]).all())
    for n, power in ((0, 1.0), (5, 0.0)):
        with pytest.raises(ValueError, match="n >= 1 steps and a power > 0"):
            token_grid(n, power)
