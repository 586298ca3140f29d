"""Crystals, a source of them, and a job that trains in seconds: what the tests of crystal jobs run on."""

from pathlib import Path

import torch
from pandas import DataFrame

from tests.domains.test_templates import perovskite, rock_salt
from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.orbits import OrbitModel
from unisci.autoregression.retrieval import untrained_ranker
from unisci.domains.crystal import Crystal
from unisci.domains.orbit_batches import WyckoffTable
from unisci.domains.prototypes import NamedLibrary
from unisci.domains.template_files import save_templates
from unisci.domains.templates import TemplateLibrary
from unisci.domains.wyckoff import Orbits
from unisci.jobs.config import CrystalJob
from unisci.jobs.crystal_models import build_refiner
from unisci.networks.atom_transformer import AtomTransformerConfig
from unisci.networks.orbit_transformer import OrbitTransformerConfig


def small_crystals() -> list[Crystal]:
    """15 rock salts of two sites and 8 perovskites of five, each of its own length."""
    pairs = [(a, x) for a in (3, 11, 19, 37, 55) for x in (9, 17, 35)]
    salts = [rock_salt(a, x, 2.5 + 0.02 * a + 0.02 * x) for a, x in pairs]
    cells = [(a, b) for a in (20, 38, 56, 82) for b in (22, 40)]
    return salts + [perovskite(a, b, 8, 3.5 + 0.005 * (a + b)) for a, b in cells]


def wurtzite() -> Crystal:
    """Four sites, a position that no small crystal has, free numbers."""
    third = 1 / 3
    sites = [[third, 2 * third, 0], [2 * third, third, 0.5], [third, 2 * third, 0.375], [2 * third, third, 0.875]]
    return Crystal([30, 30, 16, 16], sites, [[3.8, 0, 0], [-1.9, 3.29, 0], [0, 0, 6.2]]).reduced()


def write_crystals(path: Path, crystals: list[Crystal]) -> Path:
    """As a .npz of templates named s0, s1, ...; their cells are not reduced again."""
    names = tuple(f"s{i}" for i in range(len(crystals)))
    save_templates(
        NamedLibrary(TemplateLibrary.from_crystals(crystals), names, DataFrame(columns=["name", "reason"])), path
    )
    return path


def small_job(out: Path, crystals: Path | str, **changes) -> CrystalJob:
    """A job of 6 steps a network without dropout; changes: whole groups, such as rankers={"count": 2}."""
    training = {"steps": 6, "batch_size": 8, "ema": 0.5, "warmup": 2, "checkpoint_every": 2}
    small = {"width": 16, "layers": 1, "heads": 2}
    values = {
        "job": "crystals",
        "out": out,
        "data": {"crystals": str(crystals), "most_sites": 5, "templates": 2, "workers": 1} | changes.pop("data", {}),
        "orbits": small | {"dropout": 0.0, "training": training} | changes.pop("orbits", {}),
        "refiner": small | {"training": training} | changes.pop("refiner", {}),
        "rankers": {"count": 1, "epochs": 1} | changes.pop("rankers", {}),
    }
    return CrystalJob.model_validate(values | changes)


def untrained(rankers: int = 2) -> CrystalGenerator:
    """A generator of random weights that knows the positions of the small crystals."""
    torch.manual_seed(3)
    features, volumes = torch.rand(101, 5) + 1 / 3, torch.linspace(5, 40, 101)
    table = WyckoffTable.of(Orbits.of(c) for c in small_crystals())
    orbits = OrbitModel(OrbitTransformerConfig(16, 1, 2, 0.1), table, features, volumes)
    sizes = torch.tensor([0.0, 0, 2049, 0, 0, 70001])
    refiner = build_refiner(AtomTransformerConfig(width=16, layers=1, heads=2, templates=True), sizes, 0.4, volumes)
    ranked = tuple(untrained_ranker(features, 4 + k, 8) for k in range(rankers))
    generator = CrystalGenerator(orbits, table, refiner, ranked, (3, 11, 100), 5)
    for model in (orbits, refiner, *ranked):
        model.eval()
        for p in model.parameters():  # heads that begin at zero would hide what is behind them
            p.data.add_(0.05 * torch.randn_like(p))
    return generator
