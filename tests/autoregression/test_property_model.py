from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.laws import take
from unisci.autoregression.conditions import VALUES, with_values
from unisci.autoregression.pard import examples, ordered
from unisci.autoregression.property_model import SMALLEST, PropertyModel
from unisci.batch import Batch
from unisci.domains.molecule import Molecule
from unisci.networks.graph_transformer import GraphHead, GraphTransformerConfig
from unisci.order import Order
from unisci.processes.categorical import absorbing, uniform
from unisci.processes.product import Product, site_times
from unisci.rng import Rng

SMILES = ["C", "CC", "Cc1ccccc1", "CC(=O)Oc1ccccc1", "C1CC1", "O=C=O", "C#N", "CC(C)(C)C", "FC(F)(F)C", "OCC1OC(O)C1"]
NAMES = ("atoms", "carbons")


def molecules() -> Batch:
    batch = Molecule.batch([Molecule.from_smiles(s) for s in SMILES])
    carbons = (batch.state["atom"] == 0) & batch.mask
    return with_values(batch, torch.stack([batch.sites, carbons.sum(1)], 1))


def build(batch: Batch, kernel=uniform) -> PropertyModel:
    torch.manual_seed(0)
    atoms, bonds = len(batch.schema["atom"].classes), len(batch.schema["bond"].classes)
    product = Product({"atom": kernel(atoms), "bond": kernel(bonds)}, batch.schema)
    states = (product.processes["atom"].states, product.processes["bond"].states)
    config = GraphTransformerConfig(*states, atoms, bonds, width=16, pair_width=8, layers=2, heads=2, product=4)
    values = batch.given[VALUES]
    return PropertyModel(GraphHead(config, 4), product, NAMES, values.mean(0), values.std(0), 1).eval()


def predict(model: PropertyModel, batch: Batch, t: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return model(batch.state, t, batch.mask, batch.given, Order(batch.given["rank"]))


def test_predictions_are_in_the_units_of_the_values():
    """The same network with other moments: the mean is shifted and scaled, the deviation scaled."""
    batch = ordered(molecules(), 1)
    model = build(batch)
    mean, std = predict(model, batch)
    assert mean.shape == std.shape == (len(SMILES), 2) and len(mean.unique(dim=0)) > 5
    assert (std > SMALLEST * model.std).all() and model.classes == batch.schema["atom"].classes
    z, relative = (mean - model.mean) / model.std, std / model.std
    model.mean.copy_(torch.tensor([100.0, -3.0]))
    model.std.copy_(torch.tensor([10.0, 0.5]))
    moved, wide = predict(model, batch)
    torch.testing.assert_close(moved, torch.tensor([100.0, -3.0]) + torch.tensor([10.0, 0.5]) * z, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wide, torch.tensor([10.0, 0.5]) * relative, rtol=1e-5, atol=1e-5)


def test_no_time_is_time_zero_and_other_times_say_something_else():
    batch = ordered(molecules(), 1)
    model = build(batch)
    zeros = {k: torch.zeros_like(v, dtype=torch.float32) for k, v in batch.state.items()}
    for a, b in zip(predict(model, batch), predict(model, batch, zeros), strict=True):
        assert torch.equal(a, b)
    later = {k: v + 0.5 for k, v in zeros.items()}
    assert not torch.allclose(predict(model, batch, later)[0], predict(model, batch)[0], atol=1e-3)


def test_the_values_themselves_are_not_seen():
    batch = ordered(molecules(), 1)
    model = build(batch)
    other = replace(batch, given=batch.given | {VALUES: torch.randn(len(batch), 2)})
    assert torch.equal(predict(model, batch)[0], predict(model, other)[0])


def test_sites_may_be_numbered_in_any_way_and_padding_is_not_seen():
    batch = ordered(molecules(), 1)
    model = build(batch).double()
    index = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    pick = lambda d: {k: take(v, batch.schema[k].axes, index) for k, v in d.items()}
    moved = Batch(batch.schema, pick(batch.state), take(batch.mask, 1, index), pick(batch.given), batch.ids)
    for a, b in zip(predict(model, batch), predict(model, moved), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    there = {"atom": batch.mask, "bond": batch.mask[:, :, None] & batch.mask[:, None]}
    junk = {k: torch.where(there[k], v, 1) for k, v in batch.state.items()}
    for a, b in zip(predict(model, batch), predict(model, replace(batch, state=junk)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_one_hot_states_give_the_prediction_of_their_indices_and_a_gradient():
    batch = ordered(molecules(), 1)
    model = build(batch)
    soft = {
        k: torch.nn.functional.one_hot(v, p.states).float().requires_grad_()
        for (k, v), p in zip(batch.state.items(), model.product.processes.values(), strict=True)
    }
    zeros = {k: torch.zeros(v.shape[:-1]) for k, v in soft.items()}
    mean, std = model(soft, zeros, batch.mask, batch.given, Order(batch.given["rank"]))
    torch.testing.assert_close(mean, predict(model, batch)[0], rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad((mean.sum() + std.sum()), list(soft.values()))
    assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("kernel", [uniform, absorbing])
def test_the_loss_is_minus_the_normal_log_density_of_one_noised_block(kernel):
    batch = molecules()
    model, rng = build(batch, kernel), Rng(3, batch.ids)
    cut = examples(ordered(batch, 1), rng)
    t = (2 * rng.uniform("property time", 0, (len(batch),), 0) - 1).clamp(min=0) ** 2
    moving = (cut.given["rank"] == cut.given["block"][:, None]) & cut.mask
    times = site_times({k: cut.schema[k] for k in cut.state}, moving, t)
    noisy = model.product.perturb(cut.state, times, rng)
    order = Order(torch.where(cut.mask, cut.given["rank"], -1))
    mean, std = model(noisy, times, cut.mask, cut.given, order)
    density = torch.distributions.Normal(mean, std).log_prob(cut.given[VALUES])
    expected = -(density + model.std.log() + torch.log(torch.tensor(2 * torch.pi)) / 2).mean()
    loss = model.loss(batch, rng)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(model.loss(ordered(batch, 1), rng), loss) and torch.equal(model.loss(cut, rng), loss)
    earlier = ~moving & cut.mask
    assert torch.equal(noisy["atom"][earlier], cut.state["atom"][earlier]) and earlier.any()


def test_about_half_of_the_blocks_are_clean():
    ids = torch.arange(2000)
    t = (2 * Rng(0, ids).uniform("property time", 0, (2000,), 0) - 1).clamp(min=0) ** 2
    assert 0.45 < float((t == 0).float().mean()) < 0.55 and 0.2 < float((t[t > 0] < 0.1).float().mean()) < 0.45


def test_the_loss_does_not_see_later_blocks():
    batch = ordered(molecules(), 1)
    model, rng = build(batch).double(), Rng(1, batch.ids)
    cut = examples(batch, rng)
    hidden = batch.mask & ~cut.mask
    assert hidden.any()
    swapped = torch.where(hidden, (batch.state["atom"] + 1) % 2, batch.state["atom"])
    assert torch.equal(model.loss(cut.replace(atom=swapped), rng), model.loss(cut, rng))


def test_training_lowers_the_loss_and_finds_the_values():
    batch = ordered(molecules(), 1)
    model = build(batch)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        optimiser.zero_grad()
        loss = model.loss(batch, Rng(0, batch.ids).at(step))
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < losses[0] - 0.4
    mean, std = predict(model, batch)
    error, spread = (mean - batch.given[VALUES]).abs().mean(0), (batch.given[VALUES] - model.mean).abs().mean(0)
    assert (error < 0.6 * spread).all() and (std.mean(0) < model.std).all()
