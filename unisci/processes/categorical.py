"""Discrete diffusion by one kernel (D3PM, Austin et al., arXiv 2107.03006; Pard, arXiv 2402.03687; RADD, arXiv
2406.03736; VQ-Diffusion, arXiv 2111.14822).

    q(x_t | x_0) = a(t) e_{x_0} + b(t) m + gamma(t) e_mask,     a + b + gamma = 1

m is a distribution over the K clean classes; class K, present where gamma is not zero, is the mask, which is never
left on the way to noise. Absorbing: b = 0. Uniform: gamma = 0, m = 1/K. Marginal: gamma = 0, m = the frequencies of
the data. Mask-and-replace: both. The kernels compose: a_t = a_s a_ts and 1 - gamma_t = (1 - gamma_s)(1 - gamma_ts).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from unisci.rng import Rng
from unisci.state import pad

Schedule = Callable[[Tensor], Tensor]


def cosine_keep(t: Tensor) -> Tensor:
    """cos((t + c) / (1 + c) pi/2) over its value at 0, c = .008: exactly 1 at t = 0 and 0 at t = 1 (Pard's
    schedule).
    """
    c = 0.008
    keep = torch.cos((t + c) / (1 + c) * (math.pi / 2)) / math.cos(c / (1 + c) * (math.pi / 2))
    return torch.where(t <= 0, 1.0, torch.where(t >= 1, 0.0, keep.clamp(0, 1)))


def linear_keep(t: Tensor) -> Tensor:
    """1 - t: every site changes at a uniformly drawn time."""
    return 1 - t


def nothing(t: Tensor) -> Tensor:
    """0: no mask."""
    return torch.zeros_like(t)


@dataclass(frozen=True, eq=False)
class Categorical:
    """keep = a(t), from 1 to 0; gamma(t), from 0 up; m (K,) the noise distribution. b(t) = 1 - a(t) - gamma(t).

    Raises ValueError where m is not a distribution.
    """

    keep: Schedule
    gamma: Schedule
    m: Tensor

    masked: bool = field(init=False)  # there is a mask state
    pins: bool = field(init=False)  # b = 0 at every time: an unmasked site is always clean

    def __post_init__(self) -> None:
        if self.m.ndim != 1 or bool((self.m < 0).any()) or abs(float(self.m.sum()) - 1) > 1e-4:
            raise ValueError(f"m must be a distribution over the classes, got {self.m.tolist()}")
        t = torch.linspace(0, 1, 9, dtype=torch.float64)
        _, b, gamma = self.level(t)
        object.__setattr__(self, "masked", bool((gamma > 0).any()))
        object.__setattr__(self, "pins", bool((b.abs() < 1e-9).all()))

    @property
    def classes(self) -> int:
        """K, the number of clean classes."""
        return len(self.m)

    @property
    def states(self) -> int:
        """K, or K + 1 with the mask."""
        return self.classes + self.masked

    def level(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b, gamma at time t, shaped as t."""
        a, gamma = self.keep(t), self.gamma(t)
        return a, (1 - a - gamma).clamp(min=0), gamma

    def _noise(self, like: Tensor) -> Tensor:
        """m with a zero for the mask appended, (states,), in the precision of `like`."""
        return F.pad(self.m.to(like.dtype), (0, int(self.masked)))

    def _onehot(self, x: Tensor, like: Tensor) -> Tensor:
        return F.one_hot(x, self.states).to(like.dtype)

    def perturb(self, clean: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """x_t ~ q(. | clean); clean (B, ...) class indices, t with leading axes of clean. t = 0 returns clean."""
        a, b, _ = (pad(v, clean) for v in self.level(t.float()))
        u = rng.uniform(name, 0, tuple(clean.shape), axes)
        noise = rng.categorical(name, 1, self._noise(u).expand(*clean.shape, -1), axes)
        # Without a mask a + b = 1, but rounds: no draw may then pass for one of the mask.
        noisy = torch.where(u < a, clean, torch.where(u < a + b, noise, self.classes) if self.masked else noise)
        return torch.where(a >= 1, clean, noisy)

    def prior(self, like: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """x_1, shaped as `like`; a, b, gamma at t = 1 say what it is."""
        one = torch.ones((), device=like.device)
        _, b, gamma = self.level(one)
        probs = b * self._noise(one)
        if self.masked:
            probs = torch.cat([probs[:-1], gamma[None]])
        return rng.categorical(name, 0, probs.expand(*like.shape, -1), axes)

    def likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        """q(x_t | x_0 = k) for every clean class k: (..., K)."""
        a, b, gamma = (pad(v, x_t)[..., None] for v in self.level(t))
        onehot = self._onehot(x_t, a)
        m_xt = (onehot * self._noise(a)).sum(-1, keepdim=True)
        z = a * onehot[..., : self.classes] + b * m_xt
        return z + gamma * onehot[..., -1:] if self.masked else z

    def posterior(self, x_t: Tensor, probs: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """p(x_s | x_t) = sum_{x_0} probs(x_0) q(x_s | x_t, x_0), s < t: (..., states), normalised.

        x_t (...) indices; probs (..., K), the predicted distribution of the clean class; t, s with leading axes of x_t.
        """
        a_t, _, g_t = (pad(v, x_t)[..., None] for v in self.level(t))
        a_s, b_s, g_s = (pad(v, x_t)[..., None] for v in self.level(s))
        tiny = torch.finfo(probs.dtype).tiny
        a_ts = a_t / a_s.clamp(min=tiny)
        stay = ((1 - g_t) / (1 - g_s).clamp(min=tiny)).clamp(max=1)  # probability that an unmasked site is not masked
        m, onehot = self._noise(probs), self._onehot(x_t, probs)
        m_xt = (onehot * m).sum(-1, keepdim=True)
        f_over_z = probs / self.likelihood(x_t, t).to(probs.dtype).clamp(min=1e-20)
        total = f_over_z.sum(-1, keepdim=True)
        from_clean = F.pad(a_s * f_over_z, (0, int(self.masked))) + b_s * m * total
        to_xt = a_ts * onehot + (stay - a_ts).clamp(min=0) * m_xt
        if self.masked:
            is_mask = onehot[..., -1:]
            mask_state = torch.zeros_like(m)
            mask_state[-1] = 1
            from_clean = from_clean + g_s * total * mask_state
            to_xt = torch.where(is_mask > 0, (1 - stay) + stay * mask_state, to_xt * (1 - mask_state))
        # Where the model gives the observed class no mass at all, the site stays as it is.
        p = to_xt * from_clean + tiny * onehot
        return p / p.sum(-1, keepdim=True)

    def logits(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Logits of the clean class with what x_t already proves put in: without replacement, an unmasked site is
        clean.
        """
        if not self.pins:
            return logits
        certain = self._onehot(x_t, logits)[..., : self.classes]
        return torch.where((x_t < self.classes)[..., None], torch.log(certain), logits)

    def to(self, device: torch.device | str) -> "Categorical":
        """The same process with m on another device."""
        if self.m.device == torch.device(device):
            return self
        moved = copy.copy(self)  # past __post_init__, whose checks would wait for the device at each step
        object.__setattr__(moved, "m", self.m.to(device))
        return moved

    def learnable(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Bool: sites whose clean class x_t does not give away, the ones that a loss should count."""
        noised = (t > 0).expand_as(x_t) if t.ndim == x_t.ndim else pad(t > 0, x_t).expand_as(x_t)
        return noised & (x_t == self.classes) if self.pins else noised


def absorbing(classes: int) -> Categorical:
    """Sites turn into the mask at a uniformly drawn time (arXiv 2406.03736): keep = 1 - t."""
    return Categorical(linear_keep, lambda t: t, torch.full((classes,), 1 / classes))


def uniform(classes: int) -> Categorical:
    """Sites are redrawn from the uniform distribution."""
    return Categorical(cosine_keep, nothing, torch.full((classes,), 1 / classes))


def marginal(frequencies: Tensor) -> Categorical:
    """Sites are redrawn from the frequencies (K,) of the data, which need not be normalised (arXiv 2209.14734)."""
    return Categorical(cosine_keep, nothing, frequencies / frequencies.sum())


def mask_and_replace(classes: int, replaced: float = 0.1) -> Categorical:
    """Sites are masked, or redrawn uniformly with at most the share `replaced` (arXiv 2111.14822)."""
    return Categorical(linear_keep, lambda t: t * (1 - replaced * (1 - t)), torch.full((classes,), 1 / classes))
