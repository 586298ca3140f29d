import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.jobs.small import CLASSES, MODEL, STEPS, untrained, write_weights
from unisci.autoregression.conditions import with_values
from unisci.autoregression.pard import ordered
from unisci.domains.molecule import Molecule
from unisci.forecasting.forecaster import Forecaster
from unisci.jobs import models, weights_file
from unisci.jobs.config import ModelConfig
from unisci.jobs.models import begin_from, build_for, find_weights, load, save_weights, shipped
from unisci.jobs.weights_file import digest
from unisci.order import Order
from unisci.rng import Rng


def contents(path) -> tuple[dict, dict]:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


def draw(model, seed: int = 0) -> list[str | None]:
    ids = torch.arange(20)
    return [m.to_text() for m in Molecule.unbatch(model.generate(Rng(seed, ids), 3))]


def logits(model) -> torch.Tensor:
    """What the denoiser and the head say of one fixed batch."""
    batch = ordered(Molecule.batch([Molecule.from_smiles(s) for s in ("CCO", "N", "FC=O")], CLASSES, 6), 1)
    order = Order(batch.given["rank"].masked_fill(~batch.mask, -1))
    t = torch.tensor(0.3)
    times = {"atom": t.expand(3, 6), "bond": t.expand(3, 6, 6)}
    with torch.no_grad():
        out = model.denoiser(batch.state, times, batch.mask, batch.given, order)
        head = model.head(batch.state, batch.mask, batch.given, order)
    return torch.cat([out["atom"][batch.mask].flatten(), out["bond"][batch.mask].flatten(), head.flatten()])


@pytest.mark.parametrize("noise", ["marginal", "absorbing", "uniform"])
@pytest.mark.parametrize("changes", [{}, {"causal": True}, {"hops": 0}])
def test_full_precision_round_trip_is_exact(tmp_path, noise, changes):
    config = ModelConfig(noise=noise, denoiser=MODEL.denoiser, head=MODEL.head, **changes)
    model = untrained(3, config).eval()
    path = tmp_path / "full.safetensors"
    save_weights(path, model, config, STEPS, {}, half=False)
    back = load(str(path)).model
    for key, value in model.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    assert (back.hops, back.room, back.parallel) == (model.hops, model.room, model.parallel)
    assert draw(back) == draw(model)


def test_half_precision_round_trip_keeps_the_logits(tmp_path):
    model = untrained(1).eval()
    path = tmp_path / "half.safetensors"
    save_weights(path, model, MODEL, STEPS, {"summary": "s", "n": 3})
    designer = load(str(path))
    assert designer.steps == STEPS and designer.card == {"summary": "s", "n": 3}
    before, after = logits(model), logits(designer.model)
    assert before.std() > 0.1  # there is something to compare
    assert not torch.equal(before, after)  # half precision is what was asked for
    assert torch.allclose(before, after, atol=2e-2, rtol=2e-2)


def test_half_precision_halves_the_file(tmp_path):
    half, full = tmp_path / "half.safetensors", tmp_path / "full.safetensors"
    save_weights(half, untrained(), MODEL, STEPS, {})
    save_weights(full, untrained(), MODEL, STEPS, {}, half=False)
    size = lambda path: sum(v.numel() * v.element_size() for v in contents(path)[0].values())
    assert size(half) < 0.55 * size(full)


def test_saving_what_was_loaded_changes_nothing_more(tmp_path):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    save_weights(one, untrained(), MODEL, STEPS, {})
    save_weights(two, load(str(one)).model, MODEL, STEPS, {})
    a, b = contents(one)[0], contents(two)[0]
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("frequency."))
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a)


def test_loading_twice_gives_one_hash_and_one_model(weights, tmp_path):
    one, two = load(weights), load(weights)
    assert one.hash == two.hash == digest(find_weights(weights))
    assert draw(one.model) == draw(two.model)
    assert not one.model.training
    assert load(write_weights(tmp_path / "other.safetensors", seed=1)).hash != one.hash
    assert load(write_weights(tmp_path / "same.safetensors")).hash == one.hash  # of the content, not of the name


def test_a_model_for_data_starts_from_its_frequencies():
    data = ordered(Molecule.batch([Molecule.from_smiles(s) for s in ("CCC", "CO", "C#C", "CCC")]), 1)
    model = build_for(MODEL, data)
    atom, bond = (model.denoiser.product.processes[k].m for k in ("atom", "bond"))
    assert torch.allclose(atom, torch.tensor([9 / 10, 1 / 10]))
    # Pairs of sites: 3 + 1 + 1 + 3, of which 2 none, 5 single, 1 triple.
    assert torch.allclose(bond, torch.tensor([2 / 8, 5 / 8, 0, 1 / 8]))
    assert model.room == 3 and model.denoiser.product.schema["atom"].classes == ("C", "O")


# ---- models that are told properties ---------------------------------------------------------------------

TOLD = ModelConfig(denoiser=MODEL.denoiser, head=MODEL.head, condition=("logp", "mass"))


def told(seed: int = 3):
    """An untrained model whose conditions matter."""
    model = untrained(seed, TOLD).eval()
    for name, value in model.named_parameters():
        if "condition" in name:
            torch.nn.init.normal_(value)
    model.conditions.measure(torch.tensor([[0.1, 123456.7], [0.7, 99999.1], [0.3, 100000.3]]))
    return model


@pytest.mark.parametrize("half", [True, False])
def test_a_conditional_model_keeps_its_conditions(tmp_path, half):
    """Names, and moments in full precision, of units that half precision cannot hold."""
    model, path = told(), tmp_path / "told.safetensors"
    save_weights(path, model, TOLD, STEPS, {}, half=half)
    back = load(str(path)).model
    assert back.conditions.names == ("logp", "mass")
    assert torch.equal(back.conditions.mean, model.conditions.mean)
    assert torch.equal(back.conditions.std, model.conditions.std)
    if not half:
        values = torch.tensor([[0.5, 1e5]]).expand(20, 2)
        a, b = (m.generate(Rng(0, torch.arange(20)), 3, values=values, weight=2.0) for m in (model, back))
        assert torch.equal(a.state["bond"], b.state["bond"]) and draw(model) == draw(back) != a


def test_weights_without_conditions_hold_none(weights):
    tensors, metadata = contents(weights)
    assert not [k for k in tensors if "condition" in k] and load(weights).model.conditions is None
    spec = json.loads(metadata["spec"])
    assert spec["model"].pop("condition") == []  # as weights of before have it


def test_weights_of_before_conditions_load_to_the_same_model(weights, tmp_path):
    tensors, metadata = contents(weights)
    spec = json.loads(metadata["spec"])
    del spec["model"]["condition"]
    path = tmp_path / "before.safetensors"
    weights_file.write(path, tensors, metadata | {"spec": json.dumps(spec)})
    assert draw(load(str(path)).model) == draw(load(weights).model)


def test_the_values_of_the_data_are_measured():
    data = ordered(Molecule.batch([Molecule.from_smiles(s) for s in ("CCC", "CO", "C#C", "CCC")]), 1)
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0], [2.0, 2.0], [2.0, 3.0]])
    model = build_for(TOLD, with_values(data, values))
    assert torch.equal(model.conditions.mean, torch.tensor([2.0, 3.0]))
    assert torch.allclose(model.conditions.std, values.std(0))


def test_a_conditional_model_may_begin_from_one_without(weights):
    model = untrained(5, TOLD).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    begin_from(model, weights)
    source = load(weights).model
    assert draw(model) == draw(source)
    after = model.state_dict()
    for k, v in source.state_dict().items():
        assert torch.equal(after[k], v)
    assert all(torch.equal(after[k], before[k]) for k in before if "condition" in k)
    other = ModelConfig(denoiser=MODEL.denoiser, head=MODEL.head.model_copy(update={"layers": 2}))
    wide = ModelConfig(denoiser=MODEL.denoiser.model_copy(update={"width": 32}), head=MODEL.head)
    for config in (other, wide):
        with pytest.raises(ValueError, match="other sizes or atoms"):
            begin_from(untrained(5, config), weights)


# ---- files that cannot be used -------------------------------------------------------------------


def assert_refused(path, *words):
    with pytest.raises(ValueError) as error:
        load(str(path))
    for word in (path.name, *words):
        assert word in str(error.value), (word, str(error.value))
    assert "\n" not in str(error.value).split(":")[0]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_refused(weights, tmp_path, share):
    data = find_weights(weights).read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(share * len(data))])
    assert_refused(path, "damaged")


@pytest.mark.parametrize("share", [0.5, 0.999])
def test_a_flipped_bit_is_refused(weights, tmp_path, share):
    data = bytearray(find_weights(weights).read_bytes())
    data[int(share * len(data))] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    assert_refused(path, "damaged")


def test_a_copy_with_another_card_is_the_same_model(weights, tmp_path):
    models.with_card(find_weights(weights), tmp_path / "copy.safetensors", {"summary": "new"})
    copy = load(str(tmp_path / "copy.safetensors"))
    assert copy.card == {"summary": "new"}
    for key, value in load(weights).model.state_dict().items():
        assert torch.equal(value, copy.model.state_dict()[key])


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(tmp_path, seed):
    path = tmp_path / "noise.safetensors"
    generator = torch.Generator().manual_seed(seed)
    path.write_bytes(bytes(torch.randint(0, 256, (4096,), generator=generator, dtype=torch.uint8).tolist()))
    assert_refused(path, "damaged")


def test_a_pickle_is_refused(tmp_path):
    path = tmp_path / "pickle.safetensors"
    torch.save({"a": torch.zeros(2)}, path)
    assert_refused(path, "damaged")


def test_foreign_safetensors_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(3)}, path)
    assert_refused(path, "no format mark", models.FORMAT)


def test_another_format_version_is_refused(weights, tmp_path):
    tensors, metadata = contents(weights)
    path = tmp_path / "future.safetensors"
    weights_file.write(path, tensors, metadata | {"format": "unisci-weights-99"})
    assert_refused(path, "unisci-weights-99", models.FORMAT)


def test_a_header_that_promises_other_tensors_is_refused(weights, tmp_path):
    tensors, metadata = contents(weights)
    spec = json.loads(metadata["spec"])
    path = tmp_path / "promise.safetensors"
    spec["model"]["denoiser"]["width"] = 32
    weights_file.write(path, tensors, metadata | {"spec": json.dumps(spec)})
    assert_refused(path, "header promises")
    spec["model"]["denoiser"]["width"], spec["classes"] = 16, ["C", "O"]
    weights_file.write(path, tensors, metadata | {"spec": json.dumps(spec)})
    assert_refused(path, "header promises")


@pytest.mark.parametrize("name", ["first", "frequency.atom", "head.", "denoiser."])
def test_missing_tensors_are_refused(weights, tmp_path, name):
    tensors, metadata = contents(weights)
    gone = next(k for k in tensors if k.startswith(name))
    del tensors[gone]
    path = tmp_path / "missing.safetensors"
    weights_file.write(path, tensors, metadata)
    assert_refused(path, gone)


@pytest.mark.parametrize("change", [{"spec": "{"}, {"spec": "{}"}, {"spec": '{"model": {"hops": 99}}'}, {"card": "["}])
def test_a_damaged_header_is_refused(weights, tmp_path, change):
    tensors, metadata = contents(weights)
    path = tmp_path / "header.safetensors"
    weights_file.write(path, tensors, metadata | change)
    assert_refused(path)


@pytest.mark.parametrize("gone", ["spec", "card"])
def test_a_header_without_its_parts_is_refused(weights, tmp_path, gone):
    tensors, metadata = contents(weights)
    del metadata[gone]
    path = tmp_path / "header.safetensors"
    weights_file.write(path, tensors, metadata)
    assert_refused(path)


def test_a_header_length_that_is_a_lie_is_refused(weights, tmp_path):
    path = tmp_path / "lie.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + find_weights(weights).read_bytes()[8:])
    assert_refused(path, "damaged")


def test_an_unknown_name_lists_what_there_is(monkeypatch, tmp_path):
    write_weights(tmp_path / "weights" / "molecules-small.safetensors")
    monkeypatch.setattr("unisci.jobs.shipped.files", lambda package: tmp_path)
    assert list(shipped()) == ["molecules-small"]
    with pytest.raises(ValueError, match=r"molecules-qm99.*\['molecules-small'\]"):
        load("molecules-qm99")
    assert load("molecules-small").card["summary"] == "untrained"


@pytest.mark.parametrize("name", ["absent.safetensors", "readme.txt", "", "."])
def test_what_is_no_weights_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(ValueError, match="no weights"):
        load(name)


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error_that_names_it(weights, device):
    with pytest.raises(ValueError, match=device):
        load(weights, device)


def test_a_failed_save_leaves_no_file_under_the_final_name(tmp_path, monkeypatch):
    def fail(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        write_weights(tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_every_shipped_file_loads_and_has_a_card():
    if not shipped():
        pytest.skip("no weights are shipped in this checkout")
    for name, path in shipped().items():
        assert path.stat().st_size < 20 * 2**20
        designer = load(name)
        if isinstance(designer, Forecaster):
            assert {"summary", "held out", "data"} <= designer.trained.card.keys() and designer.steps >= 1
            continue
        assert designer.hash == digest(path) and designer.steps >= 1
        assert {"summary", "measured", "data"} <= designer.card.keys(), name
        assert 0 < designer.card["measured"]["validity"] <= 1
