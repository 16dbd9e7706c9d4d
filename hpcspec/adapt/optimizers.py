"""What steps the weights in adaptation: Muon for the matrices of hidden layers, AdamW for the rest, and their running average."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hpcspec.config import Adapt


class Optimizers:
    """Muon (Jordan et al. 2024) orthogonalises the step of a matrix, which learns more from few objects than AdamW; it is for
    matrices between hidden layers only."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], settings: Adapt):
        plain = [{"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay},
                 {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
        self._all: list[torch.optim.Optimizer] = [torch.optim.AdamW(plain, lr=settings.lr)]
        if matrices:
            self._all.append(torch.optim.Muon(matrices, lr=settings.matrix_lr, weight_decay=settings.weight_decay,
                                              adjust_lr_fn="match_rms_adamw"))  # fmt: skip
        self._base = [[group["lr"] for group in one.param_groups] for one in self._all]
        self._parameters = matrices + others

    def step(self, loss: torch.Tensor, done: float) -> bool:
        """One step down a loss when a share `done` of training is over; whether it was made: not if a gradient isn't finite."""
        for one, base in zip(self._all, self._base, strict=True):
            for group, lr in zip(one.param_groups, base, strict=True):
                group["lr"] = lr * one_cycle(done)
            one.zero_grad()
        loss.backward()
        finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(self._parameters, 1.0)))
        for one in self._all if finite else ():
            one.step()
        return finite


def one_cycle(done: float) -> float:
    """Factor of the learning rate when a share `done` of training is over: warm-up over a twentieth, then cosine to 0."""
    return min(1.0, 20 * done) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def hidden_matrices(module: nn.Module, outputs: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    """The weights of all linear layers of a module but those of its outputs."""
    layers = (m for m in module.modules() if isinstance(m, nn.Linear) and m not in outputs)
    return [m.weight for m in layers if isinstance(m.weight, nn.Parameter)]


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """The exponential running average of a module's weights, over fewer steps as long as there were few."""

    def average(mean: list[torch.Tensor], now: list[torch.Tensor], steps: torch.Tensor | int) -> None:
        weight = max(1 - decay, 1 / (1 + float(steps) / 10))
        torch._foreach_lerp_(mean, now, weight)

    return AveragedModel(module, multi_avg_fn=average)  # type: ignore[arg-type]
