"""How far templates go on structure prediction, without generating anything: python -m benchmarks.retrieval mp20.npz

Prints the match rate and its kin (unisci.metrics.crystals) of the template that trained rankers choose, and beside it
those of random coordinates, a random template and the chemically nearest one. Trains on the train split alone, each
train row's own crystal left out of its candidates; reports on the first n of a permutation of the validation split.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.crystal_rows import load
from unisci.autoregression.ranker_training import examples, train_ranker
from unisci.autoregression.retrieval import Retriever
from unisci.domains.candidates import CandidateReader
from unisci.domains.crystal import Crystal
from unisci.domains.elements import element_features
from unisci.domains.templates import TemplateLibrary
from unisci.metrics.crystals import Reference, evaluate_prediction, floors, markdown


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
    data, features = examples(CandidateReader(library)), torch.from_numpy(element_features())
    rankers = [train_ranker(data, features, args.epochs, seed) for seed in range(args.rankers)]
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
