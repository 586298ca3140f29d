"""From a formula to structures: proposals by retrieval and by orbits, the latter refined.

A proposal is a known crystal with its elements exchanged (`Retriever`) or a fresh draw of the orbit model. A draw is
read as a template by the refiner, which starts near it and moves sites and cell (`unisci.autoregression.crystals`). A
true template is left as it is: on MP-20 refining it changed nothing for the better. Sample i of a formula depends on
the weights, the library and (seed, i) alone: even samples take the formula's templates, best first, while there are
any; all others are draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.crystals import FROM_TEMPLATE, TEMPLATE_FIELDS
from unisci.autoregression.retrieval import Retriever
from unisci.batch import Batch
from unisci.domains.crystal import CRYSTAL_FIELDS, Crystal, CrystalError
from unisci.domains.orbit_batches import batch_of, formula_rows, orbits_of
from unisci.domains.symmetry import symmetrized_like
from unisci.domains.templates import Template
from unisci.domains.wyckoff import Orbits
from unisci.metrics.cells import cell
from unisci.metrics.crystal_validity import structure_fault
from unisci.rng import Rng

ATTEMPTS = 4
TRIES = 8  # draws of words of which the likeliest is built
OF_DRAW = 0.2  # the chemical distance that the refiner is told of a draw


@dataclass(frozen=True)
class Proposal:
    """crystal, with its `fault` where sites overlap; template: what it was copied from, None for a draw;
    log_probability: of the words of a draw under the orbit model, -inf where a last resort without symmetry."""

    crystal: Crystal
    log_probability: float
    template: Template | None = None
    fault: str | None = None


def draw(
    generator: CrystalGenerator,
    formulas: Sequence[np.ndarray],
    rng: Rng,
    steps: int = 10,
    temperature: float = 1.0,
    tries: int = TRIES,
    groups: Tensor | None = None,
) -> list[Proposal]:
    """One crystal of each formula (sites' atomic numbers), for each of rng.ids: the likeliest of `tries` draws of
    words; again, up to ATTEMPTS times, where the words come to no end or sites overlap, the last time without symmetry
    if there was no end before. groups (231,) bool: the space groups to choose from until then."""
    out: list[Proposal | None] = [None] * len(formulas)
    for attempt in range(ATTEMPTS + 1):
        todo = [i for i, p in enumerate(out) if p is None or (p.fault and attempt < ATTEMPTS)]
        if not todo:
            break
        allowed = groups if attempt < ATTEMPTS else torch.arange(231, device=rng.ids.device) == 1
        own = rng[torch.tensor(todo, device=rng.ids.device)].at(attempt)
        made = _draw_once(generator, [formulas[i] for i in todo], own, steps, temperature, tries, allowed)
        for i, proposal in zip(todo, made, strict=True):
            if proposal is not None and attempt == ATTEMPTS:
                proposal = replace(proposal, log_probability=-np.inf)
            out[i] = proposal or out[i]
    if any(p is None for p in out):
        raise CrystalError("the model knows no position without symmetry: it cannot hold every formula")
    return out


def _draw_once(
    generator: CrystalGenerator,
    formulas: list[np.ndarray],
    rng: Rng,
    steps: int,
    temperature: float,
    tries: int,
    groups: Tensor | None,
) -> list[Proposal | None]:
    model, device = generator.orbits, rng.ids.device
    rows = [formula_rows(numbers) for numbers in formulas]
    longest = max(int((z > 0).sum()) for z, _ in rows)
    species, counts = (torch.from_numpy(np.stack(x))[:, :longest].to(device) for x in zip(*rows, strict=True))
    drawn = [model.draw_words(species, counts, rng.at(k), temperature, groups) for k in range(tries)]
    best = torch.stack([w.log_probability for w in drawn]).argmax(0)
    out: list[Proposal | None] = [None] * len(formulas)
    for k, words in enumerate(drawn):
        chosen = ((best == k) & (words.log_probability > -torch.inf)).nonzero()[:, 0]
        if not len(chosen):
            continue
        own = words[chosen]
        batch = model.draw_geometry(own, species[chosen], counts[chosen], rng[chosen].at(tries), steps)
        found = orbits_of(batch.to("cpu"), generator.table)
        for i, orbits, p in zip(chosen.tolist(), found, own.log_probability.tolist(), strict=True):
            out[i] = _built(orbits, p)
    return out


def _built(orbits: Orbits, log_probability: float) -> Proposal | None:
    try:
        crystal = orbits.crystal.niggli()
    except (CrystalError, np.linalg.LinAlgError):
        return None
    return Proposal(crystal, log_probability, None, structure_fault(cell(crystal)))


def refined(
    generator: CrystalGenerator, proposals: Sequence[Proposal], rng: Rng, steps: int = 5, solver: str = "dpm++2m"
) -> list[Crystal]:
    """Each proposal's crystal, draws as `refine` leaves them; one for each of rng.ids."""
    out, draws = [p.crystal for p in proposals], [i for i, p in enumerate(proposals) if p.template is None]
    if draws:
        own = rng[torch.tensor(draws, device=rng.ids.device)]
        for i, crystal in zip(draws, refine(generator, [proposals[i] for i in draws], own, steps, solver), strict=True):
            out[i] = crystal
    return out


def refine(
    generator: CrystalGenerator, proposals: Sequence[Proposal], rng: Rng, steps: int = 5, solver: str = "dpm++2m"
) -> list[Crystal]:
    """Each proposal's crystal as the refiner leaves it, its symmetry kept, or as it was where sites would overlap; one
    for each of rng.ids."""
    batch = Crystal.batch([p.crystal for p in proposals]).to(rng.ids.device)
    told = [p.template.distance if p.template is not None else OF_DRAW for p in proposals]
    given = {"template_position": batch.state["position"], "template_cell": batch.state["cell"]}
    given["template_distance"] = torch.tensor(told, dtype=torch.float32, device=rng.ids.device)
    batch = Batch(CRYSTAL_FIELDS | TEMPLATE_FIELDS, batch.state, batch.mask, given, rng.ids)
    made = generator.refiner.predict(batch, rng, steps, solver, FROM_TEMPLATE)
    moved = Crystal.unbatch(Batch(CRYSTAL_FIELDS, made.state, made.mask, {}, rng.ids).to("cpu"))
    pairs = [(symmetrized_like(m, p.crystal), p.crystal) for m, p in zip(moved, proposals, strict=True)]
    return [before if structure_fault(cell(after)) else after for after, before in pairs]


def predict(
    generator: CrystalGenerator,
    retriever: Retriever | None,
    formulas: Sequence[np.ndarray],
    rng: Rng,
    k: int,
    tries: int = TRIES,
) -> list[list[Proposal]]:
    """k candidates of each formula: even ones from its templates, best first, while there are any, all others
    drawn, each as the likeliest of so many tries, and refined; one stream of rng.ids for each formula."""
    found = [[]] * len(formulas) if retriever is None else retriever.retrieve(formulas, (k + 1) // 2)
    out: list[list[Proposal]] = [[] for _ in formulas]
    for j in range(k):
        own = rng.at(j)
        known = [t[j // 2] if j % 2 == 0 and j // 2 < len(t) else None for t in found]
        proposals = [None if t is None else Proposal(t.crystal, 0.0, t) for t in known]
        if free := [i for i, t in enumerate(known) if t is None]:
            mine = own[torch.tensor(free, device=rng.ids.device)].at(0)
            for i, proposal in zip(free, draw(generator, [formulas[i] for i in free], mine, tries=tries), strict=True):
                proposals[i] = proposal
        crystals = refined(generator, proposals, own.at(1))
        for made, proposal, crystal in zip(out, proposals, crystals, strict=True):
            made.append(replace(proposal, crystal=crystal))
    return out


def ranked(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Best first: templates in the order of the rankers, then draws by the probability of their words. (On MP-20 no
    weighing of one against the other was better than the rankers' order.)"""
    return sorted(proposals, key=lambda p: (p.template is None, -p.log_probability if p.template is None else 0.0))


def surprise(generator: CrystalGenerator, crystals: Sequence[Crystal]) -> Tensor:
    """Minus the log probability (n,) of each crystal's group and positions given its formula under the orbit model;
    inf where it has a position that the model does not know, or no symmetry is found."""
    out = torch.full((len(crystals),), torch.inf)
    rows, found = [], []
    for i, crystal in enumerate(crystals):
        try:
            orbits = Orbits.of(crystal)
        except CrystalError:
            continue
        if all(p in generator.table.rows for p in orbits.positions):
            rows.append(i)
            found.append(orbits)
    if found:
        device = generator.orbits.rules.multiplicity.device
        with torch.no_grad():
            out[rows] = generator.orbits.surprise(batch_of(found, generator.table).to(device))[1].cpu()
    return out
