"""Relaxation of a batch: the minima are those of ase.optimize.FIRE with FrechetCellFilter; and laws of symmetry."""

import re

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from unisci.design import relaxation
from unisci.design.potentials import Evaluation, ase_calculator, chgnet
from unisci.design.relaxation import STIFFNESS, _direction, relax
from unisci.domains.crystal import Crystal

FMAX = 0.03


def shaken(element: str, seed: int, repeat=(1, 1, 2), strain: float = 0.04, move: float = 0.15) -> Crystal:
    rng = np.random.default_rng(seed)
    atoms = bulk(element).repeat(repeat)
    if repeat[0] > 1:
        atoms.numbers[::2] = 79
    stretch = rng.normal(0, strain, (3, 3))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + stretch), scale_atoms=True)
    atoms.positions += rng.normal(0, move, atoms.positions.shape)
    return Crystal.from_ase(atoms)


METALS = [shaken("Cu", 0), shaken("Al", 1, (1, 1, 3)), shaken("Ni", 2, (2, 1, 1))]
EMT_POTENTIAL = ase_calculator(EMT())


@pytest.fixture(scope="module")
def relaxed():
    return relax(METALS, EMT_POTENTIAL, FMAX)


def by_ase(crystal: Crystal, calculator) -> float:
    """eV an atom of the minimum that ASE finds."""
    atoms = crystal.atoms
    atoms.calc = calculator
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(FMAX, 500)
    return atoms.get_potential_energy() / len(atoms)


def test_the_minima_of_ase(relaxed):
    for crystal, r in zip(METALS, relaxed, strict=True):
        assert r.converged and r.reason is None
        assert r.energy_per_atom == pytest.approx(by_ase(crystal, EMT()), abs=1e-3)


def test_the_minima_of_ase_for_lennard_jones():
    calculator = LennardJones(sigma=2.3, epsilon=0.3, rc=5.0, smooth=True)
    r = relax([shaken("Cu", 5, move=0.1)], ase_calculator(calculator), FMAX)[0]
    assert r.converged and r.energy_per_atom == pytest.approx(by_ase(shaken("Cu", 5, move=0.1), calculator), abs=1e-3)


def test_what_is_told_is_true_of_the_crystal_returned(relaxed):
    """Energy and forces by another evaluation; converged as FrechetCellFilter's rows of forces say."""
    for r in relaxed:
        atoms = r.crystal.atoms
        atoms.calc = EMT()
        rows = np.linalg.norm(FrechetCellFilter(atoms).get_forces(), axis=1)
        assert rows.max() < FMAX and rows.max() == pytest.approx(r.fmax, abs=1e-9)
        assert r.energy_per_atom == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-9)


def test_few_evaluations(relaxed):
    """A first step of a good length and the memory of the steps: FIRE takes about fifty, steepest descent hundreds."""
    assert max(r.steps for r in relaxed) <= 20


def test_elements_and_number_of_sites_stay(relaxed):
    for crystal, r in zip(METALS, relaxed, strict=True):
        np.testing.assert_array_equal(r.crystal.numbers, crystal.numbers)


def test_the_cell_relaxes_too():
    """fcc copper from 8 % too large a cell: EMT's lattice constant."""
    r = relax([Crystal.from_ase(bulk("Cu", a=3.9))], EMT_POTENTIAL, 1e-3)[0]
    assert r.crystal.volume == pytest.approx(3.59**3 / 4, rel=0.01)


def test_a_crystal_does_not_depend_on_its_batch(relaxed):
    for k in (0, 2):
        alone = relax([METALS[k]], EMT_POTENTIAL, FMAX)[0]
        assert alone.steps == relaxed[k].steps
        np.testing.assert_allclose(alone.crystal.lattice, relaxed[k].crystal.lattice, atol=1e-8)
        np.testing.assert_allclose(alone.energy_per_atom, relaxed[k].energy_per_atom, atol=1e-9)


def test_turned_and_in_another_order(relaxed):
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    base, order = METALS[2], rng.permutation(len(METALS[2]))
    other = Crystal(base.numbers[order], base.fractional[order], base.lattice @ turn)
    found, expected = relax([other], EMT_POTENTIAL, FMAX)[0], relaxed[2].crystal
    assert found.steps == relaxed[2].steps
    np.testing.assert_allclose(found.crystal.lattice, expected.lattice @ turn, atol=1e-6)
    apart = found.crystal.fractional - expected.fractional[order]
    np.testing.assert_allclose(apart - np.round(apart), 0, atol=1e-6)


def test_at_a_minimum_one_evaluation_and_nothing_moves():
    start = Crystal.from_ase(bulk("Cu", a=3.59))
    r = relax([start], EMT_POTENTIAL, 0.1)[0]
    assert r.steps == 1 and r.converged
    np.testing.assert_allclose(r.crystal.lattice, start.lattice, atol=1e-12)


def test_nothing_to_relax():
    assert relax([], EMT_POTENTIAL) == []


# ---- failures are rows --------------------------------------------------------------------------------


def broken(what: dict[int, object]):
    """EMT, but where an element (atomic number) is in `what`: its evaluation instead."""

    def evaluate(structures):
        found = EMT_POTENTIAL(structures)
        for i, atoms in enumerate(structures):
            for z, instead in what.items():
                if z in atoms.numbers:
                    found[i] = instead(len(atoms))
        return found

    return evaluate


def test_a_failure_keeps_the_crystal_and_harms_no_other(relaxed):
    potential = broken(
        {
            29: lambda n: Evaluation.failed(n, "no copper"),
            13: lambda n: Evaluation(1.0, np.full((n, 3), np.nan), np.zeros((3, 3))),
        }
    )
    found = relax(METALS, potential, FMAX)
    assert [r.reason for r in found] == ["no copper", "the potential gave a value that is not finite", None]
    for k in (0, 1):
        assert found[k].crystal is METALS[k] and not found[k].converged and np.isnan(found[k].energy_per_atom)
        assert found[k].steps == 1
    assert found[2].energy_per_atom == pytest.approx(relaxed[2].energy_per_atom, abs=1e-9)


def pushing(stress: float, slope: float = 0.0):
    """A cell that shrinks (or grows) for ever; the energy an atom changes by `slope` an evaluation."""
    count = 0

    def evaluate(structures):
        nonlocal count
        count += 1
        return [Evaluation(slope * count * len(a), np.zeros((len(a), 3)), stress * np.eye(3)) for a in structures]

    return evaluate


@pytest.mark.parametrize(
    "potential, reason",
    [
        (pushing(1.0), "ran away: two sites within 0.5 A|ran away: a volume of 0.* A.3 a site"),
        (pushing(-1.0), "ran away: a volume of 1.* A.3 a site"),
        (pushing(-1.0, 6.0), "ran away: by 12 eV an atom"),
        (pushing(-1.0, -60.0), "ran away: by -120 eV an atom"),
    ],
)
def test_what_runs_away_is_a_row_with_its_reason(potential, reason):
    r = relax(METALS[:1], potential, FMAX, 500)[0]
    assert r.crystal is METALS[0] and np.isnan(r.energy_per_atom) and not r.converged
    assert re.fullmatch(reason, r.reason), r.reason
    assert 1 < r.steps < 500


def test_two_sites_on_one_place_are_not_evaluated():
    same = Crystal(np.array([29, 29]), np.array([[0, 0, 0], [0, 0, 0.01]]), 4 * np.eye(3))
    seen = []

    def evaluate(structures):
        seen.extend(structures)
        return EMT_POTENTIAL(structures)

    found = relax([same, METALS[0]], evaluate, FMAX)
    assert found[0].reason == "ran away: two sites within 0.5 A" and found[1].converged
    assert all(29 in a.numbers and a.cell.volume < 60 for a in seen)


def test_steps_used_up():
    r = relax(METALS[:1], EMT_POTENTIAL, FMAX, 3)[0]
    assert (r.steps, r.converged, r.reason) == (3, False, "not converged in 3 steps")
    atoms = r.crystal.atoms
    atoms.calc = EMT()
    assert r.energy_per_atom == pytest.approx(atoms.get_potential_energy() / 2, abs=1e-9) and r.fmax > FMAX


def test_the_door():
    with pytest.raises(ValueError, match="fmax is 0"):
        relax(METALS, EMT_POTENTIAL, 0)
    with pytest.raises(ValueError, match="steps 0"):
        relax(METALS, EMT_POTENTIAL, 0.1, 0)


# ---- the step -----------------------------------------------------------------------------------------


def test_the_direction_is_the_inverse_hessian_of_bfgs():
    """Against the dense BFGS recursion H <- (1 - s y^T / sy) H (1 - y s^T / sy) + s s^T / sy from the same scale."""
    rng = np.random.default_rng(0)
    curvature = np.diag(rng.uniform(5, 50, 6))
    steps = rng.normal(size=(1, 4, 6))
    slopes = steps @ curvature
    slopes[0, 1] *= -1  # curved down: left out
    g = rng.normal(size=(1, 6))
    s, y = steps[0, 3], slopes[0, 3]
    h = (s @ y) / (y @ y) * np.eye(6)
    for s, y in zip(steps[0, [0, 2, 3]], slopes[0, [0, 2, 3]], strict=True):
        left = np.eye(6) - np.outer(s, y) / (s @ y)
        h = left @ h @ left.T + np.outer(s, s) / (s @ y)
    np.testing.assert_allclose(_direction(g, steps, slopes), g @ h, rtol=1e-10)
    np.testing.assert_allclose(_direction(g, steps[:, :0], slopes[:, :0]), g / STIFFNESS)


def test_the_memory_ends(monkeypatch):
    """Only so many steps are kept, and steps and slopes stay in step with each other."""
    lengths, whole = [], relaxation._direction

    def seen(g, steps, slopes):
        assert steps.shape == slopes.shape
        lengths.append(steps.shape[1])
        return whole(g, steps, slopes)

    monkeypatch.setattr(relaxation, "MEMORY", 4)
    monkeypatch.setattr(relaxation, "_direction", seen)
    assert relax(METALS[:1], EMT_POTENTIAL, 1e-3)[0].converged
    assert lengths[:6] == [0, 1, 2, 3, 4, 4]


def test_a_rise_of_the_energy_halves_the_limit_of_a_step():
    """From the volume after each evaluation, the cell alone moving: 0.3 A first, then half each time, to 0.02 A."""
    volumes, energies, places = [], iter(range(100)), []

    def evaluate(structures):
        volumes.append(structures[0].get_volume())
        places.append(structures[0].get_scaled_positions(wrap=False))
        return [Evaluation(next(energies) * 0.1, np.zeros((len(a), 3)), -2 * np.eye(3)) for a in structures]

    relax(METALS[:1], evaluate, FMAX, 8)
    steps = np.diff(np.log(volumes)) / 3 * 2.0 * np.sqrt(2)  # each row of the cell's step has this length
    np.testing.assert_allclose(steps, [0.3, 0.15, 0.075, 0.0375, 0.02, 0.02, 0.02], rtol=1e-6)
    np.testing.assert_allclose(places, [places[0]] * 8, atol=1e-9)  # without forces the atoms go with the cell


# ---- CHGNet -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_chgnet_in_one_batch_is_the_loop_of_ase():
    dynamics = pytest.importorskip("chgnet.model.dynamics")
    calculator = dynamics.CHGNetCalculator(use_device="cpu")
    crystals = []
    for seed, atoms in enumerate((bulk("NaCl", "rocksalt", a=5.6), bulk("CsCl", "cesiumchloride", a=4.2))):
        atoms.positions += np.random.default_rng(seed).normal(0, 0.1, atoms.positions.shape)
        crystals.append(Crystal.from_ase(atoms))
    for crystal, r in zip(crystals, relax(crystals, chgnet(), 0.01), strict=True):
        atoms = crystal.atoms
        atoms.calc = calculator
        assert FIRE(FrechetCellFilter(atoms), logfile=None).run(0.01, 300)
        assert r.converged and r.energy_per_atom == pytest.approx(atoms.get_potential_energy() / 2, abs=1e-3)
