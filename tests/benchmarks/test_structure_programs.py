"""The search of programs measures what it says, and keeps to its number of calls."""

import numpy as np
import pytest
import torch

from benchmarks.molecules3d import fragments, holds
from benchmarks.structure_programs import NAMES, OLD, Setting, judge, local_error
from tests.small_structures import embedded, small_model
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.program import compile_solver


@pytest.mark.parametrize("name", NAMES)
def test_a_program_makes_as_many_calls_as_it_may(name):
    program = Setting(name, start=0.9).program(small_model(), 20)
    assert program.nfe == 20 - (SCHEMES[name].evaluations - 1)  # the jump to t = 0 is of one call
    process = program.process
    assert program.steps == compile_solver(process, program.times, name).steps


def test_noise_is_as_the_named_schemes_have_it():
    model = small_model()
    for eta, name in ((1.0, "sde-dpm++2m"), (0.0, "dpm++2m")):
        assert Setting("ancestral", eta).program(model, 6).steps == Setting(name).program(model, 6).steps
    more, less = (Setting(eta=e).program(model, 6).steps[2][0].noise for e in (2.0, 1.0))
    assert more > less > 0


def test_times_are_even_to_a_power_between_the_ends():
    times = OLD._replace(start=0.9, end=0.1, power=3.0).program(small_model(), 4).times
    expected = 0.1 + 0.8 * torch.tensor([1, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64) ** 3
    torch.testing.assert_close(times, expected)
    assert str(OLD) == "ancestral, power 2"
    assert SCHEMES["heun"].evaluations == 2 and Setting("heun", start=0.9).program(small_model(), 7).nfe == 5


def test_the_local_error_is_of_atoms_one_and_two_bonds_apart():
    truth = embedded("CCO")
    assert local_error(truth, truth) == 0
    turned = truth.with_positions(truth.positions[0][:, [1, 2, 0]] + 4)
    assert local_error(turned, truth) == pytest.approx(0, abs=1e-9)
    assert local_error(truth.with_positions(1.1 * truth.positions), truth) > 0.1
    water = embedded("O")
    x = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    longer = x + np.array([[0, 0, 0], [0.5, 0, 0], [0, 0, 0]])
    errors = [0.5, 0.0, np.hypot(1.5, 1) - np.sqrt(2)]
    found = local_error(water.with_positions(longer), water.with_positions(x))
    assert found == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_all_molecules_are_judged_in_their_order():
    truth = [embedded("CCO"), embedded("C"), embedded("CO")]
    quality = judge(small_model(), truth, OLD.program(small_model(), 3))
    assert quality.local.shape == quality.stable.shape == (3,) and not quality.stable.any()
    alone = judge(small_model(), truth[:1], OLD.program(small_model(), 3))
    assert alone.local[0] == pytest.approx(quality.local[0], rel=1e-3)


def test_fragments_lack_one_end_and_its_hydrogens():
    (part,) = fragments([embedded("CCO"), embedded("C1CC1")])
    assert sorted(part.atoms) == sorted("CCHHHHH") and part.conformers == 1
    whole = embedded("CCO")
    order = [i for i in range(9) if i not in (2, 8)]
    assert holds(whole, whole) and part.atoms == tuple(whole.atoms[i] for i in order)
    assert not holds(whole.with_positions(whole.positions + 1e-9), whole)
    assert not holds(embedded("CCN"), whole)
