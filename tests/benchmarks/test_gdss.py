"""The GDSS benchmark: its graphs, its models, and what it may not need."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import communities
from benchmarks.gdss_models import cdcd_model, counts, draft_model, draw, empty, paper_model, started, train
from benchmarks.gdss_ways import DECIDED, S4S, START, way
from unisci.metrics.graphs import erdos_renyi, evaluate
from unisci.rng import Rng
from unisci.training.fit import FitConfig

MODELS = {"paper": lambda data: paper_model(data, width=8, layers=2), "cdcd": lambda data: cdcd_model(data, 16, 8, 2)}
MODELS["drafts"] = lambda data: draft_model(data, 16, 8, 2)
each = pytest.mark.parametrize("kind", MODELS)


@pytest.fixture(scope="module")
def graphs() -> list[np.ndarray]:
    return communities.communities(Rng(0, torch.arange(100)))


def test_communities(graphs):
    """12 to 20 nodes in two halves of the stated density, and an edge or two between them."""
    assert {len(a) for a in graphs} == {12, 14, 16, 18, 20}
    within = pairs = 0
    for a in graphs:
        assert np.array_equal(a, a.T) and not a.diagonal().any()
        k = len(a) // 2
        within, pairs = within + a[:k, :k].sum() + a[k:, k:].sum(), pairs + 2 * k * (k - 1)
        assert 1 <= a[:k, k:].sum() <= 2
    assert within / pairs == pytest.approx(communities.WITHIN, abs=0.02)
    again = communities.communities(Rng(0, torch.tensor([42])))
    assert np.array_equal(again[0], graphs[42])


def test_graphs_become_batches_and_come_back(graphs):
    data = communities.batch(graphs)
    assert all(np.array_equal(a, b) for a, b in zip(communities.unbatch(data), graphs, strict=True))
    assert torch.equal(data.state["atom"][0][data.mask[0]], torch.from_numpy(graphs[0].sum(1)).long())
    assert counts(data)["bond"].sum() == sum(len(a) * (len(a) - 1) for a in graphs) + 2


def test_published_graphs_are_read(tmp_path, graphs):
    edges = [np.argwhere(np.triu(a)) for a in graphs]
    arrays = {"n": [len(a) for a in graphs], "m": [len(e) for e in edges], "edges": np.concatenate(edges)}
    np.savez(tmp_path / "x.npz", **{f"some_{k}": np.array(v, np.uint16) for k, v in arrays.items()})
    found = communities.published(tmp_path / "x.npz", "some")
    assert all(np.array_equal(a, b) for a, b in zip(found, graphs, strict=True))


@each
@pytest.mark.parametrize("name", [*S4S, "ancestral"])
def test_every_way_draws_graphs_with_its_calls(kind, name, graphs):
    data = communities.batch(graphs[:6])
    model = MODELS[kind](data)
    solver, times = way(name, 6, model, 0.05)
    calls, forward = [], model.denoiser.network.forward
    model.denoiser.network.forward = lambda *a, **k: calls.append(1) or forward(*a, **k)
    rng = Rng(0, torch.arange(4))
    drawn = draw(model, empty(data, rng), solver, times, rng)
    assert len(calls) == 6 and set(drawn.sites.tolist()) <= set(data.sites.tolist())
    evaluate(communities.unbatch(drawn), graphs[:3])


@each
def test_training_is_done_once(kind, graphs, tmp_path):
    data = communities.batch([a for a in graphs if len(a) == 12][:8])
    torch.manual_seed(0)
    config = FitConfig(6, 8, warmup=2, ema=0.5)
    model = train(MODELS[kind](data), data, config, tmp_path)
    done = train(MODELS[kind](data), data, config, tmp_path)
    for a, b in zip(model.denoiser.parameters(), done.denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_drafts_start_from_a_training_without_them(graphs, tmp_path):
    data = communities.batch([a for a in graphs if len(a) == 12][:8])
    torch.manual_seed(0)
    plain = train(MODELS["cdcd"](data), data, FitConfig(2, 8, warmup=2, ema=0.5), tmp_path / "cdcd")
    model = started(MODELS["drafts"](data), tmp_path / "cdcd")
    weights = dict(model.denoiser.named_parameters())
    assert all(torch.equal(v, weights[k]) for k, v in plain.denoiser.named_parameters())
    train(model, data, FitConfig(1, 8, warmup=2, ema=0.5), tmp_path / "drafts")
    for kind, folder in (("paper", "cdcd"), ("cdcd", "drafts")):
        with pytest.raises(ValueError, match="another network"):
            started(MODELS[kind](data), tmp_path / folder)
    with pytest.raises(ValueError, match="no checkpoint"):
        started(model, tmp_path / "none")


def test_times_of_langevin_steps_lie_where_classes_are_decided(graphs):
    model = MODELS["cdcd"](communities.batch(graphs[:2]))
    for name, calls in (("s4-langevin", 100), ("s4-2-langevin", 198)):
        times = way(name, calls, model, 0.05)[1]
        there = (times <= DECIDED[0]) & (times >= DECIDED[1])
        assert there.sum() > 0.8 * (len(times) - 1) and times[0] == START and times[-1] == 0
        assert (times.diff() < 0).all() and (times.diff()[there[:-1]][:-1] > -0.01).all()


def test_training_needs_no_rdkit():
    code = "import sys, benchmarks.gdss_models; print('rdkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_small_communities_are_learnt_better_than_erdos_renyi(graphs):
    """(S34, check 5) at most 10 CPU minutes; distances are to 20 graphs held back."""
    data = communities.batch(graphs[20:])
    torch.manual_seed(0)
    model = train(cdcd_model(data, 64, 24, 4), data, FitConfig(800, 32, ema=0.999), None)
    solver, times = way("ancestral", 100, model, 0.05)
    rng = Rng(0, torch.arange(60))
    drawn = communities.unbatch(draw(model, empty(data, rng), solver, times, rng))
    found = {m.name: m.value for m in evaluate(drawn, graphs[:20])}
    baseline = {m.name: m.value for m in evaluate(erdos_renyi(graphs[20:], rng), graphs[:20])}
    assert found["degree_mmd"] < min(0.15, baseline["degree_mmd"])
    assert found["clustering_mmd"] < min(0.2, baseline["clustering_mmd"])
