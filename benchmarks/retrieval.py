"""How far templates go on structure prediction, without generating anything: python -m benchmarks.retrieval mp20.npz

Prints the match rate and its kin (unisci.metrics.crystals) of the template that trained rankers choose, and beside it
those of random coordinates, a random template and the chemically nearest one. Trains on the train split alone, each
train row's own crystal left out of its candidates; reports on the first n of a permutation of the validation split.
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.crystal_rows import load
from unisci.autoregression.retrieval import Retriever, fits, propose
from unisci.domains.candidates import CandidateReader
from unisci.domains.crystal import Crystal
from unisci.domains.elements import element_features
from unisci.domains.templates import TemplateLibrary, species
from unisci.metrics.crystals import Reference, evaluate_prediction, floors, markdown
from unisci.networks.template_ranker import TemplateRanker, ranking_loss

Example = tuple[tuple[Tensor, ...], Tensor]  # the ranker's inputs, and how well each candidate fits
BATCH, LR = 128, 2e-3


def examples(train: list[Crystal], reader: CandidateReader) -> list[Example]:
    """Batches of training rows of like numbers of species; rows that nothing fits teach nothing and are left out."""
    order = sorted(range(len(train)), key=lambda i: len(species(train[i].numbers)[0]))
    out = []
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        candidates, inputs = propose(reader, [train[i].numbers for i in rows], [[i] for i in rows])
        fit = torch.zeros(inputs[-1].shape)
        for b, (i, found) in enumerate(zip(rows, candidates, strict=True)):
            fit[b, : len(found)] = torch.from_numpy(fits(reader, train[i], found)).float()
        useful = fit.amax(1) > 0.2
        if bool(useful.any()):
            inputs = [x[useful] for x in inputs]
            inputs[3] = inputs[3].half()  # the pair densities, nearly all of the memory
            out.append((tuple(inputs), fit[useful]))
    return out


def shuffled(data: list[Example], epochs: int, seed: int) -> Iterator[tuple[float, Example]]:
    """(share of the training done, batch) of every batch in random order, `epochs` times."""
    generator, total = torch.Generator().manual_seed(seed), epochs * len(data)
    for epoch in range(epochs):
        for k, i in enumerate(torch.randperm(len(data), generator=generator).tolist()):
            yield (epoch * len(data) + k) / total, data[i]


def train_ranker(data: list[Example], epochs: int, seed: int) -> TemplateRanker:
    torch.manual_seed(seed)
    ranker = TemplateRanker(torch.from_numpy(element_features()))
    optimiser = torch.optim.AdamW(ranker.parameters(), LR, weight_decay=0.05)
    for done, (inputs, fit) in shuffled(data, epochs, seed):
        for group in optimiser.param_groups:
            group["lr"] = LR * 0.5 * (1 + np.cos(np.pi * done))
        inputs = [*inputs[:3], inputs[3].float(), *inputs[4:]]
        optimiser.zero_grad(set_to_none=True)
        ranking_loss(ranker(*inputs), fit).backward()
        optimiser.step()
    return ranker.eval()


def first(retriever: Retriever, numbers: np.ndarray) -> Crystal | None:
    """The best template for the atomic numbers, None where there is none."""
    found = retriever.retrieve([numbers], 1)[0]
    return found[0].crystal if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/crystal_rows.py")
    parser.add_argument("--n", type=int, default=2000, help="validation compounds")
    parser.add_argument("--rankers", type=int, default=4, help="networks, seeds 0, 1, ...")
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    rows = load(args.data)
    train, validation = rows["train"], rows["validation"]
    chosen = np.random.default_rng(0).permutation(len(validation))[: args.n]
    library, began = TemplateLibrary.from_crystals(train), time.process_time()
    data = examples(train, CandidateReader(library))
    rankers = [train_ranker(data, args.epochs, seed) for seed in range(args.rankers)]
    size, trained = sum(p.numel() for p in rankers[0].parameters()), time.process_time() - began
    print(f"{len(train)} training rows, {args.rankers} rankers of {size} parameters, {trained / 60:.1f} CPU minutes")
    ranked, began = Retriever(library, rankers), time.process_time()
    predictions = [[first(ranked, validation[i].numbers)] for i in chosen]
    print(f"{len(chosen) / (time.process_time() - began):.0f} compounds a CPU second")
    truth = Reference.from_crystals("validation", [validation[i] for i in chosen])
    baselines = floors(train) | {"nearest_template": partial(first, Retriever(library))}
    print(markdown(evaluate_prediction(predictions, truth, baselines)))


if __name__ == "__main__":
    main()
