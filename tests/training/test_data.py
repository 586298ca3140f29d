from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.batch import Batch, Field
from unisci.training.data import GROUP, batches, load_batch, save_batch

SCHEMA = {
    "atom": Field("site", classes=("C", "N")),
    "position": Field("site", (3,)),
    "bond": Field("pair", classes=("none", "single")),
    "energy": Field("whole"),
    "degree": Field("site"),
}


def data(n: int, seed: int = 0) -> Batch:
    """n samples of 1 to 9 sites; "energy" is the sample's number."""
    generator = torch.Generator().manual_seed(seed)
    sites = torch.randint(1, 10, (n,), generator=generator)
    mask = torch.arange(9) < sites[:, None]
    state = {
        "atom": torch.randint(2, (n, 9), generator=generator) * mask,
        "bond": torch.zeros(n, 9, 9, dtype=torch.long),
        "energy": torch.arange(n).double(),
    }
    degree = torch.randint(200, (n, 9), generator=generator)
    return Batch(SCHEMA, state, mask, {"degree": degree}, torch.arange(n) + 1000)


def same(a: Batch, b: Batch) -> bool:
    fields = [(a.state, b.state), (a.given, b.given), ({"mask": a.mask, "ids": a.ids}, {"mask": b.mask, "ids": b.ids})]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in fields)


@given(
    n=st.integers(1, 300),
    size=st.integers(1, 6),
    parts=st.integers(1, 3),
    groups=st.integers(1, 4),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_each_epoch_is_a_permutation_and_shares_split_it(n, size, parts, groups, seed):
    """After any number of groups each sample was dealt equally often, give or take one; over all shares together."""
    counts, order = Counter(), []
    for i in range(parts):
        dealt = list(islice(batches(data(n), size, seed, share=(i, parts)), groups * GROUP))
        assert [len(b) for b in dealt] == [size] * (groups * GROUP)
        ids = [int(k) for b in dealt for k in b.ids]
        counts.update(ids)
        order.append(ids)
    total = groups * GROUP * size * parts
    assert counts.total() == total and set(counts) <= set(range(1000, 1000 + n))
    assert {counts[1000 + k] for k in range(n)} <= {total // n, -(-total // n)}
    if total <= n:
        assert len(counts) == total, "two shares were dealt the same sample"


@given(n=st.integers(1, 200), size=st.integers(1, 5), start=st.integers(0, 40), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_start_skips_that_many_batches(n, size, start, seed):
    """Number k is the same whether the stream is read from the start or entered there, examples included."""
    d = data(n)

    def noisy(batch, rng):
        return batch.replace(energy=rng.uniform("energy", 0, (len(batch),), 0).double())

    whole = list(islice(batches(d, size, seed, noisy), start + 3))[start:]
    entered = list(islice(batches(d, size, seed, noisy, start), 3))
    assert all(same(a, b) for a, b in zip(whole, entered, strict=True))


def test_epochs_and_seeds_differ_and_fields_stay_with_their_sample():
    d = data(64)
    ids = lambda seed, epoch: torch.cat([b.ids for b in islice(batches(d, 8, seed, start=8 * epoch), 8)]).tolist()
    assert sorted(ids(0, 0)) == sorted(ids(0, 1)) == d.ids.tolist()
    assert len({tuple(ids(s, e)) for s in range(3) for e in range(3)}) == 9
    for b in islice(batches(d, 8, 0), 8):
        rows = b.ids - 1000
        assert torch.equal(b.state["energy"], rows.double())
        n = b.mask.shape[1]
        assert torch.equal(b.state["atom"], d.state["atom"][rows][:, :n])
        assert torch.equal(b.given["degree"], d.given["degree"][rows][:, :n])


def test_batches_hold_samples_of_like_size_trimmed_and_are_dealt_in_random_order():
    dealt = list(islice(batches(data(512), 8, 0), 64))
    assert all(b.mask.shape[1] == int(b.sites.max()) for b in dealt)
    spread = sum(int(b.sites.max() - b.sites.min()) for b in dealt) / 64
    assert spread < 3, "samples of unlike size share a batch"
    for group in range(0, 64, GROUP):
        largest = [int(b.sites.max()) for b in dealt[group : group + GROUP]]
        if largest != sorted(largest):
            return
    raise AssertionError("batches come sorted by size")


def test_prepare_may_shrink_samples_and_draws_by_group():
    seen = []

    def halve(batch, rng):
        seen.append(rng.uniform("u", 0, (len(batch),), 0)[0].item())
        keep = torch.arange(batch.mask.shape[1]) < (batch.sites[:, None] + 1) // 2
        return Batch(batch.schema, batch.state, batch.mask & keep, batch.given, batch.ids)

    dealt = list(islice(batches(data(64), 4, 0, halve), 3 * GROUP))
    assert len(seen) == 3 == len(set(seen))
    assert max(b.mask.shape[1] for b in dealt) == 5


def test_save_and_load(tmp_path):
    d = data(20)
    d.state["energy"][0] = 0.1
    save_batch(d, tmp_path / "d.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]
    back = load_batch(tmp_path / "d.safetensors")
    assert back.schema == d.schema and torch.equal(back.mask, d.mask) and torch.equal(back.ids, d.ids)
    assert back.state["atom"].dtype == torch.int8 and back.given["degree"].dtype == torch.long  # 199 does not fit
    assert all(torch.equal(back.state[k].to(v.dtype), v) for k, v in d.state.items())
    assert same(next(batches(back, 4, 0)), next(batches(d, 4, 0)))


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="there are no samples"):
        next(batches(data(0), 4, 0))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_damaged_data_file_is_named(tmp_path, share):
    path = tmp_path / "d.safetensors"
    save_batch(data(20), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"d\.safetensors"):
        load_batch(path)
