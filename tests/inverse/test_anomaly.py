"""Anomaly scores, their calibration, and ensembles (S27, checks 2 and 4)."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import GaussianOracle, normal, three_modes
from unisci.batch import Field
from unisci.inverse.anomaly import (
    Calibrated,
    Rung,
    anomaly_scores,
    auroc,
    difference,
    ensemble,
    ladder,
    reconstruct,
)
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VE, VP
from unisci.rng import Rng
from unisci.solvers.sample import Together, perturbed
from unisci.solvers.tokens import Ancestral

F64 = torch.float64
LEVELS = (0.1, 0.25, 0.5)


def scores_of(x, seed=0, draws=2):
    return anomaly_scores(three_modes(VP()), x, ladder(VP(), LEVELS), Rng(seed, torch.arange(len(x))), draws)


def data(n, seed):
    return three_modes(VP()).sample(n, torch.Generator().manual_seed(seed))


def test_shifted_points_are_found():
    """AUROC above .95 where points of a mixture are shifted by 5 standard deviations, clear of other modes, .5 where by
    none; and p-values are shares."""
    calibrated, normal_points = Calibrated.fit(scores_of(data(1000, 0))), data(1000, 1)
    shift = 5 * 0.4 * torch.tensor([math.cos(2.0), math.sin(2.0)], dtype=F64)
    inside = calibrated(scores_of(normal_points, 1))
    assert auroc(inside, calibrated(scores_of(data(1000, 2) + shift, 2))) > 0.95
    assert auroc(inside, calibrated(scores_of(data(1000, 3), 3))) == pytest.approx(0.5, abs=0.05)
    p = calibrated.p_value(scores_of(data(1000, 4), 4))
    for share in (0.05, 0.2, 0.5):
        assert (p <= share).double().mean().item() == pytest.approx(share, abs=0.05)
    assert calibrated.p_value(scores_of(normal_points[:3] + 20, 1)).tolist() == pytest.approx([1 / 1001] * 3)


def test_too_little_noise_copies():
    """Why there is a ladder: what comes back from the least noise is the anomaly itself."""
    far = data(200, 0) + 4
    scores = anomaly_scores(three_modes(VP()), far, ladder(VP(), (0.005, 0.5)), Rng(0, torch.arange(200)))
    assert scores[:, 0].median() < 0.01 * scores[:, 1].median()


def test_scores_by_hand():
    """Mean over draws of the distance to what `reconstruct` gives on streams (rung, draw)."""
    denoise, x, rng = three_modes(VP()), data(5, 0), Rng(0, torch.arange(5))
    rungs = ladder(VP(), (0.2, 0.4), steps=4)
    assert [r.times[0].item() for r in rungs] == [0.2, 0.4] and rungs[0].times[-1] == 0 and len(rungs[0].times) == 5
    got = anomaly_scores(denoise, x, rungs, rng, draws=3, distance=lambda a, b: (a - b).abs().sum(1))
    for j, rung in enumerate(rungs):
        back = [reconstruct(denoise, x, rung, rng.at(j).at(m)) for m in range(3)]
        torch.testing.assert_close(got[:, j], torch.stack([(x - b).abs().sum(1) for b in back]).mean(0))
        assert not torch.equal(back[0], back[1])


def test_reconstruction_is_the_flow():
    """From x_t of exactly the rung's level: a Gaussian is solved back to where its flow ends."""
    denoise, x, rng = GaussianOracle(VP(), 1.0, 0.5), 1 + 0.5 * normal(4000, 3), Rng(0, torch.arange(4000))
    rung = ladder(VP(), (0.5,), steps=60, name="unipc2")[0]
    noised, back = perturbed(denoise, x, rung.times[0], rng.at(0)), reconstruct(denoise, x, rung, rng)
    torch.testing.assert_close(back, denoise.flow(noised, rung.times[0], torch.zeros((), dtype=F64)), rtol=0, atol=2e-3)
    assert back.mean().item() == pytest.approx(1.0, abs=0.02) and back.std().item() == pytest.approx(0.5, abs=0.01)


class TwoFields:
    """A position known to be N(0, 1), and atoms that the model believes to be of class 2."""

    def __init__(self):
        self.schema = {"position": Field("site", (3,)), "atom": Field("site", (), ("a", "b", "c"))}
        self.process = {"position": VP(), "atom": absorbing(3)}

    def __call__(self, x, t):
        position = GaussianOracle(VP())(x["position"], t)
        return {"position": position, "atom": torch.tensor([-9.0, -9.0, 9.0]).expand(*x["atom"].shape, 3)}


def test_mixed_fields():
    """Tokens and positions together: atoms of a class that the model does not know do not come back."""
    n, denoise = 64, TwoFields()
    x = {"position": normal(n, 4, 3).float(), "atom": torch.full((n, 4), 2)}
    strange = x | {"atom": torch.full((n, 4), 0)}
    program = ladder(VP(), (0.6,))[0].solver
    rung, rng = Rung(program.times, Together(position=program, atom=Ancestral())), Rng(0, torch.arange(n))
    apart = partial(difference, axes={"position": 1, "atom": 1})
    known, unknown = (anomaly_scores(denoise, v, [rung], rng, 1, apart)[:, 0] for v in (x, strange))
    assert auroc(known, unknown) > 0.7
    assert (unknown - known).mean().item() == pytest.approx(0.6, abs=0.1)  # as many atoms as were masked
    back = reconstruct(denoise, strange, rung, rng)["atom"]
    assert set(back.unique().tolist()) == {0, 2}


def test_fields_are_noised_apart():
    """Each by its own process, under its own name and layout: pairs alike in both orders."""
    schema = {"a": Field("site"), "b": Field("site"), "pair": Field("pair")}
    denoise = GaussianOracle({"a": VP(), "b": VP(), "pair": VE()}, schema=schema)
    x = {"a": torch.zeros(3, 4), "b": torch.zeros(3, 4), "pair": torch.zeros(3, 4, 4)}
    t, rng = torch.tensor(0.5, dtype=F64), Rng(0, torch.arange(3))
    noised = perturbed(denoise, x, t, rng)
    for k, v in noised.items():
        assert torch.equal(v, denoise.process[k].perturb(x[k], t, rng, k, schema[k].axes))
    assert torch.equal(noised["pair"], noised["pair"].mT) and not torch.equal(noised["a"], noised["b"])


def test_difference():
    """Means over what exists, pairs once, classes by whether they differ, fields added."""
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    x = {"p": torch.zeros(2, 3, 2), "a": torch.zeros(2, 3, dtype=torch.int64), "b": torch.zeros(2, 3, 3)}
    y = {k: v.clone() for k, v in x.items()}
    y["p"][0, 1, 0], y["p"][0, 2] = 2, 100
    y["a"][1, 1:], y["a"][0, 2] = 5, 7
    y["b"][0, 0, 1] = y["b"][0, 1, 0] = 3
    got = difference(x, y, {"p": 1, "a": 1, "b": 2}, mask)
    torch.testing.assert_close(got, torch.tensor([4 / 4 + 0 + 9, 0 + 2 / 3 + 0]))
    torch.testing.assert_close(difference(y["p"], x["p"])[1], torch.tensor(0.0))
    assert difference(torch.zeros(1, 4), torch.full((1, 4), 3.0)).tolist() == [9]


@given(size=st.integers(1, 7), seed=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_batch(size, seed):
    """Scores and ensembles of a sample are the same, bit for bit, in any batch."""
    denoise, x, rng = GaussianOracle(VP(), 0.3, 0.7), normal(7, 5, seed=seed), Rng(seed, torch.arange(7))
    rows = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:size]
    rungs = ladder(VP(), (0.2, 0.6), steps=3, name="ancestral")
    whole, part = (anomaly_scores(denoise, v, rungs, r, 2) for v, r in ((x, rng), (x[rows], rng[rows])))
    assert torch.equal(whole[rows], part)
    of = lambda v, r: ensemble(partial(reconstruct, denoise, v, rungs[0]), r, 3)
    for a, b in zip(of(x, rng), of(x[rows], rng[rows]), strict=True):
        assert torch.equal(a[rows], b)


@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 20))
@settings(max_examples=40, deadline=None)
def test_auroc_counts_pairs(n, m, seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(0, 5, (k,), generator=generator).double() for k in (n, m))
    pairs = (b[:, None] > a).double() + 0.5 * (b[:, None] == a)
    assert auroc(a, b) == pytest.approx(pairs.mean().item())
    assert auroc(a, b) + auroc(b, a) == pytest.approx(1)


def test_calibration_by_hand():
    """Each level in units of its own quantile; p counts who is as far off."""
    scores = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]])
    calibrated = Calibrated.fit(scores, 0.5)
    assert calibrated.unit.tolist() == [2.5, 25]
    torch.testing.assert_close(calibrated(scores), torch.tensor([0.4, 0.8, 1.2, 1.6]))
    torch.testing.assert_close(calibrated(torch.tensor([[5.0, 0.0]])), torch.tensor([1.0]))
    at = torch.tensor([[2.0, 20.0], [9.0, 90.0], [0.0, 0.0]])
    torch.testing.assert_close(calibrated.p_value(at), torch.tensor([4 / 5, 1 / 5, 1.0]))
    assert Calibrated.fit(scores).unit[0].item() == pytest.approx(3.85)


def test_ensemble():
    """Welford's mean and deviation are those of all members; posterior draws have the posterior's deviation."""
    rng, like = Rng(0, torch.arange(3)), {"a": torch.zeros(3, 4), "b": torch.zeros(3, 2)}
    draw = lambda r: {k: 100 + r.normal(k, 0, tuple(v.shape), 0) for k, v in like.items()}
    got, members = ensemble(draw, rng, 9), [draw(rng.at(m)) for m in range(9)]
    for k in like:
        stacked = torch.stack([m[k] for m in members])
        torch.testing.assert_close(got.mean[k], stacked.mean(0), rtol=0, atol=1e-4)
        torch.testing.assert_close(got.std[k], stacked.std(0), rtol=1e-4, atol=1e-4)


def test_what_is_refused():
    denoise, x, rng = three_modes(VP()), data(2, 0), Rng(0, torch.arange(2))
    with pytest.raises(ValueError, match="one rung and one draw or more, got 0 and 1"):
        anomaly_scores(denoise, x, [], rng)
    with pytest.raises(ValueError, match="got 1 and 0"):
        anomaly_scores(denoise, x, ladder(VP(), (0.1,)), rng, draws=0)
    with pytest.raises(ValueError, match="2 rows or more of finite scores"):
        Calibrated.fit(torch.ones(1, 2))
    with pytest.raises(ValueError, match="2 rows or more of finite scores"):
        Calibrated.fit(torch.tensor([[1.0], [math.nan]]))
    with pytest.raises(ValueError, match=r"score 0 at levels \[1\]"):
        Calibrated.fit(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    with pytest.raises(ValueError, match="finite scores of both kinds"):
        auroc(torch.ones(0), torch.ones(2))
    with pytest.raises(ValueError, match="finite scores of both kinds"):
        auroc(torch.ones(2), torch.tensor([math.inf]))
    with pytest.raises(ValueError, match="2 members or more, got 1"):
        ensemble(lambda r: x, rng, 1)
