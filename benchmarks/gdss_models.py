"""The two models of the GDSS benchmark, their training and their samples. Nothing here needs RDKit."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.batch import Batch, pair_mask
from unisci.denoiser import Denoiser
from unisci.discrete.cdcd import Cdcd
from unisci.networks.gdss import Gdss
from unisci.networks.graph_transformer import GraphTransformerConfig
from unisci.networks.joint_transformer import JointTransformer
from unisci.processes.gaussian import VP, Cosine
from unisci.processes.graph_sdes import Alphabet, Alphabets, Focus, decode, encode, graph_sdes
from unisci.rng import Rng
from unisci.solvers.sample import Solver, sample
from unisci.training.checkpoint import latest_checkpoint, load_checkpoint
from unisci.training.fit import FitConfig, fit

TOGETHER = 512  # graphs drawn at once
DRAFTS = (2, 4)  # layers before which the network is shown its estimate
# An atom or a bond is guesswork above t = .5 and certain below t = .1: here lie nine training times in ten.
DECIDED = Focus(mean=1.0, deviation=0.5, uniform=0.1)


class Model(NamedTuple):
    """A denoiser of the points of `alphabets`, and whether it is trained on classes or on their points."""

    denoiser: Denoiser | Cdcd
    alphabets: Alphabets
    by_class: bool


def counts(data: Batch) -> dict[str, Tensor]:
    """How often each class of a field occurs, and one more."""
    there = {"atom": data.mask, "bond": pair_mask(data.mask)}
    return {
        k: torch.bincount(v[there[k]].long(), minlength=len(data.schema[k].classes)).float() + 1
        for k, v in data.state.items()
    }


def paper_model(data: Batch, width: int = 16, layers: int = 3) -> Model:
    """The paper's networks, told the time; bond orders as numbers; outputs scaled as in `unisci.denoiser`.

    Not the paper's processes: at t = 1 they keep three quarters of the data or more, which no draw of noise has.
    """
    alphabets = {k: Alphabet(data.schema[k].classes, ordinal=k == "bond") for k in ("atom", "bond")}
    points = encode(_wide(data), alphabets).state
    there = {"atom": data.mask, "bond": pair_mask(data.mask)}
    scale = {k: float(v[there[k]].square().mean().sqrt()) for k, v in points.items()}
    network = Gdss(len(alphabets["atom"].classes), width=width, layers=layers, time=8)
    system = graph_sdes({"atom": VP(), "bond": VP()}, alphabets)
    return Model(Denoiser(network, system, scale), alphabets, False)


def cdcd_model(
    data: Batch,
    width: int = 96,
    pair_width: int = 32,
    heads: int = 6,
    drafts: tuple[int, ...] = (),
    focus: Focus | None = None,
) -> Model:
    """One-hot channels, the cosine process, the graph transformer, trained as classes."""
    alphabets = {k: Alphabet(data.schema[k].classes) for k in ("atom", "bond")}
    k, c = (len(alphabets[f].classes) for f in ("atom", "bond"))
    network = JointTransformer(GraphTransformerConfig(k, c, k, c, width, pair_width, heads=heads), drafts)
    system = graph_sdes({"atom": Cosine(), "bond": Cosine()}, alphabets, focus)
    return Model(Cdcd(network, system, alphabets, counts(data)), alphabets, True)


def draft_model(data: Batch, width: int = 96, pair_width: int = 32, heads: int = 6) -> Model:
    """The same, shown its drafts of the graph, and trained mostly at the times where classes are decided."""
    return cdcd_model(data, width, pair_width, heads, DRAFTS, DECIDED)


def parameters(model: Model) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.denoiser.parameters())


def started(model: Model, folder: Path) -> Model:
    """The model with the averaged weights of the last checkpoint of `folder`, of a model without drafts or with."""
    found = latest_checkpoint(folder)
    if found is None:
        raise ValueError(f"{folder} holds no checkpoint of a training")
    missing, unknown = model.denoiser.load_state_dict(load_checkpoint(found, "cpu")["ema"], strict=False)
    new = ("network.hints.", "network.to_site.", "network.to_pair.")
    if unknown or any(not k.startswith(new) for k in missing):
        raise ValueError(f"{found} is of another network: {unknown or missing}")
    return model


def train(model: Model, data: Batch, config: FitConfig, folder: Path | None) -> Model:
    """The model of averaged weights after training on `data`, fields of classes; resumed from `folder`."""
    as_points = lambda batch, rng: batch if model.by_class else encode(batch, model.alphabets)
    return model._replace(denoiser=fit(model.denoiser, data, config, folder, as_points, progress=False))


@torch.inference_mode()
def draw(model: Model, like: Batch, solver: Solver, times: Sequence[Tensor], rng: Rng) -> Batch:
    """Graphs (classes) of as many sites as those of `like`."""
    parts = [_draw(model, like[rows], solver, times, rng[rows]) for rows in torch.arange(len(like)).split(TOGETHER)]
    join = lambda name: torch.cat([p.state[name] for p in parts])
    return like.replace(**{k: join(k) for k in parts[0].state})


def _draw(model: Model, like: Batch, solver: Solver, times: Sequence[Tensor], rng: Rng) -> Batch:
    points = encode(like, model.alphabets)
    start = model.denoiser.product.prior(points.state, rng)
    return decode(points.replace(**sample(model.denoiser.on(points), start, times, solver, rng)), model.alphabets)


def empty(data: Batch, rng: Rng) -> Batch:
    """Graphs without atoms and bonds, of numbers of sites drawn from those of `data`."""
    n = data.mask.shape[1]
    of = torch.bincount(data.sites, minlength=n + 1).double()
    sites = rng.categorical("sites", 0, of.expand(len(rng.ids), -1), 0)
    mask, b = torch.arange(n) < sites[:, None], len(sites)
    zeros = {"atom": torch.zeros(b, n, dtype=torch.long), "bond": torch.zeros(b, n, n, dtype=torch.long)}
    return Batch(data.schema, zeros, mask, ids=rng.ids)


def _wide(data: Batch) -> Batch:
    return data.replace(**{k: v.long() for k, v in data.state.items()})
