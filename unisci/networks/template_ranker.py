"""Which template fits: a score for each candidate that chemistry retrieved.

    x_s = [E(q_s), E(T_s), E(q_s) - E(T_s), f(q_s) - f(T_s), |f(q_s) - f(T_s)|, f(q_s), c_s]       the swap of a species
    m_s = sum_u c_u silu(W silu(A x_s + B x_u + C g_su(r) + H g_su(rho (R_s + R_u) / d) + D v))
    h   = phi(sum_s c_s psi(x_s, m_s), v),    score = w h' + u v

q_s and T_s are the formula's element and the template's that it replaces, E learned and f chemical features, c_s the
share of the sites; g_su the template's pair densities (`unisci.domains.pair_densities`), read at fixed distances r and
at multiples rho of the distance at which the formula's atoms would touch, of radii R and mean spacing d; v facts about
the candidate as a whole (`unisci.domains.candidates`). h' is h after the candidates have seen each other, those of like
pair densities first: copies of one prototype vote, and another known polymorph counts against. The scores of one
formula's candidates are compared by a softmax, so adding a constant changes nothing.
"""

import torch
from torch import Tensor, nn

CONTACTS = (0.7, 2.2, 24)  # rho: from, to, how many
HEADS = 4


class TemplateRanker(nn.Module):
    """features (101, F): of the elements, row = atomic number, see `unisci.domains.elements`; distances (R,), evenly
    spaced: r, those of the pair densities, in units of the mean spacing; facts: how many numbers are in v."""

    def __init__(self, features: Tensor, distances: Tensor, facts: int, embedding: int = 24, width: int = 64):
        super().__init__()
        self.register_buffer("features", features.float())
        self.register_buffer("distances", distances.float(), persistent=False)
        self.element = nn.Embedding(len(features), embedding)
        nn.init.normal_(self.element.weight, std=0.1)
        inputs, wide = 3 * embedding + 3 * features.shape[1] + 1, width * 3 // 2
        self.own, self.other = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.density, self.facts = nn.Linear(len(distances), width), nn.Linear(facts, width)
        self.contact = nn.Linear(CONTACTS[2], width, bias=False)
        self.pair = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.species = nn.Sequential(nn.Linear(inputs + width, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.hidden = nn.Sequential(nn.Linear(wide + facts, wide), nn.SiLU(), nn.Dropout(0.1))
        self.among = Among(wide)
        self.out, self.straight = nn.Linear(wide, 1), nn.Linear(facts, 1)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        elements: Tensor,
        share: Tensor,
        touching: Tensor,
        theirs: Tensor,
        density: Tensor,
        facts: Tensor,
        exists: Tensor,
    ) -> Tensor:
        """Scores (B, K) of K candidates for each of B formulas of at most S species, -inf where there is none.

        elements (B, S), theirs (B, K, S): atomic numbers, 0 where none; share (B, S): c_s, 0 where none; touching
        (B, S, S): (R_s + R_u) / d; density (B, K, S, S, R); facts (B, K, V); exists (B, K) bool.
        """
        c = share[:, None, :, None].expand(-1, theirs.shape[1], -1, -1)
        mine = elements[:, None].expand_as(theirs)
        e, f = (self.element(mine), self.element(theirs)), (self.features[mine], self.features[theirs])
        x = torch.cat([*e, e[0] - e[1], f[0] - f[1], (f[0] - f[1]).abs(), f[0], c], -1)
        pairs = self.own(x)[..., None, :] + self.other(x)[:, :, None] + self.facts(facts)[:, :, None, None]
        pairs = self.pair(pairs + self.density(density / 3) + self.contact(self._at_contact(density, touching) / 3))
        message = (pairs * c[:, :, None]).sum(3)
        whole = (self.species(torch.cat([x, message], -1)) * c).sum(2)
        h = self.among(self.hidden(torch.cat([whole, facts], -1)), _apart(density, share), exists)
        return (self.out(h) + self.straight(facts))[..., 0].masked_fill(~exists, float("-inf"))

    def _at_contact(self, density: Tensor, touching: Tensor) -> Tensor:
        """g (B, K, S, S, rho) at multiples of touching (B, S, S), linear between `distances`, constant beyond them."""
        r, known = touching[..., None] * torch.linspace(*CONTACTS, device=density.device), self.distances
        place = ((r - known[0]) / (known[1] - known[0])).clamp(0, len(known) - 1)
        low = place.long().clamp(max=len(known) - 2)
        weight, low = (place - low)[:, None], low[:, None].expand(-1, density.shape[1], -1, -1, -1)
        return torch.lerp(density.gather(-1, low), density.gather(-1, low + 1), weight)


class Among(nn.Module):
    """Candidates (B, K, width) look at each other, by content and by how far `apart` they are, each head in its way."""

    def __init__(self, width: int):
        super().__init__()
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.alike = nn.Parameter(torch.tensor([0.1, 0.03, 0.3, 0.0]))
        self.after = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(0.1))

    def forward(self, h: Tensor, apart: Tensor, exists: Tensor) -> Tensor:
        b, k, width = h.shape
        q, key, value = self.qkv(h).view(b, k, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        bias = -self.alike.abs()[:, None, None] * apart[:, None]
        a = q @ key.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias
        a = a.masked_fill(~exists[:, None, None], torch.finfo(h.dtype).min).softmax(-1)
        h = h + self.mix((a @ value).transpose(1, 2).reshape(b, k, width))
        return h + self.after(h)


def _apart(density: Tensor, share: Tensor) -> Tensor:
    """(B, K, K): `unisci.domains.pair_densities.density_distance` of every two candidates."""
    flat = (density * share.sqrt()[:, None, :, None, None]).flatten(2)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()


def ranking_loss(scores: Tensor, fit: Tensor) -> Tensor:
    """Minus the log of the expected fit under the softmax of the scores, mean over formulas.

    scores, fit (B, K); fit in [0, 1]: how well each candidate matches the truth, 0 where there is none.
    """
    return -torch.logsumexp(scores.log_softmax(1) + fit.clamp(min=1e-6).log(), 1).mean()
