import torch

from unisci.batch import Field
from unisci.processes.categorical import absorbing, uniform
from unisci.processes.product import Product, site_times
from unisci.rng import Rng

SCHEMA = {"atom": Field("site"), "bond": Field("pair"), "class": Field("whole")}


def product(separate: bool = False) -> Product:
    return Product({"atom": uniform(4), "bond": uniform(3), "class": absorbing(2)}, SCHEMA, separate)


def clean(b: int, n: int) -> dict[str, torch.Tensor]:
    zeros = lambda *shape: torch.zeros(shape, dtype=torch.long)
    return {"atom": zeros(b, n), "bond": zeros(b, n, n), "class": zeros(b)}


def test_times_are_uniform_shared_or_separate():
    rng = Rng(0, torch.arange(20000))
    shared = product().times(rng)
    assert set(shared) == set(SCHEMA) and torch.equal(shared["atom"], shared["bond"])
    t = shared["atom"]
    assert t.shape == (20000,) and float(t.min()) > 1e-3 and float(t.max()) < 1
    assert abs(float(t.mean()) - 0.5) < 0.01 and abs(float(t.std()) - 12**-0.5) < 0.01
    separate = product(separate=True).times(rng)
    r = torch.corrcoef(torch.stack([separate["atom"], separate["bond"]]))[0, 1]
    assert abs(float(r)) < 0.04


def test_each_field_is_noised_by_its_own_process_and_numbers():
    b, n = 300, 5
    rng = Rng(0, torch.arange(b))
    x = product().perturb(clean(b, n), torch.full((b,), 0.8), rng)
    assert int(x["atom"].max()) == 3 and int(x["bond"].max()) == 2 and set(x["class"].tolist()) == {0, 2}
    assert torch.equal(x["bond"], x["bond"].transpose(1, 2))
    assert not torch.equal(x["atom"] > 0, x["bond"][:, 0] > 0)
    by_field = {"atom": torch.zeros(b), "bond": torch.ones(b), "class": torch.ones(b)}
    x = product().perturb(clean(b, n), by_field, rng)
    assert int(x["atom"].max()) == 0 and int(x["bond"].max()) == 2 and bool((x["class"] == 2).all())


def test_prior_has_each_fields_shape_and_symmetry():
    x = product().prior(clean(40, 5), Rng(0, torch.arange(40)))
    assert [x[k].shape for k in SCHEMA] == [(40, 5), (40, 5, 5), (40,)]
    assert torch.equal(x["bond"], x["bond"].transpose(1, 2)) and bool((x["class"] == 2).all())
    assert [sorted(set(x[k].flatten().tolist())) for k in ("atom", "bond")] == [[0, 1, 2, 3], [0, 1, 2]]


def test_to_moves_every_process():
    assert all(p.m.is_meta for p in product().to("meta").processes.values())


def test_site_times_move_pairs_with_either_site_and_never_the_diagonal():
    moving = torch.tensor([[False, True, False], [False, False, False]])
    t = site_times(SCHEMA, moving, torch.tensor([0.25, 0.75]))
    assert t["atom"].tolist() == [[0, 0.25, 0], [0, 0, 0]]
    assert t["bond"][0].tolist() == [[0, 0.25, 0], [0.25, 0, 0.25], [0, 0.25, 0]]
    assert not bool(t["bond"][1].any())
    assert t["class"].tolist() == [0.25, 0]
    scalar = site_times(SCHEMA, moving, torch.tensor(0.25))
    assert torch.equal(scalar["bond"], site_times(SCHEMA, moving, torch.tensor([0.25, 0.25]))["bond"])
