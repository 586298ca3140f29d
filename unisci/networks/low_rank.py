"""A mixture of low-rank Gaussians (MoLRG) as a denoiser with weights (Wang et al., arXiv 2409.02426).

For x_0 ~ sum_k pi_k N(m_k, U_k diag(c_k) U_k^T), U_k orthonormal of d_k columns, and x = alpha x_0 + sigma eps,

    E[x_0 | x] = sum_k w_k(x) (m_k + U_k diag(alpha c_k / v_k) U_k^T a_k),      a_k = x - alpha m_k
    w_k ~ pi_k N(x; alpha m_k, alpha^2 U_k diag(c_k) U_k^T + sigma^2 I),         v_k = alpha^2 c_k + sigma^2.

To train U_k by the diffusion loss is to cluster the data by subspaces (`unisci.theory.subspaces`).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LowRankMixture(nn.Module):
    """K components: bases (dim, d_k) with orthonormal columns, weights (K,), variances (d_k,) each, means (K, dim).

    Left out, weights are equal, variances 1 and means 0, the model of the theory; these two are trained only after
    `.requires_grad_()`. The bases are QR factors of free frames, so that they stay orthonormal whatever an optimiser
    does; start from `random_bases`. Raises ValueError for bases of different dim, or that are not orthonormal.
    """

    def __init__(
        self,
        bases: Sequence[Tensor],
        weights: Tensor | None = None,
        variances: Sequence[Tensor] | None = None,
        means: Tensor | None = None,
    ):
        super().__init__()
        self.ranks = tuple(u.shape[1] for u in bases)
        dim, k, r, like = len(bases[0]), len(bases), max(self.ranks), bases[0].detach()
        for u in bases:
            d = u.shape[1]
            if len(u) != dim or not 1 <= d <= dim or not (u.T @ u - torch.eye(d).to(u)).abs().max() <= 1e-4:
                raise ValueError(f"a basis must have orthonormal columns of length {dim}; take torch.linalg.qr(u)[0]")
        self.frames = nn.Parameter(torch.stack([completed(u.detach(), r) for u in bases]))
        self.logits = nn.Parameter(like.new_zeros(k) if weights is None else weights.detach().to(like).log())
        means = like.new_zeros(k, dim) if means is None else means.detach().to(like).clone()
        self.means = nn.Parameter(means, requires_grad=False)
        log_variances = like.new_zeros(k, r)
        for i, c in enumerate(variances or ()):
            log_variances[i, : len(c)] = c.detach().log()
        self.log_variances = nn.Parameter(log_variances, requires_grad=False)
        # A column beyond its component's rank has variance 0, and so no part in anything.
        used = torch.arange(r) < torch.tensor(self.ranks)[:, None]
        self.register_buffer("used", used.to(like.device), persistent=False)

    def padded_bases(self) -> Tensor:
        """Orthonormal U_k (K, dim, R), R the largest rank; the columns beyond d_k are not used."""
        return torch.linalg.qr(self.frames)[0]

    def bases(self) -> list[Tensor]:
        """U_k (dim, d_k) of each component."""
        return [u[:, :r] for u, r in zip(self.padded_bases(), self.ranks, strict=True)]

    @property
    def weights(self) -> Tensor:
        """pi (K,)."""
        return self.logits.softmax(0)

    @property
    def variances(self) -> Tensor:
        """c (K, R), 0 where not used."""
        return self.log_variances.exp() * self.used

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Bases (K, dim, R), coordinates U_k^T a_k (B, K, R), their gains alpha c / v, and log pi_k N_k(x) (B, K)."""
        alpha, sigma = (v.reshape(-1, 1, 1) for v in (alpha, sigma))
        u, c = self.padded_bases(), self.variances
        away = x[:, None] - alpha * self.means
        own = torch.einsum("bkd,kdr->bkr", away, u)
        off = away - torch.einsum("bkr,kdr->bkd", own, u)
        v = alpha**2 * c + sigma**2
        spare = x.shape[1] - u.shape[2]
        square = (own**2 / v + v.log()).sum(-1) + (off.square().sum(-1) / sigma[..., 0] ** 2)
        constant = x.shape[1] * math.log(2 * math.pi) + 2 * spare * sigma[..., 0].log()
        return u, own, alpha * c / v, self.logits.log_softmax(0) - (square + constant) / 2

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x] of x (B, dim); alpha and sigma > 0 scalars, or (B,) or (B, 1)."""
        u, own, gain, joint = self._parts(x, alpha, sigma)
        w = joint.softmax(1)
        return w @ self.means + torch.einsum("bk,bkr,kdr->bd", w, gain * own, u)

    def log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log pi_k + log N_k(x) (B, K) in nats: the softmax over k says which component x is of."""
        return self._parts(x, alpha, sigma)[3]

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log p(x) of the noised x, (B,) in nats."""
        return self.log_joint(x, alpha, sigma).logsumexp(1)


def completed(u: Tensor, columns: int) -> Tensor:
    """u (dim, d) with orthonormal columns, up to sign, and some more added, up to (dim, columns)."""
    # A Householder QR is orthonormal even where a unit vector lies in the span of u.
    more = torch.eye(len(u), columns - u.shape[1], dtype=u.dtype, device=u.device)
    return torch.linalg.qr(torch.cat([u, more], 1))[0]


def random_bases(dim: int, ranks: Sequence[int]) -> list[Tensor]:
    """Random orthonormal (dim, d_k) from torch's global generator, as the weights of any network. Raises ValueError
    for a rank that is not in 1, ..., dim."""
    if not ranks or not all(1 <= r <= dim for r in ranks):
        raise ValueError(f"ranks must lie in 1, ..., {dim}, one for each component, got {list(ranks)}")
    return [nn.init.orthogonal_(torch.empty(dim, r)) for r in ranks]
