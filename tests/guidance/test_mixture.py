"""Mixtures of denoisers: the exact mixture of laws, discrete logits, and what may be mixed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import EnumeratedOracle, GaussianOracle, MixtureOracle, normal
from unisci.batch import Field
from unisci.guidance.mixture import Mixture, equal, mix
from unisci.processes.categorical import absorbing, mask_and_replace, uniform
from unisci.processes.gaussian import VE, VP

F64 = torch.float64
T = torch.tensor(0.4, dtype=F64)
MEANS, STDS = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.0]], dtype=F64), torch.tensor([0.3, 0.5, 0.2], dtype=F64)
ONE = torch.ones(1, dtype=F64)
PARTS = tuple(MixtureOracle(VP(), m[None], s[None], ONE) for m, s in zip(MEANS, STDS, strict=True))


def by_density(x, t, cleans):
    """kappa_i proportional to w_i q_i(x_t), w = (.5, .3, .2)."""
    logs = [part.logp(x, t) + w for part, w in zip(PARTS, torch.tensor([0.5, 0.3, 0.2]).log(), strict=True)]
    return torch.stack(logs, 1).softmax(1)


def test_weights_by_density_give_the_denoiser_of_the_mixture():
    whole = MixtureOracle(VP(), MEANS, STDS, torch.tensor([0.5, 0.3, 0.2], dtype=F64))
    x = 2 * normal(50, 2)
    torch.testing.assert_close(Mixture(PARTS, by_density)(x, T), whole(x, T), rtol=1e-6, atol=1e-6)
    even = sum(part(x, T) for part in PARTS) / 3
    torch.testing.assert_close(Mixture(PARTS)(x, T), even)
    assert (even - whole(x, T)).abs().mean() > 0.3


def test_evaluate_asks_each_model():
    x = normal(5, 2)
    cleans = Mixture(PARTS).evaluate(x, T)
    assert [torch.equal(c, part(x, T)) for c, part in zip(cleans, PARTS, strict=True)] == [True] * 3


def test_discrete_fields_mix_probabilities():
    """Chains of two tables: with kappa by density, the exact posterior of the mixture of the tables."""
    process = mask_and_replace(3)
    generator = torch.Generator().manual_seed(0)
    tables = [torch.rand(3, 3, generator=generator, dtype=F64) ** 3 for _ in range(2)]
    tables = [0.3 * tables[0] / tables[0].sum(), 0.7 * tables[1] / tables[1].sum()]
    models = tuple(EnumeratedOracle(process, table) for table in tables)
    x = torch.cartesian_prod(*[torch.arange(4)] * 2)

    def by_density(x, t, cleans):
        weights = []
        for table in tables:
            q = process.likelihood(x, t)
            weights.append(torch.einsum("ni,nj,ij->n", q[:, 0].double(), q[:, 1].double(), table))
        return torch.stack(weights, 1) / torch.stack(weights, 1).sum(1, keepdim=True)

    got = Mixture(models, by_density)(x, T)
    torch.testing.assert_close(got.exp(), EnumeratedOracle(process, sum(tables))(x, T).exp())
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(16, 2, dtype=F64))
    logits = [3 * normal(4, 2, 3, seed=i) for i in range(2)]  # not normalised
    kappa = torch.tensor([[0.25, 0.75]], dtype=F64).expand(4, 2)
    want = 0.25 * logits[0].softmax(-1) + 0.75 * logits[1].softmax(-1)
    torch.testing.assert_close(mix(process, logits, kappa).exp(), want)


def test_weight_zero_of_a_class_or_a_model():
    process = uniform(2)
    impossible = torch.tensor([[0.0, -torch.inf]], dtype=F64)
    other = torch.tensor([[1.0, 1.0]], dtype=F64)
    only = torch.tensor([[1.0, 0.0]], dtype=F64)
    assert torch.equal(mix(process, [impossible, other], only), impossible)
    got = mix(process, [impossible, impossible], torch.tensor([[0.5, 0.5]], dtype=F64))
    torch.testing.assert_close(got, impossible)


def test_fields_mix_each_in_its_way():
    schema = {"atom": Field("site", (), ("a", "b")), "position": Field("site", (2,))}
    process = {"atom": absorbing(2), "position": VP()}

    class Both:
        def __init__(self, seed):
            self.process, self.schema, self.seed = process, schema, seed

        def __call__(self, x, t):
            return {"atom": normal(3, 4, 2, seed=self.seed), "position": normal(3, 4, 2, seed=self.seed + 9)}

    mixture = Mixture((Both(0), Both(1)), lambda x, t, cleans: torch.tensor([[0.1, 0.9]], dtype=F64).expand(3, 2))
    assert mixture.schema is schema and mixture.process is process
    first, second = mixture.evaluate({}, T)
    got = mixture({}, T)
    torch.testing.assert_close(got["position"], 0.1 * first["position"] + 0.9 * second["position"])
    probs = 0.1 * first["atom"].softmax(-1) + 0.9 * second["atom"].softmax(-1)
    torch.testing.assert_close(got["atom"].softmax(-1), probs)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_a_sample_does_not_depend_on_its_batch(b, m, seed):
    models = tuple(GaussianOracle(VP(), float(i), 0.5) for i in range(m))
    weights = lambda x, t, cleans: torch.stack([c.sum(1) for c in cleans], 1).softmax(1)
    x = normal(b, 3, seed=seed)
    whole = Mixture(models, weights)(x, T)
    assert all(torch.equal(Mixture(models, weights)(x[i : i + 1], T)[0], whole[i]) for i in range(b))


def test_equal_models_are_one_bitwise():
    x = normal(9, 2)
    assert torch.equal(Mixture((PARTS[0], PARTS[0]))(x, T), PARTS[0](x, T))
    assert torch.equal(Mixture((PARTS[0],))(x, T), PARTS[0](x, T))
    kappa = equal(x, T, (x, x, x, x))
    assert kappa.shape == (9, 4) and kappa.dtype == F64 and bool((kappa == 0.25).all())
    assert equal({"a": x}, T, ({"a": x.float()},)).dtype == torch.float32


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least one model"):
        Mixture(())
    with pytest.raises(ValueError, match="model 1 has the process VE"):
        Mixture((GaussianOracle(VP()), GaussianOracle(VE())))
    field, fields = {"x": Field("site", (3,))}, {"x": VP()}
    with pytest.raises(ValueError, match="model 1 has the schema"):
        Mixture((GaussianOracle(fields, schema=field), GaussianOracle(fields, schema={"x": Field("site", (2,))})))
    with pytest.raises(ValueError, match="model 2 has the process"):
        Mixture((GaussianOracle(fields), GaussianOracle(fields), GaussianOracle({"y": VP()})))
    table = torch.ones(3, dtype=F64)
    for other in (uniform(3), absorbing(4), mask_and_replace(3)):
        with pytest.raises(ValueError, match="one process"):
            Mixture((EnumeratedOracle(absorbing(3), table), EnumeratedOracle(other, table)))
    alike = Mixture((EnumeratedOracle(absorbing(3), table), EnumeratedOracle(absorbing(3), table)))
    assert len(alike.models) == 2  # loaded apart, the same noise
