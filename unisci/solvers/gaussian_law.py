"""The Gaussian law of data and its closed forms (Wang & Vastola, arXiv 2303.02490, 2412.09726).

For data ~ N(m, S), S = U diag(c) U^T + rest (I - U U^T), and v(t) = alpha^2 c + sigma^2, along every eigenvector

    E[x_0 | x_t] = m + alpha c / v(t) (x_t - alpha m)
    x_s = alpha_s m + sqrt(v(s) / v(t)) (x_t - alpha_t m)       the probability flow from any time t to any time s

in every Gaussian process.

The statistics are those of the data as the model sees them: scaled and centred alike. A covariance over atoms means
something only where they are in a fixed order; else the one law that fits is c I, a mere rescaling.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng

SINGULAR = 1e-14  # a variance below this part of the largest counts as 0


class _Sums(NamedTuple):
    """Of the n rows seen: their mean (D,), singular values s (q,) and right vectors vt (q, D) of the centred rows, of
    which all but the largest may be dropped, and `total`, the sum of all squares."""

    n: int
    mean: Tensor
    s: Tensor
    vt: Tensor
    total: Tensor


def _merge(sums: _Sums | None, x: Tensor, keep: int) -> _Sums:
    """The sums with the rows x (m, D) added (incremental SVD, Ross et al. 2008); exact while no more than `keep`
    singular values differ from 0, and for a single x."""
    if x.ndim < 2 or not bool(x.isfinite().all()):
        raise ValueError(f"data must be finite, of shape (n, ...), got {tuple(x.shape)}; drop rows with nan or inf")
    x = x.detach().flatten(1).double()
    m, mean = len(x), x.mean(0)
    rows, n, total = x - mean, 0, 0.0
    if sums is not None:
        n, total = sums.n, sums.total
        shift = math.sqrt(n * m / (n + m)) * (mean - sums.mean)
        rows = torch.cat([rows, shift[None]])
        mean = sums.mean + (mean - sums.mean) * (m / (n + m))
    total = total + rows.square().sum()
    stack = rows if sums is None else torch.cat([sums.s[:, None] * sums.vt, rows])
    _, s, vt = torch.linalg.svd(stack, full_matrices=False)
    return _Sums(n + m, mean, s[:keep], vt[:keep], total)


@dataclass(frozen=True, eq=False)
class GaussianLaw:
    """N(m, S) by r eigenpairs of S, its other D - r directions alike.

    mean m (D,), basis U (D, r) with orthonormal columns, variances c (r,), rest (). With one more leading axis, (C, D)
    and so on, it holds C laws, and law[k] with k (B,) gives each sample its own. A state x (B, ...) is seen as (B, D),
    a time is () or (B,). Work and memory are O(D r) a sample. Raises ValueError where shapes disagree.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: Tensor

    def __post_init__(self) -> None:
        *batch, d = self.mean.shape
        r = self.variances.shape[-1]
        shapes = [tuple(v.shape) for v in (self.basis, self.variances, self.rest)]
        if r > d or shapes != [(*batch, d, r), (*batch, r), tuple(batch)]:
            raise ValueError(f"basis, variances and rest {shapes} do not fit the mean {(*batch, d)}")

    @classmethod
    def fit(cls, x: Tensor | Iterable[Tensor], rank: int | None = None, shrink: bool = False) -> "GaussianLaw":
        """The law of data x (n, ...), or of chunks of rows that are read once, in float64.

        rank: how many eigenpairs to keep, the rest sharing their mean variance; all where None. Then, too, nothing
        larger than (chunk + 2 rank, D) is made; of several chunks the eigenpairs are then approximate, if close.
        shrink: pull the covariance towards a multiple of I by the oracle approximating shrinkage of Chen et al.
        (arXiv 0907.4698), for few rows. Raises ValueError for fewer than 2 rows, data that are not finite, and a rank
        that the data cannot have.
        """
        sums = None
        for chunk in [x] if isinstance(x, Tensor) else x:
            sums = _merge(sums, chunk, chunk[0].numel() if rank is None else 2 * rank + 8)
        if sums is None or sums.n < 2:
            raise ValueError(f"a covariance needs 2 rows or more, got {0 if sums is None else sums.n}")
        n, d = sums.n, len(sums.mean)
        most = min(n - 1, d)
        if rank is not None and not 0 <= rank <= most:
            raise ValueError(f"rank {rank} is out of range: {n} rows of {d} numbers have ranks from 0 to {most}")
        r = most if rank is None else rank
        variances = sums.s[:r].square() / (n - 1)
        rest = (sums.total / (n - 1) - variances.sum()) / max(d - r, 1)
        rest = torch.where(rest > SINGULAR * sums.total / (n - 1), rest, 0.0)
        law = cls(sums.mean, sums.vt[:r].T.contiguous(), variances, rest)
        return law.shrunk(law._oracle_shrinkage(n)) if shrink else law

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> "GaussianLaw":
        """The law of a mean (D,) and a dense covariance (D, D)."""
        variances, basis = torch.linalg.eigh(covariance)
        return cls(mean, basis.flip(-1), variances.flip(-1).clamp(min=0), variances.new_zeros(()))

    def shrunk(self, amount: Tensor | float) -> "GaussianLaw":
        """The covariance (1 - amount) S + amount tr(S) / D I, amount in [0, 1]."""
        left = self.mean.shape[-1] - self.variances.shape[-1]
        level = amount * (self.variances.sum(-1) + left * self.rest) / self.mean.shape[-1]
        return replace(
            self, variances=(1 - amount) * self.variances + level[..., None], rest=(1 - amount) * self.rest + level
        )

    def _oracle_shrinkage(self, n: int) -> Tensor:
        """The amount for n rows of Gaussian data."""
        d, r = self.basis.shape
        trace = self.variances.sum() + (d - r) * self.rest
        square = self.variances.square().sum() + (d - r) * self.rest**2
        away = (n + 1 - 2 / d) * (square - trace**2 / d)
        return torch.where(away > 0, ((1 - 2 / d) * square + trace**2) / away, 1.0).clamp(max=1)

    def to(self, like: Tensor) -> "GaussianLaw":
        """The same law with the dtype and on the device of `like`."""
        return GaussianLaw(*(v.to(like) for v in (self.mean, self.basis, self.variances, self.rest)))

    def __getitem__(self, k: Tensor | int) -> "GaussianLaw":
        """Of stacked laws the k-th, or with k (B,) one for each sample."""
        return GaussianLaw(self.mean[k], self.basis[k], self.variances[k], self.rest[k])

    def along(self, x: Tensor) -> Tensor:
        """The coordinates U^T x of x (B, D), (B, r)."""
        return (x[..., None, :] @ self.basis)[..., 0, :]

    def scale(self, x: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
        """x (B, D) with each eigendirection multiplied by factor(its variance)."""
        own = factor(self.variances)
        if self.basis.shape[-1] == self.basis.shape[-2]:
            return (self.basis @ (own * self.along(x))[..., None])[..., 0]
        rest = factor(self.rest[..., None])
        return rest * x + (self.basis @ ((own - rest) * self.along(x))[..., None])[..., 0]

    def flow(self, process: Gaussian, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Where the probability flow takes x (B, ...) from time t to time s, before or after it. Raises ValueError
        where x_t is singular, which needs t = 0 and a variance of 0."""
        law, flat = self.to(x), x.flatten(1)
        (alpha, sigma), (alpha_s, sigma_s) = level_for(process, t, flat), level_for(process, s, flat)
        law._check_regular(alpha, sigma, "a flow from")
        grow = lambda c: ((alpha_s**2 * c + sigma_s**2) / (alpha**2 * c + sigma**2)).sqrt()
        return (alpha_s * law.mean + law.scale(flat - alpha * law.mean, grow)).reshape(x.shape)

    def log_density(self, process: Gaussian, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) of x (B, ...), (B,) in nats. Raises ValueError as `flow`."""
        law, flat = self.to(x), x.flatten(1)
        d, r = law.basis.shape[-2:]
        alpha, sigma = level_for(process, t, flat)
        law._check_regular(alpha, sigma, "a density at")
        away = flat - alpha * law.mean
        own = law.along(away)
        v, v_rest = alpha**2 * law.variances + sigma**2, alpha**2 * law.rest[..., None] + sigma**2
        total = (own**2 / v + v.log()).sum(-1) + d * math.log(2 * math.pi)
        if r < d:
            off = (away - (law.basis @ own[..., None])[..., 0]).square().sum(-1, keepdim=True)
            total = total + (off / v_rest + (d - r) * v_rest.log())[..., 0]
        return -total / 2

    def draw(self, process: Gaussian, like: Tensor, t: Tensor, rng: Rng, name: str = "x") -> Tensor:
        """A draw of x_t shaped as `like` (B, ...): the flow of such a draw at any other time under the same rng."""
        law, flat = self.to(like), like.flatten(1)
        alpha, sigma = level_for(process, t, flat)
        xi = rng.normal(name, 1, tuple(like.shape), 0).to(like).flatten(1)
        return (alpha * law.mean + law.scale(xi, lambda c: (alpha**2 * c + sigma**2).sqrt())).reshape(like.shape)

    def _check_regular(self, alpha: Tensor, sigma: Tensor, what: str) -> None:
        full = self.basis.shape[-1] == self.basis.shape[-2]
        c = self.variances if full else torch.cat([self.variances, self.rest[..., None]], -1)
        v = alpha**2 * c + sigma**2
        if bool((v <= SINGULAR * v.amax(-1, keepdim=True)).any()):
            raise ValueError(
                f"{what} a time without noise needs a covariance without zeros; take t > 0, or fit with shrink=True, "
                "or with a lower rank"
            )


def stack(laws: Sequence[GaussianLaw]) -> GaussianLaw:
    """C laws of one size and rank as one, to be indexed by class: stack([GaussianLaw.fit(y, 8) for y in classes])[k].
    Raises ValueError where sizes or ranks differ."""
    shapes = sorted({tuple(law.basis.shape) for law in laws})
    if len(shapes) != 1:
        raise ValueError(f"laws of one size and rank stack, got (D, r) of {shapes}; pad the data, fit with one rank")
    columns = zip(*((law.mean, law.basis, law.variances, law.rest) for law in laws), strict=True)
    return GaussianLaw(*(torch.stack(column) for column in columns))
