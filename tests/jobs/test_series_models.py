"""Forecasters to files and back: the same paths, and no file that says one thing and holds another."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import unisci
from tests.jobs.small import write_weights
from tests.jobs.small_series import SMALL, small_trained, table
from unisci.forecasting.forecaster import Forecaster
from unisci.jobs import models, series_models, weights_file
from unisci.jobs.series_models import FORMAT, load, save
from unisci.networks.state_space import WindowStateSpaceConfig
from unisci.networks.window_transformer import WindowTransformerConfig
from unisci.processes.gaussian import Linear
from unisci.training.fit import FitConfig

NETWORKS = [
    None,
    WindowTransformerConfig(length=1, patch=6, width=16, layers=1, heads=2, hidden=24),
    WindowStateSpaceConfig(length=1, width=8, blocks=1, modes=4),
    replace(SMALL, regressed=True),
]


def trained_of(network):
    trained = small_trained() if network is None else small_trained(network=network)
    if trained.model.regression is not None:
        for buffer in trained.model.regression.buffers():
            buffer.add_(0.01)  # as if it had been fitted
    return trained


def paths(forecaster: Forecaster, **rest) -> np.ndarray:
    return forecaster.predict(6, table(), "h", n_paths=5, seed=2, **rest).stacked


@pytest.mark.parametrize("network", NETWORKS, ids=["mlp", "transformer", "state_space", "regressed"])
def test_a_file_of_floats_draws_the_same_paths_bit_for_bit(tmp_path, network):
    trained = trained_of(network)
    save(tmp_path / "w.safetensors", trained, {"summary": "a test"}, half=False)
    found = load(tmp_path / "w.safetensors")
    assert np.array_equal(paths(found), paths(Forecaster.of(trained, "unisci")))
    assert found.trained.card == {"summary": "a test"} and found.name == "unisci"
    for name in ("channels", "freq", "steps"):
        assert getattr(found.trained, name) == getattr(trained, name)
    a, b = found.trained.model, trained.model
    assert (a.shape, a.patterns, a.schema, a.denoiser.network.config) == (
        b.shape,
        b.patterns,
        b.schema,
        b.denoiser.network.config,
    )
    assert not a.training and not any(p.requires_grad for p in a.parameters())


def test_half_precision_keeps_what_it_can_and_halves_the_file(tmp_path):
    trained = small_trained()
    big = dict(trained.model.named_parameters())["denoiser.network.entries.bias"]
    big[0] = 1e6  # which half precision cannot hold
    for name, half in (("half", True), ("full", False)):
        save(tmp_path / f"{name}.safetensors", trained, {}, half)
    sizes = [len((tmp_path / f"{n}.safetensors").read_bytes()) for n in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    found = load(tmp_path / "half.safetensors").trained.model.state_dict()
    for k, v in trained.model.state_dict().items():
        torch.testing.assert_close(found[k], v, rtol=1e-3, atol=1e-6)
    assert torch.equal(
        found["denoiser.network.entries.bias"], trained.model.state_dict()["denoiser.network.entries.bias"]
    )
    assert all(v.dtype == torch.float32 for v in found.values() if v.is_floating_point())


def test_moments_of_covariates_are_exact_in_half_precision(tmp_path):
    frame = table().assign(heat=lambda f: 1e5 + np.arange(len(f)) / 3)
    trained = small_trained(frame=frame, past=("heat",))
    save(tmp_path / "w.safetensors", trained, {})
    found = load(tmp_path / "w.safetensors").trained
    for name in ("covariates", "static"):
        for a, b in zip(getattr(found.moments, name), getattr(trained.moments, name), strict=True):
            assert torch.equal(a, b) and a.dtype == torch.float64
    assert found.model.schema["covariates"].shape == (1,)


def test_a_model_of_many_kinds_and_of_channels(tmp_path):
    frame = table().assign(z=lambda f: -f["y"])
    trained = small_trained(frame=frame, targets=("y", "z"))
    save(tmp_path / "two.safetensors", trained, {})
    assert load(tmp_path / "two.safetensors").trained.channels == ("y", "z")
    save(tmp_path / "any.safetensors", replace(small_trained(), channels=None, freq=None), {})
    found = load(tmp_path / "any.safetensors").trained
    assert found.channels is None and found.freq is None


def test_the_package_loads_saves_and_lists_forecasters(tmp_path, monkeypatch):
    forecaster = Forecaster.of(small_trained(), "mine")
    path = tmp_path / "package" / "weights" / "series-small.safetensors"
    unisci.save(forecaster, path, half=False)
    monkeypatch.setattr("unisci.jobs.shipped.files", lambda package: tmp_path / "package")
    for name in ("series-small", str(path)):
        found = unisci.load(name)
        assert isinstance(found, unisci.Forecaster) and np.array_equal(paths(found), paths(forecaster))
    assert models.card_of(path) == {"summary": "untrained"}
    models.with_card(path, tmp_path / "new.safetensors", {"summary": "new"})
    assert unisci.load(str(tmp_path / "new.safetensors")).trained.card == {"summary": "new"}


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="call fit"):
        unisci.save(Forecaster(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"end in \.safetensors"):
        unisci.save(Forecaster.of(small_trained(), "x"), tmp_path / "w.pt")
    trained = small_trained()
    trained.model.denoiser.product.processes["y"] = Linear()
    with pytest.raises(ValueError, match="cosine"):
        save(tmp_path / "w.safetensors", trained, {})
    assert not list(tmp_path.iterdir())


def test_properties_and_devices_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save(path, small_trained(), {})
    with pytest.raises(ValueError, match="draws series"):
        unisci.load(str(path), properties="x")
    with pytest.raises(ValueError, match="cuda"):
        unisci.load(str(path), "cuda:1")


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save(path, small_trained(), {})
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "damaged.safetensors")
    with pytest.raises(ValueError, match=FORMAT):
        load(tmp_path / write_weights(tmp_path / "molecules.safetensors"))


def test_a_header_of_before_anchors_is_of_a_model_without_them(tmp_path):
    path, again = tmp_path / "w.safetensors", tmp_path / "old.safetensors"
    save(path, small_trained(), {})
    metadata, tensors = weights_file.read(path, series_models.FORMAT)
    spec = json.loads(metadata["spec"])
    assert spec["network"].pop("anchored") is spec["network"].pop("regressed") is False
    assert spec.pop("columns") == {} and spec["patterns"].pop("by_window") is False
    weights_file.write(again, tensors, {**metadata, "spec": json.dumps(spec)})
    assert load(again).trained.model.anchored is False


@pytest.mark.parametrize(
    "change",
    [
        lambda spec, t: spec["network"].update(kind="Foo"),
        lambda spec, t: spec["network"].update(width=17),
        lambda spec, t: spec["network"].update(wdith=17),
        lambda spec, t: spec["network"].update(kind="WindowStateSpaceConfig"),
        lambda spec, t: spec["network"].update(anchored=True),
        lambda spec, t: spec["shape"].update(context=23),
        lambda spec, t: spec["patterns"].update(gaps=2.0),
        lambda spec, t: spec.update(channels=["y", "z"]),
        lambda spec, t: spec.update(steps=0),
        lambda spec, t: spec.pop("freq"),
        lambda spec, t: t.update(other=torch.zeros(1)),
        lambda spec, t: t.pop("moments.static.std"),
        lambda spec, t: t.update({"moments.covariates.mean": torch.zeros(2, dtype=torch.float64)}),
        lambda spec, t: t.pop("model.denoiser.network.entries.bias"),
    ],
)
def test_a_header_that_promises_what_the_file_does_not_hold(tmp_path, change):
    path = tmp_path / "w.safetensors"
    save(path, small_trained(), {})
    metadata, tensors = weights_file.read(path, series_models.FORMAT)
    spec = json.loads(metadata["spec"])
    change(spec, tensors)
    weights_file.write(path, tensors, {**metadata, "spec": json.dumps(spec)})
    with pytest.raises(ValueError, match="does not hold what its header promises"):
        load(path)


def test_a_saved_forecaster_keeps_the_names_of_the_columns(tmp_path):
    sales = table().rename(columns={"unique_id": "shop", "ds": "hour", "y": "sold"}).assign(other=1.0)
    network = replace(SMALL, width=8, hidden=8)
    training = FitConfig(steps=1, batch_size=4, checkpoint_every=0)
    own = Forecaster(6, 24, network, training).fit(sales, "h", id="shop", time="hour", targets=["sold"], progress=False)
    unisci.save(own, tmp_path / "own.safetensors", half=False)
    again = unisci.load(tmp_path / "own.safetensors")
    assert again.columns == {"id": "shop", "time": "hour", "targets": ["sold"]}
    found = again.predict(6, sales, "h", n_paths=3)
    assert np.array_equal(found.stacked, own.predict(6, n_paths=3).stacked)
    assert list(found.frame.columns[:2]) == ["shop", "hour"]
    with pytest.raises(ValueError, match="shop"):
        again.predict(6, table(), "h")
