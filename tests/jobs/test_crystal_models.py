"""Generators of crystals come back from their files as they went in, and no other file passes for one."""

import json
import struct

import pytest
import torch

from tests.jobs.small_crystals import untrained
from tests.jobs.test_models import contents
from unisci.domains.candidates import FACTS
from unisci.domains.crystal import Crystal
from unisci.jobs import weights_file
from unisci.jobs.crystal_models import FORMAT, load_generator, save
from unisci.processes.torus import UNIFORM_DEVIATION
from unisci.rng import Rng

SALT = torch.tensor([[11, 17]]), torch.tensor([[1, 1]])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("generator") / "g.safetensors"
    save(path, untrained(), {"summary": "untrained"})
    return path


def changed(path, tmp_path, sizes=None, tensors=None, **metadata):
    """A file with these entries of the header's sizes, these tensors (None: gone) and this metadata instead."""
    held, told = contents(path)
    told |= {"spec": json.dumps(json.loads(told["spec"]) | (sizes or {}))} | metadata
    held = {k: v for k, v in (held | (tensors or {})).items() if v is not None}
    other = tmp_path / "changed.safetensors"
    weights_file.write(other, held, {k: v for k, v in told.items() if v is not None})
    return other


def parts(g):
    return {"orbits.": g.orbits, "refiner.": g.refiner} | {f"rankers.{i}.": r for i, r in enumerate(g.rankers)}


def drawn(g) -> torch.Tensor:
    """What each model says: the words and geometry of rock salts, sites by the refiner, a ranker's scores."""
    ids = torch.arange(6)
    species, counts = (x.expand(6, -1) for x in SALT)
    words = g.orbits.draw_words(species, counts, Rng(1, ids))
    made = g.orbits.draw_geometry(words, species, counts, Rng(2, ids), steps=2)
    salt = Crystal.batch([Crystal([11, 17], [[0, 0, 0], [0.4, 0.5, 0.6]], torch.eye(3).numpy() * 3.5)])
    placed = g.refiner.predict(salt, Rng(3, salt.ids), steps=2)
    torch.manual_seed(0)
    scores = [
        r(
            SALT[0],
            torch.full((1, 2), 0.5),
            torch.rand(1, 2, 2),
            torch.tensor([[[19, 35]]]),
            torch.rand(1, 1, 2, 2, 28),
            torch.rand(1, 1, FACTS),
            torch.ones(1, 1) > 0,
        )
        for r in g.rankers
    ]
    rest = [made.state["cell"].flatten(), placed.state["cell"].flatten(), placed.state["position"].flatten()]
    return torch.cat([words.log_probability, *rest, *(s.detach().flatten() for s in scores)])


def test_parts_are_kept_and_older_files_have_none(path, tmp_path):
    g = untrained()
    g.refiner.parts = 0.25
    save(tmp_path / "parts.safetensors", g, {})
    assert load_generator(tmp_path / "parts.safetensors")[0].refiner.parts == 0.25
    older = json.loads(contents(path)[1]["spec"])["refiner"]
    assert older.pop("parts") == 0
    assert load_generator(changed(path, tmp_path, {"refiner": older}))[0].refiner.parts == 0


def test_full_precision_round_trip_is_exact(tmp_path):
    g = untrained()
    save(tmp_path / "full.safetensors", g, {}, half=False)
    back, _, _ = load_generator(tmp_path / "full.safetensors")
    for prefix, model in parts(g).items():
        own = parts(back)[prefix].state_dict()
        assert own.keys() == model.state_dict().keys()
        for k, v in model.state_dict().items():
            assert torch.equal(own[k], v), prefix + k
    assert torch.equal(drawn(back), drawn(g))


def test_what_is_no_weight_comes_back_with_it(path):
    g, (back, card, digest) = untrained(), load_generator(path)
    assert card == {"summary": "untrained"} and digest == weights_file.digest(path)
    assert back.table.text == g.table.text and back.elements == (3, 11, 100) and back.most_sites == 5
    assert back.refiner.without == 0.4 and back.refiner.denoiser.scale == {"position": UNIFORM_DEVIATION}
    assert back.refiner.denoiser.network.config == g.refiner.denoiser.network.config
    assert back.orbits.words.dropout.p == 0.1 and not any(m.training for m in parts(back).values())
    assert not any(p.requires_grad for m in parts(back).values() for p in m.parameters())
    assert len(load_generator(path)[0].rankers) == 2


def test_half_precision_is_for_weights_alone(path):
    g, (back, _, _) = untrained(), load_generator(path)
    assert path.stat().st_size < 0.75 * sum(4 * v.numel() for m in parts(g).values() for v in m.state_dict().values())
    for prefix, model in parts(g).items():
        own, weights = parts(back)[prefix].state_dict(), {k for k, _ in model.named_parameters()}
        for k, v in model.state_dict().items():
            torch.testing.assert_close(own[k], v.half().float() if k in weights else v, rtol=0, atol=0)
    assert back.refiner.sizes.tolist() == [0, 0, 2049, 0, 0, 70001]
    torch.testing.assert_close(drawn(back), drawn(g), rtol=0.1, atol=0.1)


def test_a_weight_that_half_precision_cannot_hold_is_kept(tmp_path):
    g = untrained()
    g.rankers[1].straight.weight.data[0, 3] = 1e6
    save(tmp_path / "big.safetensors", g, {})
    back, _, _ = load_generator(tmp_path / "big.safetensors")
    assert torch.equal(back.rankers[1].straight.weight, g.rankers[1].straight.weight)


def test_without_rankers(tmp_path):
    save(tmp_path / "none.safetensors", untrained(rankers=0), {})
    assert load_generator(tmp_path / "none.safetensors")[0].rankers == ()


def test_a_generator_moves_as_a_whole():
    g = untrained().to("meta")
    assert {p.device.type for m in parts(g).values() for p in m.parameters()} == {"meta"} and len(g.rankers) == 2


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_cut_file_is_refused(path, tmp_path, share):
    data, cut = path.read_bytes(), tmp_path / "cut.safetensors"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged"):
        load_generator(cut)


def test_a_flipped_bit_and_a_lie_about_the_header_are_refused(path, tmp_path):
    data, other = bytearray(path.read_bytes()), tmp_path / "other.safetensors"
    data[-100] ^= 4
    other.write_bytes(data)
    with pytest.raises(ValueError, match="numbers are not those that were written"):
        load_generator(other)
    other.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="damaged"):
        load_generator(other)


@pytest.mark.parametrize("mark", ["unisci-weights-1", "unisci-crystals-1", None])
def test_a_file_of_another_format_is_refused(path, tmp_path, mark):
    with pytest.raises(ValueError, match=f"this version reads {FORMAT}"):
        load_generator(changed(path, tmp_path, format=mark))


@pytest.mark.parametrize(
    "spec",
    [
        {"orbits": {"width": 32, "layers": 1, "heads": 2, "dropout": 0.1}},
        {"orbits": {"width": 16, "layers": 2, "heads": 2, "dropout": 0.1}},
        {"orbits": {"width": 15, "layers": 1, "heads": 2, "dropout": 0.1}},
        {"orbits": {"depth": 1}},
        {"refiner": {"width": 16}},
        {"rankers": []},
        {"rankers": [{"embedding": 4, "width": 8}]},
        {"rankers": [{"embedding": 4, "width": 8}] * 3},
        {"table": ""},
        {"table": "225 a 0,0,0"},
        {"table": "225 a"},
        {"table": None},
        {"elements": []},
        {"elements": [0, 11]},
        {"elements": [11, 101]},
        {"elements": ["Na"]},
        {"elements": 5},
        {"most_sites": 0},
        {"most_sites": 65},
        {"most_sites": "5"},
    ],
)
def test_a_header_that_promises_something_else_is_refused(path, tmp_path, spec):
    with pytest.raises(ValueError, match=r"changed\.safetensors does not hold what its header promises"):
        load_generator(changed(path, tmp_path, spec))


@pytest.mark.parametrize(
    "metadata", [{"spec": "{"}, {"spec": "{}"}, {"spec": None}, {"card": "["}, {"card": None}, {"spec": "[]"}]
)
def test_a_damaged_header_is_refused(path, tmp_path, metadata):
    with pytest.raises(ValueError, match="does not hold what its header promises"):
        load_generator(changed(path, tmp_path, **metadata))


@pytest.mark.parametrize(
    "tensors",
    [
        {"refiner.sizes": None},
        {"orbits.words.element.features": None},
        {"orbits.denoiser.network.log_volume": None},
        {"rankers.1.straight.bias": None},
        {"foreign": torch.ones(2)},
        {"rankers.2.straight.bias": torch.ones(1)},
        {"refiner.more": torch.ones(1)},
    ],
)
def test_missing_and_foreign_tensors_are_refused(path, tmp_path, tensors):
    with pytest.raises(ValueError, match="does not hold what its header promises"):
        load_generator(changed(path, tmp_path, tensors=tensors))


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error_that_names_it(path, device):
    with pytest.raises(ValueError, match=device):
        load_generator(path, device)
