"""Steered samples follow p(x) w(x) / Z: chains so few that their law is enumerated, in the real block loop."""

import math
from collections import Counter
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from rdkit.Chem import Crippen

from tests.design.by_hand import Carbons, size
from unisci.autoregression.generate import generate
from unisci.batch import Batch
from unisci.design.atoms import Contains
from unisci.design.steering import Steering
from unisci.design.targets import Above, Below, Maximize
from unisci.design.wants import wants
from unisci.domains.molecule import Molecule, schema
from unisci.guidance.particles import particle_rng
from unisci.order import Order
from unisci.rng import Rng

CLASSES, ROOM, SAMPLES, PARTICLES = ("C", "O"), 3, 800, 8
FIRST, NEXT = torch.tensor([0.7, 0.3]), torch.tensor([[0.6, 0.4], [0.9, 0.1]])  # of atoms, the next by the last
BOND = torch.tensor([0.15, 0.85, 0.0, 0.0])  # none, so that some are invalid
GROWS = (1.0, 0.7, 0.5, 0.0)  # by the number of atoms


def law() -> dict[tuple[str, str], float]:
    """Every chain's probability."""
    out = {}
    for n in range(1, ROOM + 1):
        for atoms, bonds in product(product(range(2), repeat=n), product(range(2), repeat=n - 1)):
            p = float(FIRST[atoms[0]]) * math.prod(GROWS[:n]) * (1 - GROWS[n])
            p *= math.prod(float(NEXT[a, b]) for a, b in pairwise(atoms)) * math.prod(float(BOND[k]) for k in bonds)
            text = " ".join(f"{i}-{i + 1}:{k}" for i, k in enumerate(bonds) if k)
            out[" ".join(CLASSES[a] for a in atoms), text] = p
    return out


def growth(batch: Batch, order: Order, block: int, rng: Rng) -> tuple[Batch, Order]:
    """Another atom, or none."""
    more = rng.uniform("more", 0, (len(batch),), 0) < GROWS[block]
    new = (torch.arange(ROOM) == block) & more[:, None]
    rank = torch.where(new, block, order.rank)
    return Batch(batch.schema, batch.state, batch.mask | new, batch.given, batch.ids), Order(rank)


class Draw:
    """One step that draws the last atom and its bond."""

    def step(self, denoise, x, t, s, memory, rng):
        atom, bond, k = x["atom"].clone(), x["bond"].clone(), x["atom"].shape[1] - 1
        atom[:, k] = rng.categorical("atom", 0, NEXT[atom[:, k - 1]] if k else FIRST.expand(len(atom), 2), 0)
        if k:
            bond[:, k, k - 1] = bond[:, k - 1, k] = rng.categorical("bond", 0, BOND.expand(len(atom), 4), 0)
        return {"atom": atom, "bond": bond}, None


def steered(where, model, n: int = SAMPLES, p: int = PARTICLES) -> tuple[Counter, torch.Tensor]:
    """By particles alone: how often each SMILES is drawn, None where invalid, and each sample's mean weight (n,)."""
    steering, seen = Steering(wants(where), p, model, CLASSES, ROOM, scale=0.0), []

    def select(*arguments):
        rows, memory = steering.select(*arguments)
        seen.append(memory.weights)
        return rows, memory

    kernel = SimpleNamespace(to=lambda device: SimpleNamespace(prior=lambda like, rng: like))
    denoiser = SimpleNamespace(product=kernel, on=lambda batch, order, cache: None)
    own = particle_rng(Rng(0, torch.arange(n)), p)
    zeros = torch.zeros(n * p, ROOM, dtype=torch.long)
    state = {"atom": zeros, "bond": zeros[:, :, None].repeat(1, 1, ROOM)}
    empty = Batch(schema(CLASSES), state, zeros.bool(), {"rank": zeros - 1, "degree": zeros}, own.ids)
    times = lambda block: torch.tensor([1.0, 0.0])
    drawn, _ = generate(denoiser, empty, Order(zeros - 1), Draw(), times, own, growth, select=select)
    kept = drawn.state["atom"].unflatten(0, (n, p))
    assert (kept == kept[:, :1]).all()
    found = Counter(m.smiles for m in Molecule.unbatch(drawn[slice(None, None, p)]))
    return found, seen[-1].exp().mean(1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Each chain is checked by RDKit once."""
    known, unbatch = {}, Molecule.unbatch
    once = lambda batch: [known.setdefault((m.atoms, m.bonds.tobytes()), m) for m in unbatch(batch)]
    monkeypatch.setattr(Molecule, "unbatch", staticmethod(once))


def tilted(weigh) -> Counter:
    """p w of every SMILES, chains of one together."""
    out = Counter()
    for text, p in law().items():
        m = Molecule.from_text(*text)
        out[m.smiles] += p * (0.0 if m.reason else weigh(m))
    return out


def oxygens(molecules):
    return [m.atoms.count("O") for m in molecules]


def oxygen_level(molecules):
    return [100 + k for k in oxygens(molecules)]


TILTS = {
    "nothing": (Below(size, 9), None, lambda m: 1.0),
    "an interval": (Below(size, 2), None, lambda m: len(m.atoms) <= 2),
    "an element": (Contains("O"), None, lambda m: "O" in m.atoms),
    "several": (Contains("O") & Above(size, 2), None, lambda m: "O" in m.atoms and len(m.atoms) >= 2),
    "by a wrong model": (Above("logp", 0.5), Carbons(), lambda m: Crippen.MolLogP(m.rdkit) >= 0.5),
    "large": (Maximize(oxygens, 1.0), None, lambda m: math.exp(m.atoms.count("O"))),
    "small": (Maximize(lambda ms: [-k for k in size(ms)], 0.7), None, lambda m: math.exp(-len(m.atoms) / 0.7)),
    "from a level": (Maximize(oxygen_level, 1.0), None, lambda m: math.exp(100 + m.atoms.count("O"))),
}


@pytest.mark.parametrize("name", TILTS)
def test_particles_draw_from_the_tilted_law(name):
    """The mean weight is Z without bias, whatever the twists; the law itself is met up to O(1 / particles)."""
    where, model, weigh = TILTS[name]
    found, weights = steered(where, model)
    exact = tilted(weigh)
    z = sum(exact.values())
    error = float(weights.std()) / math.sqrt(SAMPLES)
    assert abs(float(weights.mean()) - z) < 4 * error < 0.2 * z
    assert found.keys() <= exact.keys()
    assert sum(abs(found[s] / SAMPLES - v / z) for s, v in exact.items()) / 2 < 0.1
