"""What a set of operators cannot see of a signal: the null space of their stacked Jacobian, which diffusion with
forward models (Tewari et al., arXiv 2306.11719) fills with its mean,

    spread lost = Cov(S | O_1, ..., O_K) = 0    if rank [dF_1 / dS; ...; dF_K / dS] = dim S    (linear F, exact O)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unisci.inverse.operators import Operator
from unisci.state import State


def unseen(operators: Sequence[Operator], at: State, rtol: float | None = None) -> Tensor:
    """How many directions of the signal `at` (B, ...) none of the operators sees, (B,) int64: the entries of its
    continuous fields less the rank of the operators' stacked Jacobian. Zero: with all of them observed, a sample's
    spread is the posterior's.

    What no operator can see counts too: six directions of a molecule that is observed by its distances. rtol: below
    this part of the largest, a singular value counts as 0; None, rounding. Each operator's Jacobian is first scaled to
    norm 1, as units differ. Takes a backward pass for each entry of the observations. Raises ValueError for an operator
    that is not differentiable.
    """
    with torch.inference_mode(False), torch.enable_grad():
        fields = at if isinstance(at, dict) else {"x": at}
        leaves = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in fields.items()}
        signal = leaves if isinstance(at, dict) else leaves["x"]
        moving = [v for v in leaves.values() if v.requires_grad]
        jacobian = torch.cat([_jacobian(operator(signal), moving) for operator in operators], 1)
    return jacobian.shape[2] - torch.linalg.matrix_rank(jacobian, rtol=rtol)


def _jacobian(out: Tensor, leaves: list[Tensor]) -> Tensor:
    """d out / d leaves, (B, entries of out, entries of leaves), each sample's of norm 1."""
    if not out.requires_grad:
        raise ValueError("an operator's output does not depend on the signal by anything that torch can differentiate")
    rows = [
        torch.autograd.grad(entry.sum(), leaves, retain_graph=True, materialize_grads=True)
        for entry in out.flatten(1).unbind(1)
    ]
    jacobian = torch.stack([torch.cat([g.flatten(1) for g in row], 1) for row in rows], 1)
    size = jacobian.flatten(1).norm(dim=1)
    return jacobian / torch.where(size > 0, size, 1.0)[:, None, None]
