"""Anyone's forecast refined: close to it for little noise, the model's own for much, and read from tables."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tests.forecasting.ar_windows import TRUTH
from tests.forecasting.exact_windows import F64, GaussianNetwork, ar, conditional, model_of, panel, series, source_of
from tests.forecasting.test_drawing import MANY, TWO, mlp
from tests.oracles import normal
from unisci.domains.series import Panel, values_frame
from unisci.domains.series_frames import read_frame
from unisci.forecasting.prompts import Prompted
from unisci.forecasting.refining import Langevin, Restart, base_paths, refine_paths
from unisci.forecasting.scales import scaled
from unisci.forecasting.tsdiff import denoising_loss, path_levels, pinball
from unisci.forecasting.windows import WindowShape

Y, PAST, SHAPE = torch.tensor(TRUTH, dtype=F64), torch.arange(24) < 16, WindowShape(16, 8)
MEAN, STD = conditional(ar(24), Y, PAST)


def exact():
    data = panel(Y[:16].numpy())
    _, loc, scale, _ = scaled(Y[None], PAST[None], source_of(data).spread)
    return model_of(GaussianNetwork(-loc[0, 0] / scale[0, 0], ar(24) / scale[0, 0] ** 2), SHAPE, data), data


def refined(base, refiner, seed=0):
    """base (S, h) -> (S, h)."""
    model, data = exact()
    return refine_paths(model, source_of(data, 8), ["s0"], np.asarray(base)[None, ..., None], seed, refiner)[0, ..., 0]


def test_much_noise_forgets_the_base():
    """In law the forecast itself, from a base five standard deviations off."""
    found = refined(np.full((1200, 8), 5.0), Restart(0.999, 15))
    assert np.sqrt(((found.mean(0) - MEAN.numpy()) ** 2).mean()) < 0.06
    assert np.abs(found.std(0) / STD.numpy() - 1).max() < 0.1


def test_little_noise_keeps_each_path_of_the_base():
    base = normal(40, 8).numpy()
    near, far = refined(base, Restart(0.02, 4)), refined(base, Restart(0.5))
    assert np.abs(near - base).max() < 0.2
    assert np.abs(near - base).mean() < 0.2 * np.abs(far - base).mean()
    assert not np.isclose(near, refined(base, Restart(0.02, 4), 1)).any()


def test_refining_helps_a_poor_base():
    base = np.full((200, 8), 3.0)
    error = lambda x: np.abs(x.mean(0) - MEAN.numpy()).mean()
    for refiner, share in ((Restart(0.7), 0.8), (Langevin(0.3, 20, 0.05), 0.95)):
        assert error(refined(base, refiner)) < share * error(base), refiner


def energy(x, base, refiner, noises=40):
    """The energy of a refined horizon (S, 8), its mean over draws of eps."""
    model, data = exact()
    s = len(x)
    batch = source_of(data, 8).cut(SHAPE, torch.zeros(s, dtype=torch.long), torch.full((s,), 16))
    whole = lambda v: torch.cat([Y[:16].expand(s, -1), torch.as_tensor(v)], 1)
    where = PAST.expand(s, -1)
    windows, _ = model.windows(batch.replace(y=whole(x)), where, where, torch.ones_like(where))
    sorted_ = model.windows(batch.replace(y=whole(np.sort(base, 0))), where, where, torch.ones_like(where))[0].state
    denoise = Prompted(model.denoiser.on(windows), windows.state, where)
    level = torch.full((s,), refiner.t)
    with torch.no_grad():
        total = refiner.weight * pinball(sorted_, path_levels(s))(windows.state)
        for k in range(noises):
            eps = {"y": normal(s, 24, seed=k).float()}
            total = total + denoising_loss(denoise, windows.state, level, eps) / noises
    return float(total.mean())


def test_langevin_lowers_the_energy():
    base = np.asarray(2 + normal(20, 8).numpy())
    refiner = Langevin(0.3, 15, 0.02, 0.01)
    found = refined(base, refiner)
    assert energy(found, base, refiner) < 0.8 * energy(np.sort(base, 0), base, refiner)


def test_paths_are_sorted_only_where_they_are_levels():
    """A base with paths in another order: the same levels, and each restarted path beside its own."""
    base, order = normal(9, 8).numpy(), np.random.default_rng(0).permutation(9)
    still = Langevin(0.1, 1, 1e-12, 0.0)
    np.testing.assert_allclose(refined(base, still), np.sort(base, 0), atol=1e-5)
    assert np.array_equal(refined(base[order], still), refined(base, still))
    assert Langevin.by_level and not Restart.by_level


@pytest.mark.parametrize("refiner", [Restart(0.5, 3), Langevin(0.2, 3)], ids=["restart", "langevin"])
def test_a_path_is_the_same_whatever_else_is_refined(refiner, monkeypatch):
    model = mlp(TWO, MANY)
    base = normal(5, 6, 4, 2).numpy()
    names = [s.name for s in MANY]
    whole = refine_paths(model, source_of(MANY, 4), names, base, 0, refiner)
    for picked in (["s3"], ["s4", "s1"]):
        k = [int(name[1]) for name in picked]
        found = refine_paths(model, source_of(MANY.select(picked), 4), picked, base[k], 0, refiner)
        assert np.array_equal(found, whole[k])
    monkeypatch.setattr("unisci.forecasting.refining.ROWS", 7)
    assert np.array_equal(refine_paths(model, source_of(MANY, 4), names, base, 0, refiner), whole)


@pytest.mark.parametrize("refiner", [Restart(0.5, 3), Langevin(0.2, 3)], ids=["restart", "langevin"])
def test_what_does_not_exist_has_no_say(refiner):
    """Entries beyond a shorter base, and before a short history: whatever the network answers there."""
    short = panel(normal(7, 2).numpy())
    base = normal(1, 6, 3, 2).numpy()
    model = mlp(TWO, short)
    run = lambda: refine_paths(model, source_of(short, 4), ["s0"], base, 0, refiner)
    want = run()
    answer = model.denoiser.network.forward

    def disturbed(state, t, mask, given, order=None, cache=None):
        out = answer(state, t, mask, given)["y"]
        return {"y": torch.where(mask, out, 50 * out + state["y"].sum(1, keepdim=True))}

    model.denoiser.network.forward = disturbed
    assert np.array_equal(run(), want) and want.shape == (1, 6, 3, 2)


def test_a_restart_lies_between_data_and_noise():
    for t in (0.0, 1.2):
        with pytest.raises(ValueError, match="0 < t <= 1"):
            Restart(t)


DATA = Panel((series("a", np.arange(20.0)), series("b", np.arange(30.0))))


def table(h=3, **columns):
    times = [s.ahead(h) for s in DATA]
    return values_frame(DATA, {"yhat": [np.arange(h) + 10.0 * k for k in range(2)]}, times).assign(**columns)


def base_of(frame, value=None, paths=4, longest=5, data=DATA):
    return base_paths(frame, data, value, paths, longest)


def test_points_are_repeated_for_each_path():
    found = base_of(table())
    assert found.shape == (2, 4, 3, 1)
    assert (found[..., 0] == np.array([[0, 1, 2], [10, 11, 12]])[:, None]).all()
    assert (base_of(table().sample(frac=1, random_state=0)) == found).all()
    assert (base_of(pl.from_pandas(table())) == found).all()
    assert (base_of(table().assign(ds=lambda f: f["ds"].astype(str))) == found).all()
    assert (base_of(table(other=1.0), "yhat") == found).all()
    extra = pd.concat([table(), table().assign(unique_id="c")])
    assert (base_of(extra) == found).all()


def test_samples_are_paths():
    parts = [table(sample_id=k).assign(yhat=lambda f, k=k: f["yhat"] + 100 * k) for k in (2, 0, 1)]
    found = base_of(pd.concat(parts))
    assert found.shape == (2, 3, 3, 1)
    assert (found[1, :, :, 0] == np.array([[10, 11, 12]]) + 100 * np.arange(3)[:, None]).all()


def test_the_users_names_and_tables_without_an_id():
    users = pd.DataFrame({"day": pd.date_range("2024", periods=9), "sold": np.arange(9.0)})
    data = read_frame(users)
    later = pd.DataFrame({"day": pd.date_range("2024-01-10", periods=2), "m": [1.0, 2.0]})
    assert base_of(later, data=data)[0, 0, :, 0].tolist() == [1, 2]
    counted = read_frame(pd.DataFrame({"item_id": [7] * 5, "sold": np.arange(5.0)}), targets="sold")
    base = base_of(pd.DataFrame({"item_id": 7, "ds": [5, 6], "m": [1.0, 2.0]}), data=counted)
    assert base[0, 0, :, 0].tolist() == [1, 2]


BAD = {
    r"columns of numbers \['yhat', 'other'\]: say which .* value=": lambda: (table(other=1.0),),
    "no column 'other', it has": lambda: (table(), "other"),
    "no column 'unique_id', it has": lambda: (table().drop(columns="unique_id"),),
    "no column 'ds', it has": lambda: (table().rename(columns={"ds": "when"}),),
    "no rows of series 'b'": lambda: (table().iloc[:3],),
    "series 'a': .* must begin at 2024-03-01 20:00.* in steps of 'h'; it begins at 2024-03-01 21": lambda: (
        table().assign(ds=lambda f: f["ds"] + pd.Timedelta("1h")),
    ),
    "series 'a': the forecast must begin at": lambda: (table().drop(index=1),),
    "series 'a': the forecast has 6 steps, the trained horizon is 5": lambda: (table(6),),
    "the same steps and samples for every series": lambda: (table().iloc[:-1],),
    "series 'b': the forecast lacks values": lambda: (table().assign(yhat=lambda f: f["yhat"].where(f["yhat"] != 11)),),
    "series 'a': the forecast lacks values, or they are inf": lambda: (table().assign(yhat=np.inf),),
    "series 'a': the forecast has two values at one time": lambda: (pd.concat([table(), table()]),),
    "need one channel and n_paths >= 1, got .* 0 paths": lambda: (table(), None, 0),
    "the forecast is a list: give a frame": lambda: ([1.0],),
}


@pytest.mark.parametrize("words", BAD)
def test_a_base_that_does_not_fit_is_refused(words):
    with pytest.raises(ValueError, match=words):
        base_of(*BAD[words]())


def test_a_base_has_one_channel():
    with pytest.raises(ValueError, match=r"need one channel .* \('a', 'b'\)"):
        base_of(table(), data=MANY)
