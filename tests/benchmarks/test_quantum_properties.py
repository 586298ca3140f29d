"""The benchmark of quantum properties on untrained models: its halves, its judge and its two tables."""

import csv

import numpy as np
import pytest
import torch

from benchmarks import quantum_properties as benchmark
from benchmarks.quantum_properties import HARTREE, NAMES, Judge, both_of_two, graphs, halves, to_targets
from tests.jobs.small import CLASSES, MODEL, SIZES, untrained
from unisci.autoregression.conditions import VALUES, with_values
from unisci.autoregression.pard import ordered
from unisci.design.designer import Designer
from unisci.domains.molecule import Molecule
from unisci.jobs import property_models
from unisci.rng import Rng

SMILES = ["CCO", "OCC", "C", "N", "O", "CF", "CC", "C=O", "CO", "nonsense", "C#N", "CN"]
ATOM, BOND = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]), torch.tensor([0.5, 0.47, 0.02, 0.01])


@pytest.fixture
def held():
    """Graphs with values."""
    batch = ordered(Molecule.batch([Molecule.from_smiles(s) for s in ("CCO", "C", "C=O", "CF")], CLASSES), 1)
    return with_values(batch, torch.tensor([[7.0, 30, 1], [9, 13, 0], [5, 17, 2], [8, 16, 2]]))


@pytest.fixture
def predicting():
    torch.manual_seed(0)
    moments = torch.tensor([7.0, 30.0, 2.0]), torch.tensor([1.0, 8.0, 1.5])
    return property_models.build(SIZES, "marginal", 1, CLASSES, NAMES, ATOM, BOND, *moments).eval()


def test_halves_share_no_graph_and_have_units(tmp_path):
    path, rows = tmp_path / "q.npz", np.arange(3.0 * len(SMILES)).reshape(-1, 3) / 100
    names = np.array(["mu", "alpha", "gap"])
    np.savez(path, smiles=np.frombuffer("\n".join(SMILES).encode(), np.uint8), props=rows, prop_names=names)
    parts = halves(path, 10, tmp_path)
    found = [{r["smiles"]: r for r in csv.DictReader(p.open())} for p in parts]
    assert len(found[0]) == len(found[1]) == 5 and not found[0].keys() & found[1].keys()
    k = SMILES.index("C#N")
    row = (found[0] | found[1])["C#N"]
    assert [float(row[n]) for n in NAMES] == pytest.approx([rows[k, 2] * HARTREE, rows[k, 1], rows[k, 0]])


def test_graphs_have_the_generators_atoms(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("smiles,gap,alpha,mu\n" + "".join(f"{s},1,2,{k}\n" for k, s in enumerate(["N", "NN", "CN", "NNO"])))
    train, held = graphs(path, tmp_path / "data", CLASSES)
    values = train.given[VALUES].tolist() + held.given[VALUES].tolist()
    smiles = [m.smiles for m in Molecule.unbatch(train) + Molecule.unbatch(held)]
    whole = list(zip(smiles, values, strict=True))
    assert sorted(whole) == sorted([("N", [1, 2, 0]), ("NN", [1, 2, 1]), ("CN", [1, 2, 2]), ("NNO", [1, 2, 3])])


def test_the_judge_learns_the_error_of_clean_graphs(held, predicting):
    judge = Judge(predicting)
    loss = judge.loss(held, Rng(0, held.ids)).detach()
    errors = benchmark.properties.errors(predicting, held, 4)
    own = sum(errors[f"{n} whole"] / float(s) for n, s in zip(NAMES, predicting.std, strict=True)) / 3
    assert float(loss) == pytest.approx(own, rel=1e-4)


def test_both_tables_are_printed(held, predicting, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "TARGETS", 2)
    model = untrained(config=MODEL.model_copy(update={"condition": NAMES})).eval()
    model.conditions.measure(held.given[VALUES])
    steered = Designer(untrained().eval(), 2, "", {}, predicting)
    to_targets(model, steered, predicting, held, 3)
    both_of_two(model, predicting, held, 3)
    lines = capsys.readouterr().out.splitlines()
    names = (
        "any molecule",
        "not told",
        "told, w = 1",
        "classifier-free",
        "where",
        "one model",
        "averaged",
        "SuperDiff",
    )
    assert all(any(line.startswith(name) for line in lines) for name in names)
    assert "n = 3, 2 targets" in lines[1] and sum("%" in line for line in lines) >= 9
