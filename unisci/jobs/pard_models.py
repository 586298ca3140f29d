"""Generators of molecular graphs from sizes, and from the header and tensors of a weights file."""

from torch import Tensor

from unisci.autoregression.conditions import Conditions
from unisci.autoregression.pard import Pard
from unisci.denoiser import Denoiser
from unisci.jobs.config import ModelConfig
from unisci.jobs.graphs import build_product, sizes
from unisci.networks.graph_transformer import GraphHead, GraphTransformer


def build(config: ModelConfig, classes: tuple[str, ...], room: int, atom: Tensor, bond: Tensor, first: Tensor) -> Pard:
    """An untrained Pard. atom (K,), bond (4,): class frequencies; first: table of first blocks; room: most atoms."""
    product, told = build_product(config.noise, classes, atom, bond), len(config.condition)
    denoiser = GraphTransformer(sizes(config.denoiser, product, config.causal, told))
    head = GraphHead(sizes(config.head, product, config.causal, told), first.numel() + first.shape[0])
    conditions = Conditions(config.condition, first.shape) if told else None
    return Pard(Denoiser(denoiser, product), head, first, config.hops, room, config.parallel, conditions)


def of_header(spec: dict, tensors: dict[str, Tensor]) -> Pard:
    """The trained model of a header's "spec" and its tensors. Raises one of many errors where the two differ."""
    config = ModelConfig.model_validate(spec["model"])
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    frequency = [tensors.pop(f"frequency.{k}") for k in ("atom", "bond")]
    frequency = [f / f.sum() for f in frequency]
    model = build(config, tuple(spec["classes"]), spec["room"], *frequency, tensors["first"])
    model.load_state_dict(tensors)
    return model.eval()
