"""Concept blending by option prices (Black-Scholes diffusion, arXiv 2405.13685): at each step the weight goes to the
condition that is forecast to be satisfied least at the end.

The satisfaction of a condition is a price s that will move by the volatility sigma for the time tau that is left. A
European call pays max(s_end - k, 0) above the strike k, and is worth, with Phi the normal distribution function,

    C = s Phi(d_1) - k e^(-r tau) Phi(d_2),    d_1 = (ln(s/k) + (r + sigma^2/2) tau) / (sigma sqrt(tau)),
                                               d_2 = d_1 - sigma sqrt(tau)

The published code takes e^(-d^2/2) for Phi, and s e^(-d_1^2/2) = k e^(-r tau - d_2^2/2) identically: its price is 0 for
every score, and rounding makes its choice. `RandomChoice` is therefore the control of its results, and `Greedy` that of
the formula here: a price is a smooth rank of the scores, and where it ranks as they do it adds nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor

from unisci.guidance.mixture import equal, mix
from unisci.guidance.terms import latest
from unisci.processes.categorical import Categorical
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.state import State, Time, pick

Number = Tensor | float
Payoff = Callable[[Number, Number, Number, Number, Number], Tensor]  # (s, k, r, sigma, tau) -> price
Scorer = Callable[[State], Tensor]  # a clean state -> how well each sample satisfies the condition (B,), in (0, 1]


def _terms(*arguments: Number) -> tuple[Tensor, Tensor, Tensor]:
    """d_1, d_2 and k e^(-r tau). Without spread both d are inf where s ends above the strike, else -inf."""
    device = next((v.device for v in arguments if isinstance(v, Tensor)), None)
    filled = lambda v: v if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float64, device=device)
    s, k, r, sigma, tau = (filled(v) for v in arguments)
    spread, owed = sigma * tau.sqrt(), k * torch.exp(-r * tau)
    drift = s.log() - owed.log()
    certain = torch.where(drift > 0, torch.inf, -torch.inf)
    d = torch.where(spread > 0, drift / torch.where(spread > 0, spread, 1.0), certain)
    return d + spread / 2, d - spread / 2, owed


def call(s: Number, k: Number, r: Number, sigma: Number, tau: Number) -> Tensor:
    """The price of a European call, of the shape that the arguments broadcast to.

    s >= 0: the price now; k > 0: the strike; r: the rate; sigma >= 0: the volatility; tau >= 0: the time left, in units
    that make r tau and sigma^2 tau pure numbers. Where sigma^2 tau = 0 it is max(s - k e^(-r tau), 0). Nothing is
    checked, which would wait for the device; a negative s gives nan.
    """
    d_1, d_2, owed = _terms(s, k, r, sigma, tau)
    return s * torch.special.ndtr(d_1) - owed * torch.special.ndtr(d_2)


def put(s: Number, k: Number, r: Number, sigma: Number, tau: Number) -> Tensor:
    """The price of a European put, which pays max(k - s_end, 0): the expected shortfall. Arguments as for `call`."""
    d_1, d_2, owed = _terms(s, k, r, sigma, tau)
    return owed * torch.special.ndtr(-d_2) - s * torch.special.ndtr(-d_1)


def noise_share(process: Process | dict[str, Process], t: Time) -> Tensor:
    """The share of noise in each sample, of its noisiest field and site, in [0, 1]: (B,), or () for a scalar t.

    sigma^2 / (alpha^2 + sigma^2) of a Gaussian process, 1 - a of a discrete one.
    """
    if isinstance(process, dict):
        return reduce(torch.maximum, [noise_share(p, pick(t, name)) for name, p in process.items()])
    if isinstance(process, Categorical):
        share = 1 - process.level(t)[0]
    else:
        alpha, sigma = process.level(t)
        share = sigma**2 / (alpha**2 + sigma**2)
    return _largest(share)


def _largest(v: Tensor) -> Tensor:
    """The largest entry of each sample: (B,), or () of a scalar."""
    return v if v.ndim < 2 else v.flatten(1).amax(1)


@dataclass(frozen=True)
class Greedy:
    """Weights for a `Mixture`: all to the condition with the lowest score, or a softmin of the given temperature.

    process: that of the mixture. scorers: one for each model; they see the estimate of equal weights, and need no
    gradient. Ties share. While the signal-to-noise ratio is no more than `snr`, where scores of a clean estimate say
    little, the weights are equal. Made for one-step solvers: the weights jump, which a multistep solver would take for
    a change of the prediction. Raises ValueError for a temperature or snr below 0.
    """

    process: Process | dict[str, Process]
    scorers: tuple[Scorer, ...]
    temperature: float = 0.0
    snr: float = 0.1

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.snr < 0:
            raise ValueError(f"temperature and snr must be >= 0, got {self.temperature} and {self.snr}")

    def values(self, scores: Tensor, share: Tensor, left: Tensor) -> Tensor:
        """The value (B, M) that is lowest for the condition to choose, from the scores (B, M), the share of noise and
        the time left, (B, 1) or (1, 1)."""
        return scores

    def __call__(self, x: State, t: Time, cleans: tuple[State, ...]) -> Tensor:
        """kappa (B, M). Raises ValueError where there is not one scorer for each model."""
        if len(self.scorers) != len(cleans):
            raise ValueError(f"{len(self.scorers)} scorers for {len(cleans)} models; give one for each")
        even = equal(x, t, cleans)
        share, left = (v.reshape(-1, 1) for v in (noise_share(self.process, t), latest(t)))
        clean = mix(self.process, cleans, even)
        values = self.values(torch.stack([score(clean) for score in self.scorers], 1), share, left)
        if self.temperature == 0:
            lowest = (values == values.amin(1, keepdim=True)).to(even)
            chosen = lowest / lowest.sum(1, keepdim=True)
        else:
            chosen = (-values / self.temperature).softmax(1).to(even)
        return torch.where(1 - share > self.snr * share, chosen, even)


@dataclass(frozen=True)
class OptionBlend(Greedy):
    """Weights for a `Mixture`: all to the condition with the lowest price, see `Greedy`.

    strike: the score that counts as satisfied; rate: the growth of a score's logarithm in a whole run; payoff: `call`,
    whose lowest price is taken, or `put`, whose highest is, and so of any payoff that rises or falls with the score.
    The time left is t, and the volatility the noise level, the root of the share of noise. Raises ValueError for a
    strike that is not positive. A call far above every score is worth 0, where a put still tells them apart.
    """

    strike: float = 0.5
    rate: float = 0.0
    payoff: Payoff = call

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strike > 0:
            raise ValueError(f"the strike must be positive, on the scale of the scores, got {self.strike}")

    @cached_property
    def _rises(self) -> bool:
        low, high = (self.payoff(s * self.strike, self.strike, 0.0, 0.1, 1.0) for s in (0.5, 2.0))
        return bool(high > low)

    def values(self, scores: Tensor, share: Tensor, left: Tensor) -> Tensor:
        """The prices, or less them where the payoff falls with the score."""
        price = self.payoff(scores, self.strike, self.rate, share.sqrt(), left)
        return price if self._rises else -price


@dataclass(frozen=True)
class RandomChoice:
    """Weights for a `Mixture`: all to a model drawn anew at each time, each sample on its own. A control for
    benchmarks: it reads the time on the host, and needs a scalar one."""

    rng: Rng

    def __call__(self, x: State, t: Time, cleans: tuple[State, ...]) -> Tensor:
        """kappa (B, M). Raises ValueError for a time that is not a scalar."""
        if isinstance(t, dict) or t.ndim > 0:
            raise ValueError("RandomChoice keys its draws by the time, which must be one scalar for all")
        even = equal(x, t, cleans)
        chosen = self.rng.categorical("model", int(float(t) * 2**31), even, 0)
        return torch.nn.functional.one_hot(chosen, len(cleans)).to(even)
