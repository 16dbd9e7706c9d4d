"""Low-rank adaptation: small changes of a trained model's linear layers (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """weight + B·A, with A (rank, in) random and B (out, rank) zero at first."""

    def __init__(self, weight: torch.Tensor, rank: int):
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.b = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.b @ self.a


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def add_low_rank(module: nn.Module, rank: int) -> list[nn.Parameter]:
    """Give every linear layer of a module a change of this rank; returns what is to be trained, the rest stays as it is."""
    trained: list[nn.Parameter] = []
    for layer in _linear(module):
        change = LowRank(layer.weight, rank)
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", change)
        trained += [change.a, change.b]
    return trained


def merge_low_rank(module: nn.Module) -> None:
    """Add the changes to the weights: the module is then as it was, with other numbers."""
    for layer in _linear(module):
        parametrize.remove_parametrizations(layer, "weight")
        layer.weight.requires_grad_(True)
