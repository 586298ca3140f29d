import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from unisci.design.potentials import Evaluation, ase_calculator, chgnet, potential_of


def shaken(seed: int, element: str = "Cu") -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk(element, cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.03, (3, 3))), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    return atoms


def slopes_agree(potential, atoms: Atoms, h: float, tolerance: float) -> None:
    """Forces and stress against central differences of the energy."""
    energy = lambda a: potential([a])[0].energy
    found = potential([atoms])[0]
    for i, axis in ((0, 0), (len(atoms) - 1, 2)):
        moved = [atoms.copy() for _ in range(2)]
        for a, sign in zip(moved, (1, -1), strict=True):
            a.positions[i, axis] += sign * h
        assert found.forces[i, axis] == pytest.approx(-(energy(moved[0]) - energy(moved[1])) / (2 * h), abs=tolerance)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        moved = [atoms.copy() for _ in range(2)]
        for a, sign in zip(moved, (1, -1), strict=True):
            strain = np.eye(3)
            strain[row, column] += sign * h
            a.set_cell(a.cell.array @ strain, scale_atoms=True)
        slope = (energy(moved[0]) - energy(moved[1])) / (2 * h)
        assert found.stress[row, column] * atoms.get_volume() == pytest.approx(slope, abs=tolerance)


def test_forces_and_stress_are_slopes_of_the_energy():
    slopes_agree(ase_calculator(EMT()), shaken(0), 1e-4, 1e-4)


def test_one_after_another_in_order():
    structures = [shaken(0), shaken(1, "Al"), shaken(2)]
    found = ase_calculator(EMT())(structures)
    for atoms, e in zip(structures, found, strict=True):
        atoms.calc = EMT()
        assert e.reason is None and e.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
        np.testing.assert_allclose(e.forces, atoms.get_forces(), atol=1e-12)
        np.testing.assert_allclose(e.stress, atoms.get_stress(voigt=False), atol=1e-12)
    assert all(atoms.calc is not None for atoms in structures)


def test_structures_given_are_not_touched():
    atoms = shaken(0)
    ase_calculator(EMT())([atoms])
    assert atoms.calc is None


class Breaking(Calculator):
    """Raises for copper, gives a stress that is not finite for silver."""

    implemented_properties = ("energy", "forces", "stress")

    def calculate(self, atoms=None, properties=None, system_changes=None):
        super().calculate(atoms, properties, system_changes)
        if 29 in atoms.numbers:
            raise RuntimeError("no copper\nat all")
        stress = np.full(6, np.nan) if 47 in atoms.numbers else np.zeros(6)
        self.results = {"energy": 1.0, "forces": np.zeros((len(atoms), 3)), "stress": stress}


def test_a_failure_is_that_structures_alone():
    found = ase_calculator(Breaking())([bulk("Al"), bulk("Cu", cubic=True), bulk("Ag"), bulk("Al")])
    assert [e.reason for e in found] == [
        None,
        "RuntimeError: no copper",
        "the potential gave a value that is not finite",
        None,
    ]
    assert np.isnan(found[1].energy) and np.isnan(found[1].forces).all() and found[1].forces.shape == (4, 3)
    assert np.isnan(found[2].stress).all() and found[3].energy == 1.0


@pytest.mark.parametrize("place", ["energy", "forces", "stress"])
def test_a_value_that_is_not_finite_is_a_failure(place):
    values = {"energy": 1.0, "forces": np.zeros((2, 3)), "stress": np.zeros((3, 3))}
    assert Evaluation.of(**values).reason is None
    values[place] = values[place] + np.inf
    assert Evaluation.of(**values).reason == "the potential gave a value that is not finite"


def test_a_stress_is_symmetric():
    assert Evaluation.of(0.0, np.zeros((1, 3)), np.triu(np.ones((3, 3)))).stress[1, 0] == 0.5


def test_a_failure_without_words_has_the_name_of_the_exception():
    assert Evaluation.failed(1, ValueError()).reason == "ValueError"


def test_a_calculator_or_a_potential():
    potential = ase_calculator(EMT())
    assert potential_of(potential) is potential
    assert potential_of(EMT())([bulk("Cu")])[0].energy == pytest.approx(potential([bulk("Cu")])[0].energy)
    with pytest.raises(ValueError, match="neither a potential nor an ASE calculator"):
        potential_of(3)


def test_batch_size_at_the_door():
    with pytest.raises(ValueError, match="batch_size is 0"):
        chgnet(batch_size=0)


def test_without_chgnet_the_name_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "chgnet.model", None)
    with pytest.raises(ImportError, match="pip install chgnet"):
        chgnet()


# ---- CHGNet -------------------------------------------------------------------------------------------


def salts() -> list[Atoms]:
    out = [bulk("NaCl", "rocksalt", a=5.6), bulk("CsCl", "cesiumchloride", a=4.2), bulk("ZnO", "wurtzite", 3.25, c=5.2)]
    for seed, atoms in enumerate(out):
        atoms.positions += np.random.default_rng(seed).normal(0, 0.1, atoms.positions.shape)
    return out


@pytest.mark.slow
def test_one_pass_gives_what_chgnets_own_calculator_gives():
    dynamics = pytest.importorskip("chgnet.model.dynamics")
    calculator = dynamics.CHGNetCalculator(use_device="cpu")
    together, alone = chgnet(batch_size=2)(salts()), ase_calculator(calculator)(salts())
    for a, b in zip(together, alone, strict=True):
        assert a.reason is None and a.energy == pytest.approx(b.energy, abs=1e-4)
        np.testing.assert_allclose(a.forces, b.forces, atol=1e-3)
        np.testing.assert_allclose(a.stress, b.stress, atol=1e-5)


@pytest.mark.slow
def test_chgnets_slopes():
    pytest.importorskip("chgnet")
    slopes_agree(chgnet(), salts()[0], 5e-3, 5e-3)


@pytest.mark.slow
def test_what_chgnet_cannot_do_takes_no_other_along():
    pytest.importorskip("chgnet")
    lone, californium = Atoms("Na", cell=[20, 20, 20], pbc=True), bulk("Al")
    californium.numbers[:] = 98
    together = chgnet()([salts()[0], lone, californium, salts()[1]])
    assert "isolated" in together[1].reason and together[2].reason == (
        "ValueError: CHGNet knows the elements 1 to 94, not 98"
    )
    for e, atoms in zip((together[0], together[3]), salts(), strict=False):
        assert e.energy == pytest.approx(chgnet()([atoms])[0].energy, abs=1e-5)


@pytest.mark.slow
def test_a_pass_that_breaks_is_taken_one_by_one(monkeypatch):
    pytest.importorskip("chgnet")
    from chgnet.model import CHGNet

    model = CHGNet.load(use_device="cpu", verbose=False)
    whole = model.forward

    def breaks(graphs, **options):
        if any(17 in g.atomic_number for g in graphs):
            raise RuntimeError("no chlorine")
        return whole(graphs, **options)

    monkeypatch.setattr(model, "forward", breaks)
    assert [e.reason for e in chgnet(model)(salts())] == ["RuntimeError: no chlorine"] * 2 + [None]
