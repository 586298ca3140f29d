"""One battery for all networks of windows: what they may read of a window, what they must, and how they are asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws import no_host_reads, rows_of
from tests.networks.windows import ALL, built, each, windows
from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.networks.window_inputs import Places, WindowConfig, read_window
from unisci.order import Order
from unisci.processes.gaussian import Cosine
from unisci.processes.product import Product
from unisci.rng import Rng


def answer(net, inputs):
    return net(*inputs)["y"]


def exist_all(inputs):
    return inputs._replace(mask=torch.ones_like(inputs.mask))


def test_what_is_read_of_a_window():
    """Two channels of two steps: known, missing; noised, noised."""
    nan = torch.nan
    y, t = torch.tensor([[1.0, nan, 3.0, 4.0]]), torch.tensor([[0.0, 0.9, 0.2, 0.5]])
    mask = torch.tensor([[True, False, True, True]])
    fields = {"covariates": torch.tensor([[[5.0], [6.0], [nan], [8.0]]]), "phase": torch.tensor([[0.1]])}
    got = read_window(WindowConfig(2, 2, phases=1, covariates=1), {"y": y}, {"y": t}, mask, fields)
    x, x_known, known, exists, covariate, told = got.entries[0]
    assert x.tolist() == [[1, 0], [3, 4]] and x_known.tolist() == [[1, 0], [0, 0]]
    assert known.tolist() == [[1, 0], [0, 0]] and exists.tolist() == [[1, 0], [1, 1]]
    assert covariate.tolist() == [[5, 0], [0, 8]] and told.tolist() == [[1, 0], [0, 1]]
    assert got.t.tolist() == [0.5] and got.phase is fields["phase"] and got.static is None


def test_anchors_are_read_where_entries_exist():
    y, t, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.5]]), torch.tensor([[True, False]])
    anchor = torch.tensor([[[3.0, 4.0, 5.0], [torch.nan] * 3]])
    config = WindowConfig(2, anchored=True)
    got = read_window(config, {"y": y}, {"y": t}, mask, {"anchor": anchor})
    assert config.features == got.entries.shape[1] == 7
    assert got.entries[0, 4:, 0].tolist() == [[3, 0], [4, 0], [5, 0]]
    with pytest.raises(ValueError, match='this network reads "anchor"'):
        read_window(config, {"y": y}, {"y": t}, mask, {})


@each
@pytest.mark.parametrize("channels", [1, 2])
def test_an_answer_for_each_entry(make, channels):
    inputs = windows(3, 10, channels, **ALL)
    out = built(make, length=10, channels=channels, **ALL)(*inputs)
    assert {k: (tuple(v.shape), v.dtype) for k, v in out.items()} == {"y": ((3, 10 * channels), torch.float64)}


@each
def test_the_answer_is_0_before_training(make):
    inputs = windows(3, 10, 2, **ALL)
    assert not bool(answer(make(length=10, channels=2, **ALL).double(), inputs).any())


@each
@given(length=st.integers(1, 13), channels=st.integers(1, 3), seed=st.integers(0, 999))
@settings(max_examples=8, deadline=None)
def test_what_does_not_exist_is_not_read(make, length, channels, seed):
    """To the last bit: its value, its time, its covariates; nan reaches neither answers nor gradients."""
    inputs, net = windows(3, length, channels, seed=seed, **ALL), built(make, length=length, channels=channels, **ALL)
    inputs.mask[0] = False
    expected = answer(net, inputs)
    for junk in (torch.nan, torch.inf, 1e3):
        put = lambda v, j=junk: torch.where(inputs.mask.reshape(*inputs.mask.shape, *(1,) * (v.ndim - 2)), v, j)
        fields = inputs.given | {"covariates": put(inputs.given["covariates"])}
        y = put(inputs.state["y"]).requires_grad_()
        got = net({"y": y}, {"y": put(inputs.t["y"])}, inputs.mask, fields)["y"]
        assert torch.equal(got, expected) and bool(got.isfinite().all())
        net.zero_grad()
        got.square().sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in net.parameters())
        assert float(torch.where(inputs.mask, 0.0, y.grad).abs().max()) == 0


@each
def test_every_entry_that_exists_is_read_wherever_there_is_an_unknown(make):
    """Known or not, of any channel and step: its value moves the answer at each unknown entry."""
    inputs = windows(2, 9, 2)
    net, y = built(make, length=9, channels=2), inputs.state["y"]
    unknown = inputs.t["y"] > 0
    grad = torch.autograd.functional.jacobian(lambda v: net({"y": v}, inputs.t, inputs.mask, {})["y"].sum(0), y)
    for b in range(2):
        moved = grad[:, b][unknown[b] & inputs.mask[b]][:, inputs.mask[b]]
        assert float(moved.abs().min()) > 1e-9


@each
@pytest.mark.parametrize("flag", ["known", "exists"])
def test_flags_are_read(make, flag):
    """A value of 0 at an entry that is known, noised or missing are three things."""
    inputs, net = exist_all(windows(4, 9)), built(make, length=9)
    inputs.state["y"][:, 2] = 0
    changed = inputs._replace(mask=inputs.mask.clone(), t={"y": inputs.t["y"].clone()})
    if flag == "exists":
        changed.mask[:, 2] = False
    else:
        changed.t["y"][:, 2] = changed.t["y"].amax(1)
    assert bool(((answer(net, inputs) - answer(net, changed)).abs() > 1e-9).all())


@each
def test_a_sample_is_the_same_in_any_batch(make):
    inputs, net = windows(5, 10, 2, **ALL), built(make, length=10, channels=2, **ALL)
    whole = answer(net, inputs)
    for row in range(5):
        alone = answer(net, rows_of(inputs, torch.tensor([row])))
        torch.testing.assert_close(alone[0], whole[row], rtol=0, atol=1e-12)


@each
@torch.no_grad()
@pytest.mark.parametrize("length", [12, 96])
def test_a_sample_is_the_same_bit_for_bit_in_batches_of_16_or_more(make, length):
    """Widths are multiples of 32, two vector registers: what is left over in a row is rounded otherwise."""
    inputs, net = windows(64, length, 2, **ALL), built(make, length=length, channels=2, **ALL).float()
    single = lambda fields: {k: v.float() for k, v in fields.items()}
    inputs = inputs._replace(state=single(inputs.state), t=single(inputs.t), given=single(inputs.given))
    whole = answer(net, inputs)
    for size in (16, 17, 33):
        for rows in torch.randperm(64, generator=torch.Generator().manual_seed(size)).split(size)[:1]:
            assert torch.equal(answer(net, rows_of(inputs, rows)), whole[rows])


@each
@torch.no_grad()
def test_times(make):
    """One for all, one a sample or one an entry; what is noised has the largest, which is read."""
    inputs, net = exist_all(windows(3, 9)), built(make, length=9)
    ask = lambda t: net(inputs.state, t, inputs.mask, {})["y"]
    scalar = torch.tensor(0.4, dtype=torch.float64)
    for t in (scalar, scalar.expand(3), scalar.expand(3, 9), {"y": scalar}, {"y": scalar.expand(3)}):
        assert torch.equal(ask(t), ask({"y": scalar.expand(3, 9)}))
    t, moved = inputs.t["y"], inputs.t["y"].clone()
    moved[:, -1] = 0.5 * moved[:, -1]
    assert torch.equal(ask({"y": t}), ask({"y": moved}))
    moved[:, -1] = 0.99
    assert float((ask({"y": t}) - ask({"y": moved})).abs().min()) > 1e-9
    rows = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    assert torch.equal(ask(rows)[1], ask(scalar)[1]) and not torch.equal(ask(rows)[0], ask(scalar)[0])


@each
def test_a_time_of_what_does_not_exist_is_not_the_time(make):
    inputs, net = windows(3, 9), built(make, length=9)
    late = {"y": torch.where(inputs.mask, inputs.t["y"], 1.0)}
    assert torch.equal(answer(net, inputs), answer(net, inputs._replace(t=late)))


@each
def test_every_weight_is_used(make):
    inputs, net = windows(4, 10, 2, **ALL), built(make, length=10, channels=2, **ALL)
    answer(net, inputs).square().sum().backward()
    idle = [k for k, p in net.named_parameters() if p.grad is None or float(p.grad.abs().max()) < 1e-12]
    assert not idle


@each
@torch.no_grad()
def test_channels_are_told_apart(make):
    """To swap the channels is not to swap the answers."""
    inputs = exist_all(windows(3, 8, 2))
    net = built(make, length=8, channels=2)
    swap = lambda v: v.unflatten(1, (2, 8)).flip(1).flatten(1)
    swapped = inputs._replace(state={"y": swap(inputs.state["y"])}, t={"y": swap(inputs.t["y"])})
    assert float((swap(answer(net, swapped)) - answer(net, inputs)).abs().max()) > 1e-3


@each
@pytest.mark.parametrize("name", ["phase", "covariates", "static"])
@torch.no_grad()
def test_what_is_given_is_read_and_asked_for(make, name):
    inputs, net = exist_all(windows(3, 10, 2, **ALL)), built(make, length=10, channels=2, **ALL)
    clean = inputs.given | {name: inputs.given[name].nan_to_num()}
    ask = lambda fields: answer(net, inputs._replace(given=fields))
    out = ask(clean)
    for k in range(clean[name].shape[-1]):
        moved = clean[name].clone()
        moved[..., k] += 1
        assert float((ask(clean | {name: moved}) - out).abs().min()) > 1e-9
    if name != "phase":
        untold = torch.where(clean[name] == clean[name][:1], torch.nan, clean[name])
        assert bool(ask(clean | {name: untold}).isfinite().all())
        zero = clean | {name: torch.zeros_like(clean[name])}
        assert not torch.equal(ask(zero), ask(clean | {name: torch.full_like(clean[name], torch.nan)}))
    with pytest.raises(ValueError, match=f'reads "{name}"'):
        ask({k: v for k, v in clean.items() if k != name})
    with pytest.raises(ValueError, match=f'"{name}" must be of shape'):
        ask(clean | {name: clean[name][..., :-1]})


@each
def test_bad_requests_are_refused(make):
    inputs, net = windows(3, 10), built(make, length=10)
    order = Order(torch.zeros_like(inputs.mask, dtype=torch.long))
    for extra in ((order,), (None, object())):
        with pytest.raises(ValueError, match="knows no order and keeps no cache"):
            net(*inputs[:4], *extra)
    with pytest.raises(ValueError, match=r"y must be \(B, 10\), 1 channels of 10 steps, got \(3, 9\)"):
        net({"y": inputs.state["y"][:, :9]}, *inputs[1:4])
    for name in ("length", "channels"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
            make(**{"length": 10, name: 0})
    with pytest.raises(ValueError, match="phases must be 0 or more, got -1"):
        make(length=10, phases=-1)


@each
def test_nothing_waits_for_the_device(make):
    inputs, net = windows(3, 10, 2, **ALL), built(make, length=10, channels=2, **ALL).to("meta")
    away = lambda fields: {k: v.to("meta") for k, v in fields.items()}
    there = (away(inputs.state), away(inputs.t), inputs.mask.to("meta"), away(inputs.given))
    with no_host_reads("meta"), torch.no_grad():
        net(*there)


@each
def test_autocast_and_times_in_double_precision(make):
    inputs, net = windows(3, 10, 2), built(make, length=10, channels=2).float()
    state = {"y": inputs.state["y"].float()}
    out = net(state, inputs.t, inputs.mask, {})["y"]
    assert out.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(state, inputs.t, inputs.mask, {})["y"].float()
    assert bool(rough.isfinite().all()) and bool(((rough - out).abs() < 0.1 * out.abs().max()).all())


def test_a_calendar_is_turned_step_by_step():
    """With rotations for its matrices, `Places` reads each step's sine and cosine from those at the last."""
    places = Places(6, 2, 2).double()
    angle = 2 * torch.pi / 24 * (torch.arange(6).double() - 5)
    with torch.no_grad():
        places.place.zero_()
        places.turn[0] = torch.stack([angle.cos(), -angle.sin()], -1)
        places.turn[1] = torch.stack([angle.sin(), angle.cos()], -1)
    last = torch.tensor([0.3, 2.0]).double()
    got = places(torch.stack([last.sin(), last.cos()], -1))
    now = last[:, None] + angle
    torch.testing.assert_close(got, torch.stack([now.sin(), now.cos()], -1), rtol=0, atol=1e-12)


@each
def test_a_network_learns_to_carry_the_last_known_value_on(make):
    """200 steps of training by the package's own loss. At late times x says little: without the past the loss of an
    entry, about 1, would stay above a half."""
    length, b = 12, 64
    schema = {"y": Field("site")}
    torch.manual_seed(0)
    net = make(length=length)
    denoiser = Denoiser(net, Product({"y": Cosine()}, schema))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    step = torch.arange(length)
    g = torch.Generator().manual_seed(0)

    def loss(k: int) -> torch.Tensor:
        last = torch.randint(5, 8, (b, 1), generator=g)
        y = torch.randn(b, length, generator=g)
        y = torch.where(step > last, y.gather(1, last), y)
        t = torch.where(step > last, 0.8 + 0.2 * torch.rand(b, 1, generator=g), 0.0)
        batch = Batch(schema, {"y": y}, torch.ones(b, length, dtype=torch.bool))
        return denoiser.loss(batch, Rng(0, torch.arange(b)).at(k), {"y": t}) / (t > 0).sum(1).float().mean()

    first = float(loss(0).detach())
    for k in range(200):
        optimiser.param_groups[0]["lr"] = 1e-2 * min(1, (200 - k) / 100)
        optimiser.zero_grad()
        loss(k).backward()
        optimiser.step()
    with torch.no_grad():
        last = float(torch.stack([loss(1000 + k) for k in range(4)]).mean())
    assert 0.7 < first < 1.6 and last < 0.15, f"{first:.3f} to {last:.3f}"
