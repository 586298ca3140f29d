"""Which template fits: a score for each candidate that chemistry retrieved.

    x_s = [E(q_s), E(T_s), E(q_s) - E(T_s), f(q_s) - f(T_s), |f(q_s) - f(T_s)|, f(q_s), c_s]       the swap of a species
    m_s = sum_u c_u silu(W silu(A x_s + B x_u + C g_su + D v)),    score = phi(sum_s c_s psi(x_s, m_s), v) + w v

q_s and T_s are the formula's element and the template's that it replaces, E learned and f chemical features, c_s the
share of the sites, g_su the template's pair densities (`unisci.domains.pair_densities`), v facts about the candidate
as a whole: its chemical distance, its volume, and how many of the other candidates look like it. The scores of one
formula's candidates are compared by a softmax, so adding a constant changes nothing.
"""

import torch
from torch import Tensor, nn

INPUTS = 10  # numbers in v
RADII = 28  # of the pair densities


class TemplateRanker(nn.Module):
    """features (101, F): of the elements, row = atomic number, see `unisci.domains.elements`."""

    def __init__(self, features: Tensor, embedding: int = 24, width: int = 64):
        super().__init__()
        self.register_buffer("features", features.float())
        self.element = nn.Embedding(len(features), embedding)
        nn.init.normal_(self.element.weight, std=0.1)
        inputs = 3 * embedding + 3 * features.shape[1] + 1
        self.own, self.other = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.density, self.facts = nn.Linear(RADII, width), nn.Linear(INPUTS, width)
        self.pair = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        wide = width * 3 // 2
        self.species = nn.Sequential(nn.Linear(inputs + width, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.out = nn.Sequential(nn.Linear(wide + INPUTS, wide), nn.SiLU(), nn.Dropout(0.1), nn.Linear(wide, 1))
        nn.init.zeros_(self.out[-1].weight)
        self.straight = nn.Linear(INPUTS, 1)

    def forward(
        self, elements: Tensor, share: Tensor, theirs: Tensor, density: Tensor, facts: Tensor, exists: Tensor
    ) -> Tensor:
        """Scores (B, K) of K candidates for each of B formulas of at most S species, -inf where there is none.

        elements (B, S), theirs (B, K, S): atomic numbers, 0 where none; share (B, S): c_s, 0 where none; density
        (B, K, S, S, R); facts (B, K, INPUTS); exists (B, K) bool.
        """
        share = share[:, None, :, None].expand(-1, theirs.shape[1], -1, -1)
        mine = elements[:, None].expand_as(theirs)
        e, f = (self.element(mine), self.element(theirs)), (self.features[mine], self.features[theirs])
        x = torch.cat([*e, e[0] - e[1], f[0] - f[1], (f[0] - f[1]).abs(), f[0], share], -1)
        own, other = self.own(x)[..., None, :], self.other(x)[:, :, None]
        pairs = self.pair(own + other + self.density(density / 3) + self.facts(facts)[:, :, None, None])
        message = (pairs * share[:, :, None]).sum(3)
        whole = (self.species(torch.cat([x, message], -1)) * share).sum(2)
        score = self.out(torch.cat([whole, facts], -1)) + self.straight(facts)
        return score[..., 0].masked_fill(~exists, float("-inf"))


def ranking_loss(scores: Tensor, fit: Tensor) -> Tensor:
    """Minus the log of the expected fit under the softmax of the scores, mean over formulas.

    scores, fit (B, K); fit in [0, 1]: how well each candidate matches the truth, 0 where there is none.
    """
    return -torch.logsumexp(scores.log_softmax(1) + fit.clamp(min=1e-6).log(), 1).mean()
