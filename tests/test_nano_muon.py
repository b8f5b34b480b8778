"""The pretraining optimiser against torch's own, and what its orthogonalisation promises."""

from __future__ import annotations

import pytest
import torch

from pipeline.nano.muon import Muon, orthogonal

SHAPES = [(24, 8), (8, 24), (16, 16)]


def _stepped(make) -> list[torch.Tensor]:
    torch.manual_seed(3)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimiser = make(matrices)
    for _ in range(3):
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        optimiser.step()
    return [matrix.detach() for matrix in matrices]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_steps_as_torchs_own_does(dtype):
    settings = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.9}
    ours = _stepped(lambda matrices: Muon(matrices, **settings, dtype=dtype))
    theirs = _stepped(lambda matrices: torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **settings))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=6e-4, rtol=0)  # theirs rounds to bfloat16; a step is up to 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape):
    torch.manual_seed(5)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_its_state_is_taken_up_again():
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    first = Muon([matrix], lr=0.1, weight_decay=0.0, momentum=0.9, dtype=torch.float32)
    matrix.grad = torch.eye(4)
    first.step()
    second = Muon([matrix], lr=0.1, weight_decay=0.0, momentum=0.9, dtype=torch.float32)
    second.load_state_dict(first.state_dict())
    buffer = second.state[matrix]["momentum_buffer"]
    assert torch.equal(buffer, first.state[matrix]["momentum_buffer"])
