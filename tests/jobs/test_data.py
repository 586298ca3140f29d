"""Properties that come from the user's table, beside those that RDKit measures."""

import csv
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.jobs.small import MODEL
from tests.jobs.small import small_job as molecule_job
from tests.jobs.test_properties import small_job
from unisci.autoregression.conditions import VALUES
from unisci.design.properties import measure
from unisci.domains.molecule import Molecule
from unisci.jobs import data as jobs_data
from unisci.jobs import molecules, properties, property_models
from unisci.jobs.config import ConfigError, DataConfig
from unisci.jobs.data import columns_of, prepare, with_properties
from unisci.jobs.models import load

ROWS = [
    ("CCO", 7.5, 31.0),
    ("C", 10.6, 13.2),
    ("OCC", 1.0, 1.0),  # ethanol again
    ("CC", math.nan, 24.0),
    ("CF", 9.0, math.inf),
    ("N", 8.1, 9.5),
    ("nonsense", 1.0, 2.0),
    ("O", 9.9, 6.3),
    ("C=O", 5.2, 17.0),
]
KEPT = {"CCO": (7.5, 31.0), "C": (10.6, 13.2), "N": (8.1, 9.5), "O": (9.9, 6.3), "C=O": (5.2, 17.0)}


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path) -> Path:
    frame = pd.DataFrame(ROWS, columns=["SMILES", "Gap", "alpha"])
    path = tmp_path / f"table.{request.param}"
    frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path, index=False)
    return path


def config(path: Path, **changes) -> DataConfig:
    return DataConfig(**{"smiles": str(path), "hold_out": 0, "max_rejected": 0.5} | changes)


def read(path: Path, names: tuple[str, ...], folder: Path, **changes):
    return with_properties(prepare(config(path, **changes), 1, folder, names), names, folder)


def found(batch) -> dict[str, tuple[float, ...]]:
    rows = zip(Molecule.unbatch(batch), batch.given[VALUES].tolist(), strict=True)
    return {m.smiles: tuple(round(v, 4) for v in row) for m, row in rows}


def test_columns_are_the_values_and_rows_that_cannot_be_used_say_why(table, tmp_path):
    data = read(table, ("gap", "alpha"), tmp_path / "data")
    assert found(data.train) == KEPT
    assert data.counts["rows"] == 9 and sum(data.counts["rejected"].values()) == 4
    with (tmp_path / "data" / "rejects.csv").open() as file:
        rejects = {row["smiles"]: row["reason"] for row in csv.DictReader(file)}
    assert rejects["OCC"] == "the molecule of an earlier line again" and rejects["CC"] == "gap is no finite number"
    assert rejects["CF"] == "alpha is no finite number" and rejects.keys() == {"OCC", "CC", "CF", "nonsense"}


def test_a_column_that_is_not_asked_for_rejects_nothing(table, tmp_path):
    data = read(table, ("alpha",), tmp_path / "data")
    assert found(data.train) == {s: v[1:] for s, v in KEPT.items()} | {"CC": (24.0,)}
    assert len(read(table, ("logp",), tmp_path / "other").train) == 8  # a molecule twice, as without properties


def test_columns_and_what_rdkit_measures_stand_in_the_order_of_the_names(table, tmp_path):
    data = read(table, ("mass", "alpha", "logp", "gap"), tmp_path / "data", hold_out=3)
    for batch in (data.train, data.validation):
        for smiles, (mass, alpha, logp, gap) in found(batch).items():
            one = [Molecule.from_smiles(smiles)]
            assert (gap, alpha) == KEPT[smiles] and mass == pytest.approx(measure("mass", one)[0], abs=1e-3)
            assert logp == pytest.approx(measure("logp", one)[0], abs=1e-3)
    assert len(data.validation) == 2


def test_a_column_goes_before_rdkits_property_of_its_name(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("smiles,logP\nC,5\nCC,6\nCCC,7\n")
    assert found(read(path, ("logp",), tmp_path / "data").train) == {"C": (5.0,), "CC": (6.0,), "CCC": (7.0,)}


def test_the_cache_is_that_of_its_columns(table, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    first = read(table, ("gap",), folder)
    with monkeypatch.context() as patch:
        patch.setattr(jobs_data, "_parse", lambda *a: pytest.fail("parsed again"))
        again = read(table, ("gap",), folder)
    assert torch.equal(first.train.given[VALUES], again.train.given[VALUES])
    assert found(read(table, ("alpha",), folder).train)["CC"] == (24.0,)


@pytest.mark.parametrize("cell", ["", "much", "nan", "inf", "1e999"])
def test_cells_that_are_no_finite_numbers_are_rejected(tmp_path, cell):
    path = tmp_path / "t.csv"
    path.write_text(f"smiles,gap\nC,5\nCC,6\nCCC,{cell}\nN,0\n")
    data = read(path, ("gap",), tmp_path / "data")
    assert found(data.train) == {"C": (5.0,), "CC": (6.0,), "N": (0.0,)}
    assert data.counts["rejected"] == {"gap is no finite number": 1}


def test_too_many_rejected_rows_stop_the_job(table, tmp_path):
    with pytest.raises(ConfigError, match=r"4 of 9 rows .* were rejected"):
        read(table, ("gap", "alpha"), tmp_path / "data", max_rejected=0.1)


def test_a_name_that_neither_the_table_nor_rdkit_knows_is_refused(table, tmp_path):
    assert columns_of(config(table), ("GAP", "qed")) == {"GAP": "Gap"}
    for job in (properties.run, molecules.train):
        if job is properties.run:
            wanted = small_job(tmp_path / "out", table, properties=("gap", "homo"))
        else:
            wanted = molecule_job(tmp_path / "out", table, model=MODEL.model_copy(update={"condition": ("homo",)}))
        with pytest.raises(ValueError, match="unknown property 'homo'"):
            job(wanted, progress=False)
    assert not (tmp_path / "out").exists()


def test_jobs_learn_from_columns(table, tmp_path):
    """A model of properties and a conditional generator, by their weights' files."""
    own = {"max_rejected": 0.5, "hold_out": 0}
    job = small_job(tmp_path / "p", table, properties=("Gap", "mass"), data=own, training={"steps": 1})
    model = property_models.load(properties.run(job, progress=False) / "model.safetensors")
    gaps = [v[0] for s, v in (KEPT | {"CF": (9.0, 0)}).items()]
    assert model.names == ("gap", "mass") and float(model.mean[0]) == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)
    told = MODEL.model_copy(update={"condition": ("gap", "alpha")})
    path = molecules.train(
        molecule_job(tmp_path / "m", table, model=told, data=own, training={"steps": 1}, sample={"n": 0}),
        progress=False,
    )
    conditions = load(str(path)).model.conditions
    alphas = [v[1] for v in KEPT.values()]
    assert conditions.names == ("gap", "alpha")
    assert float(conditions.mean[1]) == pytest.approx(sum(alphas) / len(alphas), rel=1e-5)
