import numpy as np
import pandas as pd
import pytest
import torch

from unisci.autoregression.pard import Pard
from unisci.design.samples import Samples


def texts(samples: Samples) -> list[tuple[str, str]]:
    """The graphs themselves, valid or not."""
    return [m.to_text() for m in samples]


@pytest.fixture
def sizes(monkeypatch) -> list[int]:
    """The batch sizes that the model is asked for, as they come."""
    asked, generate = [], Pard.generate

    def spy(self, rng, steps=20, **rest):
        asked.append(len(rng.ids))
        return generate(self, rng, steps, **rest)

    monkeypatch.setattr(Pard, "generate", spy)
    return asked


# ---- a sample is its weights, seed, id and steps --------------------------------------------------


def test_fewer_samples_are_the_first_of_more(designer, drawn):
    for n in (1, 5, 20):
        assert texts(designer.generate(n)) == texts(drawn[:n])
    assert drawn.table["id"].tolist() == list(range(40))


@pytest.mark.parametrize("ids", [[17], [3, 1, 2], [39, 0, 39], range(10, 40, 7), np.array([5, 6]), torch.tensor([8])])
def test_ids_give_exactly_those_samples_again(designer, drawn, ids):
    again = designer.generate(ids=ids)
    wanted = [int(i) for i in ids]
    assert again.table["id"].tolist() == wanted
    assert texts(again) == [drawn[i].to_text() for i in wanted]


def test_ids_may_be_as_large_as_32_bits_allow(designer):
    samples = designer.generate(ids=[0, 2**31, 2**32 - 1])
    assert samples.table["id"].tolist() == [0, 2**31, 2**32 - 1]
    assert len(set(texts(designer.generate(ids=range(2**32 - 20, 2**32))))) > 10


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_batch_size_changes_no_sample(designer, drawn, sizes, size):
    assert texts(designer.generate(40, batch_size=size)) == texts(drawn)
    assert sizes == [size] * (40 // size) + [40 % size] * (40 % size > 0)


def test_the_stream_gives_the_same_samples_batch_by_batch(designer, drawn):
    parts = list(designer.stream(40, batch_size=16))
    assert [len(p) for p in parts] == [16, 16, 8]
    assert texts(Samples.join(parts)) == texts(drawn)


def test_the_stream_computes_no_batch_before_it_is_asked_for(designer, sizes):
    stream = designer.stream(40, batch_size=16)
    assert sizes == []
    next(stream)
    assert sizes == [16]


def test_the_seed_and_the_steps_change_the_samples(designer, drawn):
    assert texts(designer.generate(40, seed=1)) != texts(drawn)
    assert texts(designer.generate(40, steps=1)) != texts(drawn)
    assert texts(designer.generate(40, steps=designer.steps)) == texts(drawn)
    assert designer.generate(2, seed=9).table["seed"].tolist() == [9, 9]


def test_the_default_batch_size_is_within_reason(designer):
    assert 16 <= designer.batch_size() <= 4096


def test_the_rows_say_what_made_them(designer, drawn):
    table = drawn.table
    assert set(table["model"]) == {designer.hash} and (table["seconds"] > 0).all()
    assert (table["smiles"].isna() == ~table["valid"]).all() and (table["reason"].isna() == table["valid"]).all()


def test_moving_to_the_same_device_keeps_the_designer(designer, drawn):
    moved = designer.to("cpu")
    assert (moved.steps, moved.hash, moved.card) == (designer.steps, designer.hash, designer.card)
    assert texts(moved.generate(5)) == texts(drawn[:5])


# ---- memory ------------------------------------------------------------------------------------------


def out_of_memory_above(monkeypatch, limit: int, error: Exception) -> list[int]:
    asked, generate = [], Pard.generate

    def limited(self, rng, steps=20, **rest):
        asked.append(len(rng.ids))
        if len(rng.ids) > limit:
            raise error
        return generate(self, rng, steps, **rest)

    monkeypatch.setattr(Pard, "generate", limited)
    return asked


CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE)])
def test_out_of_memory_halves_the_batch_and_loses_nothing(designer, drawn, monkeypatch, error):
    asked = out_of_memory_above(monkeypatch, 6, error)
    samples = designer.generate(40, batch_size=32)
    assert asked == [32, 16, 8, 4] + [4] * 9  # found once, then kept
    assert texts(samples) == texts(drawn) and samples.table["id"].tolist() == list(range(40))


def test_out_of_memory_for_one_sample_is_an_error(designer, monkeypatch):
    asked = out_of_memory_above(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        designer.generate(8, batch_size=4)
    assert asked == [4, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("a bug")])
def test_any_other_error_passes_through(designer, monkeypatch, error):
    asked = out_of_memory_above(monkeypatch, 0, error)
    with pytest.raises(type(error), match=str(error)):
        designer.generate(8, batch_size=4)
    assert asked == [4]


# ---- arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({}, "one of the two"),
        ({"n": 3, "ids": [1]}, "one of the two"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": -2}, "n must be at least 1, got -2"),
        ({"ids": []}, "ids must be"),
        ({"ids": [-1]}, "ids must be"),
        ({"ids": [2**32]}, "ids must be"),
        ({"n": 3, "seed": -1}, "seed"),
        ({"n": 3, "steps": 0}, "steps must be at least 1"),
        ({"n": 3, "batch_size": 0}, "batch_size must be at least 1"),
        ({"n": 3, "batch_size": -4}, "batch_size must be at least 1, got -4"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_arguments_that_make_no_sense_are_refused_before_any_compute(designer, sizes, arguments, named, method):
    with pytest.raises(ValueError, match=named):
        getattr(designer, method)(**arguments)
    assert sizes == []


def test_a_designer_is_what_load_gives(designer):
    import unisci

    assert isinstance(designer, unisci.Designer) and isinstance(designer.generate(1), unisci.Samples)
    assert pd.api.types.is_bool_dtype(designer.generate(3).table["valid"])
