"""Generators of molecules in space come back from their files as they went in, and no other file passes for one."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.jobs.small import untrained, write_weights
from tests.jobs.test_models import contents
from tests.small_structures import ATOMS, small_config, small_model, write_structures
from unisci.design.structure_designer import StructureDesigner
from unisci.domains.molecule import POSITION, schema
from unisci.jobs import weights_file
from unisci.jobs.models import card_of, load, with_card
from unisci.jobs.structure_models import FORMAT, build, load_parts, save, with_programs
from unisci.solvers.program import compile_solver


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return Path(write_structures(tmp_path_factory.mktemp("structures")))


def changed(path, tmp_path, spec=None, tensors=None, **metadata):
    """A file with these entries of the header's spec, these tensors (None: gone) and this metadata instead."""
    held, told = contents(path)
    told |= {"spec": json.dumps(json.loads(told["spec"]) | (spec or {}))} | metadata
    held = {k: v for k, v in (held | (tensors or {})).items() if v is not None}
    other = tmp_path / "changed.safetensors"
    weights_file.write(other, held, {k: v for k, v in told.items() if v is not None})
    return other


def test_full_precision_round_trip_is_exact(tmp_path, path):
    model = small_model(parts=0.25)
    save(tmp_path / "full.safetensors", model, path.parent / "small-graphs.safetensors", 7, {}, half=False)
    back = load_parts(tmp_path / "full.safetensors")
    assert back.structures.state_dict().keys() == model.state_dict().keys()
    for k, v in model.state_dict().items():
        assert torch.equal(back.structures.state_dict()[k], v), k
    assert back.structures.parts == 0.25 and back.steps == 7 and back.structures.denoiser.scale == {"position": 1.3}


def test_what_is_no_weight_comes_back_with_it(path):
    model, back = small_model(), load_parts(path)
    assert back.card == {"summary": "untrained"} and back.hash == weights_file.digest(path)
    assert back.source == "small-graphs" and back.graph_steps == 3 and back.steps == 4
    assert back.structures.denoiser.network.config == model.denoiser.network.config
    assert back.structures.denoiser.product.schema == model.denoiser.product.schema
    assert back.structures.profile_counts.tolist() == [3, 1, 2049] and back.structures.sizes[6] == 70_001
    assert not back.structures.training and not back.graphs.training
    assert not any(p.requires_grad for p in back.structures.parameters())


def test_half_precision_is_for_weights_alone(path, tmp_path):
    model, back = small_model(), load_parts(path).structures
    weights = {k for k, _ in model.named_parameters()}
    for k, v in model.state_dict().items():
        assert torch.equal(back.state_dict()[k], v.half().float() if k in weights else v), k
    model.denoiser.network.to_atom.weight.data[0, 3] = 1e6  # more than half precision holds
    save(tmp_path / "big.safetensors", model, path.parent / "small-graphs.safetensors", 4, {})
    assert torch.equal(
        load_parts(tmp_path / "big.safetensors").structures.denoiser.network.to_atom.weight,
        model.denoiser.network.to_atom.weight,
    )


def test_the_graphs_are_those_of_their_file(path):
    designer, alone = load(str(path)), load(str(path.parent / "small-graphs.safetensors"))
    assert isinstance(designer, StructureDesigner) and designer.graphs.steps == alone.steps
    for k, v in alone.model.state_dict().items():
        assert torch.equal(designer.graphs.model.state_dict()[k], v), k
    assert designer.graphs.generate(9).table["smiles"].tolist() == alone.generate(9).table["smiles"].tolist()
    assert designer.steps == 4 and designer.hash == designer.graphs.hash == weights_file.digest(path)


def test_graphs_must_be_a_generator_of_graphs(path, tmp_path):
    with pytest.raises(ValueError, match=f"has {FORMAT}"):
        save(tmp_path / "x.safetensors", small_model(), path, 4, {})
    assert not (tmp_path / "x.safetensors").exists()


def test_the_network_must_have_the_classes_of_the_data():
    model = small_model()
    fields = schema(ATOMS) | {"position": POSITION}
    with pytest.raises(ValueError, match=r"\(4, 4\) classes"):
        build(small_config(classes=4), fields, model.sizes, model.profiles)


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"classes": list(ATOMS[:-1])}},
        {"spec": {"network": {"width": 8}}},
        {"spec": {"graphs": {}}},
        {"spec": {"steps": "many"}},
        {"tensors": {"structures.sizes": None}},
        {"tensors": {"structures.denoiser.network.to_atom.bias": torch.zeros(3)}},
        {"tensors": {"graphs.first": None}},
        {"tensors": {"other.x": torch.zeros(3)}},
        {"card": None},
        {"card": "no json"},
    ],
)
def test_a_file_that_does_not_hold_what_it_promises(path, tmp_path, change):
    other = changed(path, tmp_path, **change)
    with pytest.raises(ValueError, match="does not hold what its header promises"):
        load(str(other))


def test_a_program_comes_with_the_weights_it_was_searched_for(path, tmp_path):
    other, process = tmp_path / "with.safetensors", small_model().denoiser.product.processes["position"]
    program = compile_solver(process, torch.tensor([1.0, 0.6, 0.2, 0.01]), "sde-dpm++2m")
    assert load_parts(path).structures.programs == ()
    with_programs(path, other, [program])
    back, plain = load_parts(other), load_parts(path)
    assert (
        back.structures.programs == (program,) and back.steps == load(str(other)).steps == 4 and back.card == plain.card
    )
    for k, v in plain.structures.state_dict().items():
        assert torch.equal(back.structures.state_dict()[k], v), k
    made = [load(str(p)).conformers("CCO", 2, steps=3).molecules[0].positions for p in (path, other)]
    assert abs(made[0] - made[1]).max() > 1e-3
    save(tmp_path / "again.safetensors", back.structures, path.parent / "small-graphs.safetensors", 3, {})
    assert load_parts(tmp_path / "again.safetensors").structures.programs == (program,)
    with pytest.raises(ValueError, match="does not hold what its header promises"):
        load(str(changed(other, tmp_path, spec={"programs": [{"format": "unisci program 1"}]})))


def test_another_format_and_a_damaged_file(path, tmp_path):
    with pytest.raises(ValueError, match="unisci-structures-9"):
        load_parts(changed(path, tmp_path, format="unisci-structures-9"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        load(str(tmp_path / "damaged.safetensors"))
    with pytest.raises(ValueError, match="device"):
        load(str(path), "cuda:99")


def test_a_card_is_changed_as_of_other_weights(path, tmp_path):
    with_card(path, tmp_path / "copy.safetensors", {"summary": "new"})
    assert card_of(tmp_path / "copy.safetensors") == {"summary": "new"}
    assert (
        load(str(tmp_path / "copy.safetensors")).generate(2).table["smiles"].tolist()
        == load(str(path)).generate(2).table["smiles"].tolist()
    )


@pytest.mark.parametrize("name", ["small3d", "small-graphs"])
def test_properties_lie_beside_under_either_name(path, tmp_path, monkeypatch, name):
    """The model of properties of the graphs' own weights steers the graphs here, too."""
    from unisci.jobs import property_models

    class Steers:
        classes = untrained().denoiser.product.schema["atom"].classes

    opened = []
    monkeypatch.setattr(property_models, "load", lambda p, device: opened.append(Path(p)) or Steers())
    (tmp_path / "properties").mkdir()
    (tmp_path / "properties" / f"{name}.safetensors").write_bytes(b"")
    shutil.copy(path, tmp_path / "small3d.safetensors")
    assert isinstance(load(str(tmp_path / "small3d.safetensors")).graphs.properties, Steers)
    assert opened == [tmp_path / "properties" / f"{name}.safetensors"]
    assert load(str(path)).graphs.properties is None
    Steers.classes = ("C",)
    with pytest.raises(ValueError, match="knows the atoms"):
        load(str(tmp_path / "small3d.safetensors"))


def test_other_weights_are_read_as_before(tmp_path):
    assert not isinstance(load(write_weights(tmp_path / "g.safetensors")), StructureDesigner)
