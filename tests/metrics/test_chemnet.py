"""Fréchet ChemNet distance: a Gaussian by hand, the package's own formula, a set against itself and against another."""

import builtins

import numpy as np
import pytest

from unisci.metrics import chemnet
from unisci.metrics.chemnet import Statistics, activations, digest, frechet, frechet_chemnet
from unisci.metrics.molecules import evaluate

ALKANES = ["C" * n for n in range(1, 13)]
AROMATICS = ["c1ccccc1" + "O" * k + "C" * n for n in range(1, 7) for k in (0, 1)]


@pytest.fixture(scope="module")
def alkanes():
    return Statistics.from_smiles("alkanes", ALKANES, device="cpu")


def test_frechet_by_hand():
    """Axes that commute: |mu|^2 + sum (sqrt a - sqrt b)^2."""
    a, b = np.diag([4.0, 9, 0]), np.diag([1.0, 1, 4])
    assert frechet(np.zeros(3), a, np.array([1.0, 0, 2]), b) == pytest.approx(5 + 1 + 4 + 4)


def test_frechet_equals_the_formula_of_the_package():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    (mu, a), (nu, b) = ((x.mean(0), np.cov(x.T)) for x in (rng.normal(size=(50, 6)), rng.exponential(size=(40, 6))))
    expected = np.square(mu - nu).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet(mu, a, nu, b) == pytest.approx(expected, rel=1e-9)


def test_set_against_itself_and_another(alkanes):
    same, other = (frechet_chemnet(s, alkanes, device="cpu") for s in (ALKANES, AROMATICS))
    assert same.value == pytest.approx(0, abs=1e-4)
    assert other.value > 1 and other.low <= other.value <= other.high
    assert (other.name, other.n, other.reference, other.reference_hash) == (
        "fcd_torch",
        12,
        "alkanes",
        digest(ALKANES),
    )


def test_activations_equal_the_package_and_follow_order():
    from fcd_torch import FCD
    from torch.utils.data import DataLoader

    net = FCD()
    batch = next(iter(DataLoader(chemnet_dataset(ALKANES[:4]), batch_size=4)))
    expected = net.model(batch.transpose(1, 2).float()).detach().numpy()
    ours = activations([*ALKANES[:4], "C"], device="cpu")
    np.testing.assert_allclose(ours[:4], expected, atol=1e-6)
    np.testing.assert_array_equal(ours[4], ours[0])


def chemnet_dataset(smiles):
    from fcd_torch.utils import SmilesDataset

    return SmilesDataset(smiles)


def test_evaluate_adds_it_and_order_changes_nothing(alkanes):
    a, b = (evaluate(s, fcd=alkanes)[-1] for s in (AROMATICS, AROMATICS[::-1]))
    assert a == b and a.name == "fcd_torch"
    two = evaluate(["C", "CC"], fcd=alkanes)[-1]
    assert two.value > 0 and np.isnan(two.low) and np.isnan(two.high)
    assert np.isnan(evaluate(["C", None], fcd=alkanes)[-1].value)
    assert np.isnan(evaluate([None], fcd=alkanes)[-1].value)


def test_statistics_round_trip(tmp_path, alkanes):
    path = tmp_path / "alkanes.npz"
    alkanes.save(path)
    again = Statistics.load(path)
    assert (again.name, again.sha256, again.n) == (alkanes.name, alkanes.sha256, 12)
    np.testing.assert_array_equal(again.mean, alkanes.mean)
    np.testing.assert_array_equal(again.covariance, alkanes.covariance)


def test_bad_statistics_are_named(tmp_path):
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz lacks \['covariance', 'n', 'name', 'sha256'\]"):
        Statistics.load(tmp_path / "other.npz")
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    for content in (
        b"hello",
        b"",
        (tmp_path / "other.npz").read_bytes()[:100],
        (tmp_path / "array.npz.npy").read_bytes(),
    ):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.npz is not a readable"):
            Statistics.load(tmp_path / "bad.npz")
    with pytest.raises(ValueError, match=r"mean \(3,\)"):
        Statistics("x", "", 5, np.zeros(3), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="'one' has 1"):
        Statistics.from_smiles("one", ["C"])


def test_missing_package_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "fcd_torch":
            raise ModuleNotFoundError("No module named 'fcd_torch'", name="fcd_torch")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    chemnet._chemnet.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"unisci\[metrics\]"):
        activations(["C"])
