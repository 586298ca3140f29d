"""MMDs of graph sets beside slow references (S34)."""

from itertools import combinations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from unisci.metrics.graphs import (
    clustering,
    earth_mover,
    erdos_renyi,
    euclidean,
    evaluate,
    features,
    orbits,
    spectrum,
    total_variation,
)
from unisci.rng import Rng

GRAPHLETS = {  # edges, and the orbit of each node
    "path": ([(0, 1), (1, 2), (2, 3)], [4, 5, 5, 4]),
    "star": ([(0, 1), (0, 2), (0, 3)], [7, 6, 6, 6]),
    "square": ([(0, 1), (1, 2), (2, 3), (3, 0)], [8, 8, 8, 8]),
    "paw": ([(0, 1), (1, 2), (2, 3), (1, 3)], [9, 11, 10, 10]),
    "diamond": ([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)], [13, 12, 13, 12]),
    "complete": (list(combinations(range(4), 2)), [14, 14, 14, 14]),
}


def array(edges, n: int) -> np.ndarray:
    a = np.zeros((n, n), np.int8)
    for i, j in edges:
        a[i, j] = a[j, i] = 1
    return a


def random_graph(n: int, p: float, seed: int) -> np.ndarray:
    return nx.to_numpy_array(nx.gnp_random_graph(n, p, seed=seed)).astype(np.int8)


def slow_orbits(a: np.ndarray) -> np.ndarray:
    """By isomorphism of every induced subgraph of 2 to 4 nodes."""
    templates = [([(0, 1)], [0, 0]), ([(0, 1), (1, 2)], [1, 2, 1]), ([(0, 1), (1, 2), (2, 0)], [3, 3, 3])]
    templates += list(GRAPHLETS.values())
    graph, out = nx.from_numpy_array(a), np.zeros((len(a), 15), int)
    for size in (2, 3, 4):
        for nodes in combinations(range(len(a)), size):
            part = graph.subgraph(nodes)
            for edges, names in templates:
                matcher = nx.isomorphism.GraphMatcher(part, nx.Graph(edges))
                if len(names) == size and part.number_of_edges() == len(edges) and matcher.is_isomorphic():
                    for i, k in matcher.mapping.items():
                        out[i, names[k]] += 1
    return out


@pytest.mark.parametrize("name", GRAPHLETS)
def test_orbits_of_each_graphlet(name):
    edges, expected = GRAPHLETS[name]
    assert orbits(array(edges, 4))[:, 4:].argmax(1).tolist() == [k - 4 for k in expected]
    assert orbits(array(edges, 4))[:, 4:].sum() == 4


@given(n=st.integers(1, 8), p=st.floats(0.2, 0.9), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_orbits_by_isomorphism(n, p, seed):
    a = random_graph(n, p, seed)
    assert np.array_equal(orbits(a), slow_orbits(a))


def test_too_large_a_graph_is_refused():
    with pytest.raises(ValueError, match="101 nodes"):
        orbits(np.zeros((101, 101), np.int8))


@given(n=st.integers(1, 12), p=st.floats(0.0, 1.0), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_clustering_and_spectrum_as_networkx(n, p, seed):
    a = random_graph(n, p, seed)
    graph = nx.from_numpy_array(a)
    assert clustering(a) == pytest.approx(list(nx.clustering(graph).values()))
    expected = np.linalg.eigvalsh(nx.normalized_laplacian_matrix(graph).toarray())
    assert spectrum(a) == pytest.approx(expected, abs=1e-9)


@given(n=st.integers(2, 9), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_distances_as_scipy(n, seed):
    x, y = np.random.default_rng(seed).dirichlet(np.ones(n), (2, 3))
    for i in range(3):
        for j in range(3):
            bins = np.arange(n)
            assert earth_mover(x, y)[i, j] == pytest.approx(wasserstein_distance(bins, bins, x[i], y[j]), abs=1e-12)
            assert total_variation(x, y)[i, j] == pytest.approx(np.abs(x[i] - y[j]).sum() / 2)
            assert euclidean(x, y)[i, j] == pytest.approx(np.linalg.norm(x[i] - y[j]))


def test_mmds_as_the_published_definition():
    """One pair of sets by loops over pairs, with the kernels' widths as GDSS has them."""
    xs, ys = [random_graph(7, 0.4, k) for k in range(4)], [random_graph(9, 0.6, 10 + k) for k in range(3)]

    def degree(a):
        return np.bincount(a.sum(1), minlength=9) / len(a)

    def cluster(a):
        return np.histogram(list(nx.clustering(nx.from_numpy_array(a)).values()), 100, (0, 1))[0] / len(a)

    def eigen(a):
        laplacian = nx.normalized_laplacian_matrix(nx.from_numpy_array(a)).toarray()
        return np.histogram(np.linalg.eigvalsh(laplacian), 200, (-1e-5, 2))[0] / len(a)

    def emd(x, y, scaling):
        bins = np.arange(len(x)) / scaling
        return wasserstein_distance(bins, bins, x, y)

    def mmd(describe, distance, sigma):
        us, vs = ([describe(a) for a in graphs] for graphs in (xs, ys))
        k = lambda u, v: np.exp(-(distance(u, v) ** 2) / (2 * sigma**2))
        mean = lambda us, vs: np.mean([k(u, v) for u in us for v in vs])
        return mean(us, us) + mean(vs, vs) - 2 * mean(us, vs)

    expected = {
        "degree_mmd": mmd(degree, lambda x, y: emd(x, y, 1), 1.0),
        "clustering_mmd": mmd(cluster, lambda x, y: emd(x, y, 100), 0.1),
        "orbit_mmd": mmd(lambda a: orbits(a).mean(0), lambda x, y: np.linalg.norm(x - y), 30.0),
        "spectrum_mmd": mmd(eigen, lambda x, y: emd(x, y, 1), 1.0),
    }
    found = evaluate(xs, ys, "known")
    assert {m.name: m.value for m in found} == pytest.approx(expected)
    assert all(m.n == 4 and m.reference == "known" and m.low <= m.value <= m.high for m in found)
    tv = {m.name: m.value for m in evaluate(xs, ys, kernel=total_variation)}
    assert tv["degree_mmd"] == pytest.approx(mmd(degree, lambda x, y: np.abs(x - y).sum() / 2, 1.0))
    assert tv["clustering_mmd"] == pytest.approx(mmd(cluster, lambda x, y: np.abs(x - y).sum() / 2, 0.1))
    assert tv["orbit_mmd"] == pytest.approx(expected["orbit_mmd"])


def test_equal_sets_and_the_order_of_nodes():
    graphs = [random_graph(8, 0.4, k) for k in range(5)]
    order = np.random.default_rng(0).permutation(8)
    moved = [a[order][:, order] for a in graphs]
    assert [m.value for m in evaluate(graphs, graphs)] == pytest.approx([0, 0, 0, 0], abs=1e-12)
    for k, v in features(graphs, 8).items():
        assert v == pytest.approx(features(moved, 8)[k]), k


def test_empty_graphs_are_failures():
    graphs = [random_graph(6, 0.5, k) for k in range(3)]
    empty = np.zeros((0, 0), np.int8)
    found = evaluate([*graphs, empty], graphs)
    assert all(m.failures == {"no nodes": 1} and m.n == 3 for m in found)
    with pytest.raises(ValueError, match="0 graphs and 3"):
        evaluate([empty], graphs)


@pytest.mark.parametrize("wrong", [np.eye(3), np.triu(np.ones((3, 3)), 1), 2 * (1 - np.eye(3)), np.zeros((2, 3))])
def test_what_is_no_graph_is_refused(wrong):
    with pytest.raises(ValueError, match="graph 0"):
        features([wrong], 3)


def test_the_baseline_has_sizes_and_density_of_the_reference():
    known = [random_graph(n, 0.3, n) for n in (5, 12, 20)]
    drawn = erdos_renyi(known, Rng(0, torch.arange(600)))
    assert {len(a) for a in drawn} == {5, 12, 20}
    density = lambda graphs: sum(int(a.sum()) for a in graphs) / sum(len(a) * (len(a) - 1) for a in graphs)
    assert density(drawn) == pytest.approx(density(known), abs=0.005)
    assert np.mean([len(a) for a in drawn]) == pytest.approx(37 / 3, abs=1.0)
    features(drawn[:20], 20)
    again = erdos_renyi(known, Rng(0, torch.tensor([17])))
    assert np.array_equal(again[0], drawn[17])
