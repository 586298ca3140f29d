"""Optimisation as conditional sampling (overview by Chen, Mei, Fan & Wang, arXiv 2404.07771): few labels, many samples
without, and the wish for a high reward.

Reward-directed generation (Yuan et al., 2307.07055): fit f^ to labels, label all data y^ = f^(x) + nu xi
(`unisci.guidance.ridge`), train D(x_t, t, y^), sample at y^ = a. What a sample of target a falls short by,

    a - E f(x) <= error of f^, which grows with a + mass that leaves the data + error of the score

so the reward rises with a and then bends: sweep a, and judge by a reward that the fit has not seen (`reward_curve`).

Gradient-guided optimisation (Guo et al., 2404.14743): K rounds, in each the reward made linear at the mean m of the
last samples, f(m) + k (x - m) with k = grad f(m), and its target observed,

    grad log p(a | x_t) = (a - f(m) - k (D - m)) / (nu^2 + k C k) J^T k,   C = Cov(x_0 | x_t)

whose J keeps samples in the subspace of the data, which k alone leaves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from unisci.guidance.observation import Observation
from unisci.guidance.ridge import RewardFunction
from unisci.guidance.terms import guided
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, Solver, sample
from unisci.solvers.score import check_gaussian, total
from unisci.state import State, Time, fieldwise


@dataclass(frozen=True, eq=False)
class Curve:
    """Of each target (T,): mean and standard deviation of the reward that samples achieve, the standard error of that
    mean, and their mean distance to the data's support (nan without one)."""

    targets: Tensor
    achieved: Tensor
    spread: Tensor
    standard_error: Tensor
    distance: Tensor

    @property
    def best(self) -> int:
        """The index of the target whose samples achieve most."""
        return int(self.achieved.argmax())

    def bend(self, fraction: float = 0.5) -> int:
        """The index of the last target up to which reward still follows: the first where it then rises by less than
        `fraction` of its first slope; the last one where it never bends. Raises ValueError for fewer than 3 targets."""
        if len(self.targets) < 3:
            raise ValueError(f"a bend needs 3 targets or more, got {len(self.targets)}")
        slopes = self.achieved.diff() / self.targets.diff()
        weak = slopes < fraction * slopes[0]
        return int(weak.int().argmax()) if bool(weak.any()) else len(slopes)


@torch.no_grad()
def reward_curve(
    generate_at: Callable[[float], State],
    truth: RewardFunction,
    targets: Sequence[float],
    distance: Callable[[State], Tensor] | None = None,
) -> Curve:
    """Sweep the target: `truth` of samples generate_at(a), for each a.

    truth: never the reward that was fitted, whose errors samples seek out: the true one, or one fitted to other labels.
    distance (B,): to the data's support, such as `Ridge.leverage`. Raises ValueError where targets do not increase.
    """
    if not targets or any(b <= a for a, b in pairwise(targets)):
        raise ValueError(f"targets must increase, got {list(targets)}")
    rows = []
    for a in targets:
        samples = generate_at(a)
        values = truth(samples).double()
        away = float("nan") if distance is None else float(distance(samples).double().mean())
        spread = values.std()
        rows.append((a, float(values.mean()), float(spread), float(spread) / len(values) ** 0.5, away))
    return Curve(*torch.tensor(rows, dtype=torch.float64).unbind(1))


@torch.no_grad()
def climb(
    denoise: Denoise,
    reward: RewardFunction,
    x: State,
    times: Sequence[Time],
    solver: Solver,
    rng: Rng,
    targets: Sequence[float],
    noise: float,
) -> list[State]:
    """Gradient-guided optimisation: the samples of each round, one round a target. The first is asked at the mean of
    samples without guidance; all start from the noise x, round i draws from rng.at(i).

    reward: differentiable, of states of Gaussian fields of one meaning entry by entry, so that samples have a mean, by
    which those of one call depend on each other. noise: nu, in the units of the reward; small follows the target, large
    stays with the data. Targets that rise slowly let the reward bend between rounds. Raises ValueError where noise is
    not positive, there are no targets, or a field's noise is not Gaussian.
    """
    if not targets or not noise > 0:
        raise ValueError(f"climb needs a target for each round and noise > 0, got {list(targets)} and {noise}")
    check_gaussian(denoise, "climb")
    samples, rounds = sample(denoise, x, times, solver, rng.at(0)), []
    for i, target in enumerate(targets, 1):
        mean = fieldwise(lambda v: v.mean(0, keepdim=True), samples)
        value, k = _linear(reward, mean)
        operator = lambda clean, k=k: total(fieldwise(torch.mul, clean, k))[:, None]
        y = target - value + total(fieldwise(torch.mul, mean, k))[:, None]
        term = Observation(operator=operator, y=y, sigma_y=noise, iterations=1)
        samples = sample(guided(denoise, term), x, times, solver, rng.at(i))
        rounds.append(samples)
    return rounds


def _linear(reward: RewardFunction, at: State) -> tuple[float, State]:
    """The reward of one state (1, ...) and its gradient there."""
    with torch.inference_mode(False), torch.enable_grad():
        k, value = torch.func.grad_and_value(lambda state: reward(state).sum())(fieldwise(torch.clone, at))
    return float(value), k


@torch.no_grad()
def best_of_n(samples: State, reward: RewardFunction, n: int) -> State:
    """Of each n consecutive samples the one of the highest reward, (B, ...) -> (B / n, ...): the baseline that any
    guidance has to beat at the same number of calls. Raises ValueError where n < 1 or does not divide B."""
    values = reward(samples)
    if n < 1 or len(values) % n:
        raise ValueError(f"n must be at least 1 and divide the {len(values)} samples, got {n}")
    rows = values.reshape(-1, n).argmax(1) + n * torch.arange(len(values) // n, device=values.device)
    return fieldwise(lambda v: v[rows], samples)
