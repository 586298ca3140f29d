"""Small graphs of two communities, as the set community_small of GraphRNN (You et al., arXiv 1802.08773)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from unisci.batch import Batch, Field
from unisci.rng import Rng

WITHIN, BETWEEN = 0.65, 0.05  # edges of a community, of its pairs; edges between the two, of a graph's nodes
DEGREES = 13  # classes of the node feature, the degree


def communities(rng: Rng) -> list[np.ndarray]:
    """A graph (n, n) int8 for each sample: two communities of 6 to 10 nodes each, equal in size, and an edge or more
    between them."""
    b, out = len(rng.ids), []
    half = 6 + (5 * rng.uniform("size", 0, (b,), 0)).long()
    u = rng.uniform("edge", 0, (b, 20, 20), 2)
    for k, row, ends in zip(half.tolist(), u.numpy(), rng.uniform("between", 0, (b, 2)).numpy(), strict=True):
        side = np.arange(2 * k) < k
        a = (row[: 2 * k, : 2 * k] < WITHIN) & (side[:, None] == side) & ~np.eye(2 * k, dtype=bool)
        for _ in range(max(1, round(BETWEEN * 2 * k))):
            i, j = int(ends[0] * k), k + int(ends[1] * k)
            a[i, j] = a[j, i] = True
        out.append(a.astype(np.int8))
    return out


def published(path: Path, name: str = "community_small") -> list[np.ndarray]:
    """The graphs of a file with arrays <name>_n (nodes), _m (edges) and _edges (sum of m, 2)."""
    data, out, first = np.load(path), [], 0
    for n, m in zip(data[f"{name}_n"].tolist(), data[f"{name}_m"].tolist(), strict=True):
        a = np.zeros((n, n), np.int8)
        i, j = data[f"{name}_edges"][first : first + m].T.astype(int)
        a[i, j] = a[j, i] = 1
        out.append(a)
        first += m
    return out


def batch(graphs: Sequence[np.ndarray]) -> Batch:
    """Fields "atom" (B, N), the degree as a class, and "bond" (B, N, N), an edge or none."""
    n = max(len(a) for a in graphs)
    bond, mask = torch.zeros(len(graphs), n, n, dtype=torch.long), torch.zeros(len(graphs), n, dtype=torch.bool)
    for row, a in enumerate(graphs):
        bond[row, : len(a), : len(a)] = torch.from_numpy(a).long()
        mask[row, : len(a)] = True
    classes = tuple(str(k) for k in range(DEGREES))
    schema = {"atom": Field("site", (), classes), "bond": Field("pair", (), ("none", "edge"))}
    return Batch(schema, {"atom": bond.sum(2).clamp(max=DEGREES - 1), "bond": bond}, mask)


def unbatch(data: Batch) -> list[np.ndarray]:
    """The adjacencies of a batch of classes, (n, n) int8."""
    rows = zip(data.state["bond"].numpy(), data.mask.numpy(), strict=True)
    return [a[m][:, m].astype(np.int8) for a, m in rows]
