"""How good a set of generated graphs is: `evaluate(graphs, reference)` gives a list of Metric.

    MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y),     k(x, y) = exp(-d(x, y)^2 / (2 sigma^2))

over all pairs, a graph with itself too, as in GraphRNN (You et al., arXiv 1802.08773) and GDSS (2202.02514), whose
published numbers are these squares. What x is and its distance d, with the settings of GDSS:

    degree      histogram of degrees,                            d the earth mover's distance in degrees, sigma = 1
    clustering  histogram of clustering coefficients, 100 bins,  d the earth mover's distance, sigma = .1
    orbit       mean counts of the 15 orbits of 2 to 4 nodes,    d the Euclidean distance, sigma = 30
    spectrum    histogram of the normalised Laplacian, 200 bins, d the earth mover's distance in bins, sigma = 1

`kernel=total_variation` puts half the L1 distance for the earth mover's, as in GRAN (1910.00760). A graph is a
symmetric array (n, n) of 0 and 1 with zero diagonal.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np

from unisci.metrics.intervals import jackknife
from unisci.metrics.metric import Metric
from unisci.rng import Rng

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows (n, F) and (m, F) to (n, m)
BINS = {"clustering": 100, "spectrum": 200}
SIGMA = {"degree": 1.0, "clustering": 0.1, "orbit": 30.0, "spectrum": 1.0}
MAX_NODES = 100
PAIRS = tuple(combinations(range(4), 2))


def earth_mover(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of histograms (n, F), (m, F) of equal mass on a line, neighbouring bins being 1 apart: (n, m)."""
    return np.stack([np.abs(row).sum(-1) for row in x.cumsum(-1)[:, None] - y.cumsum(-1)])


def total_variation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Half the L1 distance of histograms (n, F), (m, F): (n, m)."""
    return np.stack([np.abs(row).sum(-1) for row in x[:, None] - y]) / 2


def euclidean(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of rows (n, F), (m, F): (n, m)."""
    return np.sqrt(np.square(x[:, None] - y).sum(-1))


def clustering(a: np.ndarray) -> np.ndarray:
    """Clustering coefficients (n,): triangles over pairs of neighbours, 0 where there are no two neighbours."""
    a = a.astype(float)
    d = a.sum(1)
    pairs = d * (d - 1)
    return np.divide(np.einsum("ij,jk,ki->i", a, a, a), pairs, out=np.zeros_like(d), where=pairs > 0)


def spectrum(a: np.ndarray) -> np.ndarray:
    """Eigenvalues (n,) of I - D^-1/2 A D^-1/2, in [0, 2]; 0 for an isolated node."""
    d = a.sum(1).astype(float)
    scale = np.divide(1, np.sqrt(d), out=np.zeros_like(d), where=d > 0)
    return np.linalg.eigvalsh(np.diag((d > 0).astype(float)) - scale[:, None] * a * scale).clip(0, 2)


def orbits(a: np.ndarray) -> np.ndarray:
    """How often each node (n,) lies on each of the 15 orbits of connected induced subgraphs of 2 to 4 nodes, (n, 15).

    Numbered as by Przulj (2007): 0 edge; 1, 2 end and middle of a path of three; 3 triangle; 4, 5 end and middle of a
    path of four; 6, 7 leaf and centre of a star; 8 square; 9 to 11 paw by degree; 12, 13 diamond by degree; 14
    complete.
    All sets of four are looked at. Raises ValueError for more than 100 nodes.
    """
    n = len(a)
    if n > MAX_NODES:
        raise ValueError(f"a graph of {n} nodes; orbits are counted for {MAX_NODES} or fewer")
    a = a.astype(np.int64)
    d = a.sum(1)
    out = np.zeros((n, 15), np.int64)
    triangles = ((a @ a) * a).sum(1) // 2
    out[:, 0], out[:, 3] = d, triangles
    out[:, 1], out[:, 2] = a @ (d - 1) - 2 * triangles, d * (d - 1) // 2 - triangles
    for four in _fours(n):
        code = sum(a[four[:, i], four[:, j]] << k for k, (i, j) in enumerate(PAIRS))
        orbit = ORBIT[code]
        counts = np.bincount((four * 16 + orbit).ravel(), minlength=16 * n).reshape(n, 16)
        out[:, 4:] += counts[:, 4:15]
    return out


def _fours(n: int) -> Iterator[np.ndarray]:
    """All sets of four of n nodes, (m, 4), those of one smallest node at a time."""
    three = np.array(list(combinations(range(n), 3)), np.int64).reshape(-1, 3)
    for i in range(n - 3):
        rest = three[three[:, 0] > i]
        yield np.concatenate([np.full((len(rest), 1), i), rest], 1)


def _orbit_table() -> np.ndarray:
    """(64, 4): the orbit of each of four nodes by the six bits of their pairs, 15 where they are not connected."""
    # The sorted degrees of four nodes say which connected graph it is, and a node's degree its orbit in it.
    names = {
        (1, 1, 2, 2): {1: 4, 2: 5},
        (1, 1, 1, 3): {1: 6, 3: 7},
        (2, 2, 2, 2): {2: 8},
        (1, 2, 2, 3): {1: 9, 2: 10, 3: 11},
        (2, 2, 3, 3): {2: 12, 3: 13},
        (3, 3, 3, 3): {3: 14},
    }
    table = np.full((64, 4), 15)
    for code in range(64):
        degrees = [0] * 4
        for k, pair in enumerate(PAIRS):
            for i in pair:
                degrees[i] += code >> k & 1
        orbit = names.get(tuple(sorted(degrees)))
        if orbit:
            table[code] = [orbit[d] for d in degrees]
    return table


ORBIT = _orbit_table()


def features(graphs: Sequence[np.ndarray], degrees: int) -> dict[str, np.ndarray]:
    """What each metric compares, a row a graph; degrees: the number of bins of the histogram of degrees.

    Raises ValueError where an array is no graph.
    """
    rows: dict[str, list[np.ndarray]] = {k: [] for k in SIGMA}
    for i, a in enumerate(graphs):
        _check(a, i)
        cluster = np.histogram(clustering(a), BINS["clustering"], (0, 1))[0]
        eigen = np.histogram(spectrum(a), BINS["spectrum"], (-1e-5, 2))[0]
        rows["degree"].append(np.bincount(a.sum(1).astype(int), minlength=degrees) / len(a))
        rows["clustering"].append(cluster / len(a))
        rows["orbit"].append(orbits(a).mean(0))
        rows["spectrum"].append(eigen / len(a))
    return {k: np.stack(v) for k, v in rows.items()}


def evaluate(
    graphs: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    name: str = "reference",
    kernel: Distance = earth_mover,
    seed: int = 0,
) -> list[Metric]:
    """degree_mmd, clustering_mmd, orbit_mmd, spectrum_mmd of two sets of graphs; squares, 0 for equal sets.

    Graphs without nodes are counted in `failures`. kernel: the distance of histograms. The interval, by jackknife over
    the graphs, is about their draw, not about that of the reference; a square of finite sets is never quite 0. Raises
    ValueError where a set has no graph, and as `features`.
    """
    kept, known = [a for a in graphs if len(a)], [a for a in reference if len(a)]
    if not kept or not known:
        raise ValueError(f"{len(kept)} graphs and {len(known)} of the reference have nodes; both need one or more")
    degrees = max(len(a) for a in (*kept, *known))
    x, y, metrics = features(kept, degrees), features(known, degrees), []
    for k, sigma in SIGMA.items():
        # Clustering coefficients lie 1 / bins apart.
        width = sigma * BINS[k] if k == "clustering" and kernel is earth_mover else sigma
        distance = euclidean if k == "orbit" else kernel
        gram = lambda u, v, distance=distance, width=width: np.exp(-(distance(u, v) ** 2) / (2 * width**2))
        xx, xy, yy = gram(x[k], x[k]), gram(x[k], y[k]), gram(y[k], y[k]).mean()
        value, low, high = jackknife(
            lambda i, xx=xx, xy=xy, yy=yy: max(0.0, xx[np.ix_(i, i)].mean() + yy - 2 * xy[i].mean()), len(kept), seed
        )
        failures = {"no nodes": len(graphs) - len(kept)} if len(kept) < len(graphs) else {}
        metrics.append(Metric(f"{k}_mmd", value, low, high, len(kept), failures, name))
    return metrics


def erdos_renyi(reference: Sequence[np.ndarray], rng: Rng) -> list[np.ndarray]:
    """The baseline: one graph a sample of rng, as large as a graph of the reference drawn at random, each pair an edge
    with the share of pairs that are edges in the reference."""
    sizes = np.array([len(a) for a in reference])
    edges = sum(int(a.sum()) for a in reference) / max(1, int((sizes * (sizes - 1)).sum()))
    b, n = len(rng.ids), int(sizes.max())
    which = (rng.uniform("size", 0, (b,), 0).numpy() * len(sizes)).astype(int)
    a = (rng.uniform("edge", 0, (b, n, n), 2).numpy() < edges) & ~np.eye(n, dtype=bool)
    return [a[i, :k, :k].astype(np.int8) for i, k in enumerate(sizes[which])]


def _check(a: np.ndarray, i: int) -> None:
    square = a.ndim == 2 and a.shape[0] == a.shape[1]
    if not square or not np.isin(a, (0, 1)).all() or (a != a.T).any() or a.diagonal().any():
        raise ValueError(f"graph {i} of shape {a.shape} is no symmetric array of 0 and 1 with zero diagonal")
