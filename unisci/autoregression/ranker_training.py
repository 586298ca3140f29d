"""Training of template rankers: each known crystal must find, among the others, the one that it looks like.

    minimise  - log sum_k softmax(score)_k fit_k,    fit_k = exp(- distance of the pair densities / MATCHING)

k runs over the candidates that chemistry proposes for the crystal's formula, the crystal itself left out. Each time
some candidates are hidden, as if the library did not hold them: lists vary, and networks of so few rows learn longer.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from unisci.autoregression.retrieval import fits, propose, untrained_ranker
from unisci.domains.candidates import CandidateReader
from unisci.domains.templates import TemplateLibrary
from unisci.networks.template_ranker import TemplateRanker, ranking_loss

Example = tuple[tuple[Tensor, ...], Tensor]  # the ranker's inputs of some formulas, and how well each candidate fits
BATCH, LR, WEIGHT_DECAY = 128, 2e-3, 0.05
HIDDEN = 0.3  # share of the candidates, on average; in each formula's list from none to twice as many
USEFUL = 0.2  # of the best fit; where nothing fits there is nothing to learn


def examples(reader: CandidateReader) -> list[Example]:
    """The crystals of the reader's library in groups of one number of species, those that nothing fits left out."""
    groups: dict[int, list[int]] = {}
    for row in range(len(reader.library)):
        groups.setdefault(len(np.unique(_numbers(reader.library, row))), []).append(row)
    out = []
    for group in groups.values():
        parts = [_read(reader, group[k : k + BATCH]) for k in range(0, len(group), BATCH)]
        inputs = tuple(torch.cat(x) for x in zip(*(inputs for inputs, _ in parts), strict=True))
        fit = torch.cat([fit for _, fit in parts])
        if len(fit):
            out.append((inputs, fit))
    return out


def _read(reader: CandidateReader, rows: list[int]) -> Example:
    candidates, inputs = propose(reader, [_numbers(reader.library, r) for r in rows], [[r] for r in rows])
    fit = torch.zeros(inputs[-1].shape)
    for b, (row, found) in enumerate(zip(rows, candidates, strict=True)):
        fit[b, : len(found)] = torch.from_numpy(fits(reader, reader.library[row], found)).float()
    useful = fit.amax(1) > USEFUL
    elements, share, touching, theirs, density, facts, exists = (x[useful] for x in inputs)
    density = density.half()  # nearly all of the memory
    return (elements, share, touching, theirs, density, facts, exists), fit[useful]


def shuffled(data: list[Example], epochs: int, seed: int) -> Iterator[tuple[float, Example]]:
    """(share of the training done, batch): all rows in batches of one number of species, newly drawn in each of the
    `epochs`."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        batches = [
            (group, rows)
            for group, (_, fit) in enumerate(data)
            for rows in torch.randperm(len(fit), generator=generator).split(BATCH)
        ]
        for k, at in enumerate(torch.randperm(len(batches), generator=generator).tolist()):
            group, rows = batches[at]
            inputs, fit = data[group]
            yield (epoch + k / len(batches)) / epochs, (tuple(x[rows] for x in inputs), fit[rows])


def train_ranker(data: list[Example], features: Tensor, epochs: int, seed: int) -> TemplateRanker:
    """A trained ranker, the same for the same data and seed. features (101, F): of the elements.

    Raises ValueError where no crystal of the library fits another, so that there is nothing to learn.
    """
    if not data:
        raise ValueError("no crystal has a template that fits it: train without rankers (count 0), or on more crystals")
    torch.manual_seed(seed)
    ranker = untrained_ranker(features)
    optimiser = torch.optim.AdamW(ranker.parameters(), LR, weight_decay=WEIGHT_DECAY)
    for done, (inputs, fit) in shuffled(data, epochs, seed):
        for group in optimiser.param_groups:
            group["lr"] = LR * 0.5 * (1 + np.cos(np.pi * done))
        optimiser.zero_grad(set_to_none=True)
        (elements, share, touching, theirs, density, facts, exists), fit = hide(inputs, fit)
        scores = ranker(elements, share, touching, theirs, density.float(), facts, exists)
        ranking_loss(scores, fit).backward()
        nn.utils.clip_grad_norm_(ranker.parameters(), 1.0)
        optimiser.step()
    return ranker.eval()


def hide(inputs: tuple[Tensor, ...], fit: Tensor) -> Example:
    """The example without some of its candidates, drawn from torch's generator, and without formulas that nothing
    fits any more; at least one formula stays."""
    *rest, exists = inputs
    seen = exists & (torch.rand(exists.shape) >= 2 * HIDDEN * torch.rand(len(exists), 1))
    useful = (fit * seen).amax(1) > USEFUL
    if not useful.any():
        return inputs, fit
    return tuple(x[useful] for x in (*rest, seen)), (fit * seen)[useful]


def _numbers(library: TemplateLibrary, row: int) -> np.ndarray:
    """Atomic numbers (n,) of the sites of a crystal of the library."""
    return library.numbers[library.offsets[row] : library.offsets[row + 1]].astype(np.int64)
