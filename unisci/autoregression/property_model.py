"""What a finished molecule will measure, told from its noised beginnings: the potential h_t of properties (the
classifier of arXiv 2105.05233 for block-autoregressive graphs, and the value function of arXiv 2112.00114's kin).

For a graph G with values v(G), and its first blocks, the last of them noised to time t,

    p(v | G_t, t) = N(mean, std^2), each property on its own,

fitted by maximum likelihood on the same random blocks and the same noise as the generator's. A target's potential is
then a probability, P(v in target | G_t), whose logarithm steers logits and weighs particles.
"""

import torch
from torch import Tensor, nn

from unisci.autoregression.conditions import VALUES
from unisci.autoregression.pard import examples, ordered
from unisci.batch import Batch
from unisci.networks.graph_transformer import GraphHead
from unisci.order import Order
from unisci.processes.product import Product, site_times
from unisci.rng import Rng

SMALLEST = 0.02  # least predicted standard deviation, in those of the data: a sharper one would be overfitted


class PropertyModel(nn.Module):
    """network: with two outputs for each of `names`; product: the generator's noise; mean, std (P,): of the data's
    values; hops: of the structural order."""

    def __init__(
        self, network: GraphHead, product: Product, names: tuple[str, ...], mean: Tensor, std: Tensor, hops: int
    ):
        super().__init__()
        self.network, self.product, self.names, self.hops = network, product, names, hops
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())

    @property
    def classes(self) -> tuple[str, ...]:
        """The atoms that it knows."""
        return self.product.schema["atom"].classes

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor] | None,
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order,
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, P) of the finished graph's values. t = None: what is there is clean."""
        mean, spread = self.network(state, mask, given, order, t).chunk(2, -1)
        return self.mean + self.std * mean, self.std * (nn.functional.softplus(spread) + SMALLEST)

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Mean over graphs and properties of -log N, in units of the data's spread, on one random block of each.

        batch: graphs, ordered graphs or `examples`, with given["properties"] (B, P). Half of the blocks are clean; the
        times of the others crowd at 0 as the sampler's grid does.
        """
        if "rank" not in batch.given:
            batch = ordered(batch, self.hops)
        if "block" not in batch.given:
            batch = examples(batch, rng)
        product = self.product.to(batch.mask.device)
        u = rng.uniform("property time", 0, (len(batch),), 0)
        t = (2 * u - 1).clamp(min=0) ** 2
        moving = (batch.given["rank"] == batch.given["block"][:, None]) & batch.mask
        times = site_times({k: batch.schema[k] for k in batch.state}, moving, t)
        noisy = product.perturb(batch.state, times, rng)
        order = Order(torch.where(batch.mask, batch.given["rank"], -1))
        mean, std = self(noisy, times, batch.mask, batch.given, order)
        z = (batch.given[VALUES] - mean) / std
        return (z.square() / 2 + (std / self.std).log()).mean()
