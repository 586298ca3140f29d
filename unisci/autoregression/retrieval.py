"""Retrieval with judgement: chemistry proposes templates for a formula, a trained network orders them.

On MP-20 the chemically nearest template alone matches two thirds of the validation compounds; one among the nearest 24
matches 87 %. The network's choice is what lies between. Its probabilities p over the candidates c do not name the best
one by their largest: copies of one prototype share what it deserves. Taken is what is expected to fit best, one after
another,

    next = argmax_c sum_c' p(c') max(0, fit(c, c') - fit so far of c'),   fit = exp(-q(c, c') / SIMILAR)

(minimum Bayes risk, Kumar & Byrne 2004; q: `unisci.domains.pair_densities`), so that several are several prototypes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unisci.domains.candidates import CANDIDATES, FACTS, CandidateReader
from unisci.domains.crystal import Crystal
from unisci.domains.pair_densities import MATCHING, RADII, density_distance, pair_densities
from unisci.domains.templates import Candidate, Template, TemplateLibrary, species
from unisci.networks.template_ranker import TemplateRanker

SIMILAR = 3 * MATCHING


class Proposals(NamedTuple):
    """Candidates of B formulas, and what the network reads of them: the arguments of TemplateRanker, in order."""

    candidates: list[list[Candidate]]
    inputs: tuple[Tensor, ...]


def untrained_ranker(features: Tensor, embedding: int = 24, width: int = 64) -> TemplateRanker:
    """A network of what `propose` tells. features (101, F): of the elements."""
    return TemplateRanker(features, torch.from_numpy(RADII), FACTS, embedding, width)


class Retriever:
    """library: of known crystals; rankers: whose log softmax is averaged (none: the chemically
    nearest come first)."""

    def __init__(self, library: TemplateLibrary, rankers: Sequence[TemplateRanker] = ()):
        self.library, self.rankers = library, tuple(r.eval() for r in rankers)
        self.reader = CandidateReader(library)

    def retrieve(self, formulas: Sequence[np.ndarray], k: int) -> list[list[Template]]:
        """For the sites' atomic numbers (n,) of each formula the k best templates, best first; fewer or none where the
        library holds fewer."""
        if not self.rankers:
            return [self.library.retrieve(numbers, k) for numbers in formulas]
        proposals = propose(self.reader, formulas)
        with torch.no_grad():
            p = (sum(r(*proposals.inputs).log_softmax(1) for r in self.rankers) / len(self.rankers)).softmax(1).numpy()
        out = []
        for b, (numbers, found) in enumerate(zip(formulas, proposals.candidates, strict=True)):
            elements, counts = species(np.asarray(numbers))
            m, n = len(found), len(elements)
            g = proposals.inputs[4][b, :m, :n, :n].numpy()
            order = expected_best(p[b, :m], density_distance(g[:, None], g, counts), k)
            out.append([self.library.substitute(found[i], numbers) for i in order])
        return out


def expected_best(p: np.ndarray, q: np.ndarray, k: int) -> list[int]:
    """Up to k of the candidates with probabilities p (K,) and distances q (K, K), by what each adds; see the module."""
    fit, best, order = np.exp(-q / SIMILAR), np.zeros(len(p)), []
    for _ in range(min(k, len(p))):
        gain = np.maximum(fit - best, 0) @ p
        gain[order] = -1
        order.append(int(gain.argmax()))
        best = np.maximum(best, fit[order[-1]])
    return order


def propose(
    reader: CandidateReader, formulas: Sequence[np.ndarray], without: Sequence[Sequence[int]] | None = None
) -> Proposals:
    """Candidates of each formula, and their tensors, padded to the most species. without: rows to leave out of each."""
    without = without or [()] * len(formulas)
    read = [reader.read(np.asarray(n), CANDIDATES, out) for n, out in zip(formulas, without, strict=True)]
    kinds = [species(np.asarray(numbers)) for numbers in formulas]
    b, k, s = len(formulas), CANDIDATES, max((len(e) for e, _ in kinds), default=0)
    elements, theirs = torch.zeros(b, s, dtype=torch.long), torch.zeros(b, k, s, dtype=torch.long)
    share, exists = torch.zeros(b, s), torch.zeros(b, k, dtype=torch.bool)
    radii, facts = read[0][1].shape[-1] if read else 0, torch.zeros(b, k, read[0][2].shape[-1] if read else 0)
    density, touching = torch.zeros(b, k, s, s, radii), torch.zeros(b, s, s)
    for i, ((found, g, v), (z, counts)) in enumerate(zip(read, kinds, strict=True)):
        m, n = len(found), len(z)
        elements[i, :n], share[i, :n] = torch.from_numpy(z), torch.from_numpy(counts / counts.sum()).float()
        touching[i, :n, :n] = torch.from_numpy(reader.touching(np.asarray(formulas[i]))).float()
        exists[i, :m], facts[i, :m] = True, torch.from_numpy(v).float()
        density[i, :m, :n, :n] = torch.from_numpy(g).float()
        for j, candidate in enumerate(found):
            theirs[i, j, :n] = torch.from_numpy(candidate.species)
    return Proposals([found for found, _, _ in read], (elements, share, touching, theirs, density, facts, exists))


def fits(reader: CandidateReader, crystal: Crystal, found: Sequence[Candidate]) -> np.ndarray:
    """How well each candidate matches the crystal that is known: (K,) in (0, 1], about the chance of a match."""
    elements, counts = species(crystal.numbers)
    if not found:
        return np.zeros(0)
    g = np.stack([reader.density(c) for c in found])
    return np.exp(-density_distance(g, pair_densities(crystal, elements), counts) / MATCHING)
