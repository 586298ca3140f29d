"""Properties that a model predicts where RDKit cannot measure them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.design.by_hand import BENZENE, ETHANOL, METHANE, TWO_PIECES
from tests.jobs.small import CLASSES, MODEL, SIZES, untrained
from unisci.autoregression.pard import Pard, ordered
from unisci.design.designer import Designer
from unisci.design.predicted import Predicted, spoken_name, with_predictions
from unisci.design.properties import measure
from unisci.design.samples import Samples
from unisci.design.steering import Steering
from unisci.design.targets import Above, Below, Between, Maximize, Target
from unisci.design.wants import wants
from unisci.domains.molecule import Molecule
from unisci.jobs import property_models
from unisci.order import Order

ATOM, BOND = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]), torch.tensor([0.5, 0.47, 0.02, 0.01])


@pytest.fixture(scope="module")
def model():
    """An untrained model of gap and logp, in units of the data."""
    torch.manual_seed(3)
    moments = torch.tensor([7.0, 0.5]), torch.tensor([2.0, 0.5])
    built = property_models.build(SIZES, "marginal", 1, CLASSES, ("gap", "logp"), ATOM, BOND, *moments)
    return built.eval()


@pytest.fixture(scope="module")
def knowing(designer, model) -> Designer:
    return replace(designer, properties=model)


@torch.no_grad()
def alone(model, molecule: Molecule) -> float:
    batch = ordered(Molecule.batch([molecule], model.classes, 9), 1)
    order = Order(torch.where(batch.mask, batch.given["rank"], -1))
    return float(model(batch.state, None, batch.mask, batch.given, order)[0][0, 0])


def test_a_prediction_is_the_models_mean_of_the_clean_graph(model):
    gap = Predicted(model, "gap")
    many = [ETHANOL, METHANE, BENZENE, ETHANOL]
    np.testing.assert_allclose(gap(many), [alone(model, m) for m in many], rtol=1e-4)
    assert len(set(gap(many).tolist())) == 3
    assert gap([BENZENE])[0] == gap(many)[2]  # bit for bit, whatever stands beside it
    values = measure(gap, [TWO_PIECES, METHANE])
    assert np.isnan(values[0]) and values[1] == gap([METHANE])[0]


def test_what_the_model_does_not_know_is_refused(model):
    with pytest.raises(ValueError, match="this model predicts gap, logp, not 'alpha'"):
        Predicted(model, "alpha")
    with pytest.raises(ValueError, match=r"unknown atoms \['S'\]"):
        Predicted(model, "gap")([Molecule.from_smiles("CS")])


def test_only_what_rdkit_cannot_measure_is_predicted(model):
    where = with_predictions(wants(Target("GAP", 6.8, 0.5) & Above("logp", 1) & Maximize("gap", 1)), model)
    assert [w.property for w in where.parts] == [Predicted(model, "gap"), "logp", Predicted(model, "gap")]
    assert [spoken_name(w) for w in where.parts] == ["gap", "logp", "gap"]
    assert str(where.parts[0]) == "gap (predicted) 6.3..7.3" and where.parts[2].temperature == 1
    plain = wants(Above("alpha", 1))
    assert with_predictions(plain, model) == plain == with_predictions(plain, None)
    assert spoken_name(Above(lambda m: [1.0] * len(m), 1)) is None


def test_columns_of_the_table_say_that_they_are_predicted(model):
    samples = Samples.of([METHANE, TWO_PIECES, BENZENE], range(3), 0.1, "abc", 0)
    middle = float(np.mean(Predicted(model, "gap")([METHANE, BENZENE])))
    table = samples.meets(Below("gap", middle), model).table
    values = Predicted(model, "gap")([METHANE, BENZENE])
    assert table["gap (predicted)"].dropna().tolist() == values.tolist()
    assert table[f"meets gap (predicted) <= {middle:g}"].tolist() == [values[0] < middle, False, values[1] < middle]
    assert "gap" not in table.columns
    with pytest.raises(ValueError, match=r"unknown property 'gap'.*a model of properties that knows it"):
        samples.meets(Below("gap", middle))


def test_a_designer_steers_by_and_judges_with_its_model(knowing):
    plain = knowing.generate(60).meets(Above("gap", -1e9), knowing.properties).table["gap (predicted)"].dropna()
    low = float(plain.quantile(0.75))
    samples = knowing.generate(24, where=Above("gap", low), particles=6)
    table = samples.table
    assert table["meets"].mean() > 0.3 > 0.25 * len(plain) / 60 + 0.05  # a quarter of the valid ones, unsteered
    assert (table["gap (predicted)"].dropna() >= low).tolist() == table["meets"][table["valid"]].tolist()
    assert samples.hit_rates()["want"].tolist()[0].startswith("gap (predicted) >= ")
    one = knowing.generate(3, where=Between("gap", low, low + 1), particles=1)  # by its gradient alone
    assert len(one) == 3


@pytest.mark.parametrize("name", ["homo", "qedd"])
def test_a_name_that_nothing_measures_is_refused_before_anything_is_drawn(knowing, monkeypatch, name):
    monkeypatch.setattr(Pard, "generate", lambda *a, **k: pytest.fail("something was drawn"))
    with pytest.raises(ValueError, match=f"unknown property '{name}'"):
        knowing.generate(3, where=Above(name, 1))
    with pytest.raises(ValueError, match=f"unknown property '{name}'"):
        replace(knowing, properties=None).stream(3, where=Above(name, 1))


# ---- a generator that is told ---------------------------------------------------------------------------


def test_a_generator_is_told_the_middle_of_ranges(model, monkeypatch):
    generator = untrained(config=MODEL.model_copy(update={"condition": ("logp", "Gap", "alpha")}))
    told = Designer(generator.eval(), 2, "", {}, model)
    given, generate = [], Pard.generate

    def spy(self, rng, *rest, values=None, **options):
        given.append(values)
        return generate(self, rng, *rest, values=values, **options)

    monkeypatch.setattr(Pard, "generate", spy)
    told.generate(2, where=Target("gap", 6.8, 0.2) & Between("logp", 1, 2), particles=3)
    torch.testing.assert_close(given[0], torch.tensor([[1.5, 6.8, torch.nan]]).expand(6, 3), equal_nan=True)
    told.generate(2, where=Above("gap", 6), particles=3)  # a range of one end has no middle
    told.generate(2)
    assert given[1:] == [None, None]


def test_being_told_is_enough_to_steer_one_particle():
    told = lambda want: Steering(wants(want), 1, None, CLASSES, 6, 1.0, ("logp",))
    assert told(Between("logp", 1, 2)).values.tolist() == [[1.5]]
    with pytest.raises(ValueError, match="nothing can steer towards logp >= 1"):
        told(Above("logp", 1))
    with pytest.raises(ValueError, match="unknown property 'gap'"):  # acts, but nothing says whether it is met
        Steering(wants(Between("gap", 1, 2)), 1, None, CLASSES, 6, 1.0, ("gap",))
