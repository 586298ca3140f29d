"""Words drawn one after another from a causal transformer with a cache, by temperature and nucleus (arXiv 1904.09751).

p(w) ~ softmax(logits / temperature) on the smallest set of words whose probabilities sum to top_p or more
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from unisci.autoregression.unigenx import UniGenX
from unisci.batch import Batch
from unisci.rng import Rng


def nucleus(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """Probabilities (..., K). Raises ValueError where the temperature is not positive, or top_p not in (0, 1]."""
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"need temperature > 0 and 0 < top_p <= 1, got {temperature} and {top_p}")
    p = (logits / temperature).softmax(-1)
    if top_p == 1:
        return p
    ordered, order = torch.sort(p, stable=True, dim=-1, descending=True)
    kept = ordered.cumsum(-1) - ordered < top_p  # what comes before a word falls short, so that the first always stays
    p = torch.zeros_like(p).scatter(-1, order, ordered * kept)
    return p / p.sum(-1, keepdim=True)


@torch.no_grad()
def draw_words(
    model: UniGenX,
    prefix: Batch,
    rng: Rng,
    stop: int,
    limit: int,
    law: Callable[[Tensor], Tensor] = nucleus,
    cached: bool = True,
) -> Tensor:
    """(B, limit) words after sequences of one length, `prefix`; from the first `stop` on all are `stop`.

    law: probabilities of logits (B, words). All `limit` words are drawn, since to ask whether all have stopped would
    wait for the device. With cached = False the transformer reads all positions again for each word, to the same end.
    Raises ValueError where the prefixes differ in length.
    """
    b, s = prefix.mask.shape
    if not bool(prefix.mask.all()):
        raise ValueError(f"prefixes must all have the {s} positions of the longest: pad nothing")
    word = F.pad(prefix.state["word"], (0, limit))
    value = F.pad(prefix.state["value"], (0, 0, 0, limit))
    slot = F.pad(prefix.given["slot"], (0, limit))
    cache = model.trunk.empty(b, s + limit) if cached else None
    done = torch.zeros(b, dtype=torch.bool, device=word.device)
    for at in range(s, s + limit):
        if cache is None or at == s:
            h = model.trunk(model.embed(*(v[:, : at + 1] for v in (word, value, slot))), cache=cache)[:, -1]
        else:
            here = torch.full((b, 1), at - 1, device=word.device)
            h = model.trunk(model.embed(*(v[:, at - 1 : at + 1] for v in (word, value, slot))), here, cache)[:, 0]
        drawn = rng.at(at - s).categorical("word", 0, law(model.to_word(h)), 0)
        word[:, at] = torch.where(done, stop, drawn)
        done = word[:, at] == stop
    return word[:, s:]
