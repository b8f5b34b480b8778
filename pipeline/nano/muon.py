"""Muon for weight matrices (Jordan et al., 2024) whose Newton-Schulz steps run in a type that the machine is fast at.

``torch.optim.Muon`` orthogonalises in bfloat16 whatever the machine; on a CPU without it that took 20 s for the 56
matrices of the embedded model, where float32 takes a third of a second.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at zero, where singular values are to rise fastest
STEPS = 5
LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Updates are scaled to the root mean square of AdamW's, 0.2 sqrt(longer side) (Liu et al., 2025), so that both
    optimisers of a run take rates of one size. ``dtype`` is the type of the orthogonalisation.
    """

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float, momentum: float, dtype: torch.dtype):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step along the gradients."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                average = state.setdefault("momentum_buffer", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(average, group["momentum"])
                rate = group["lr"] * 0.2 * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(orthogonal(ahead.to(self.dtype)).to(matrix.dtype), alpha=-rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values brought near 1 (between about 0.7 and 1.2) by five quintic steps."""
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=LEAST_NORM)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
