"""What steps the weights in adaptation: Muon for the matrices of hidden layers, AdamW for the rest, and their running average."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hpcspec.config import Adapt
from hpcspec.training.ranks import Ranks

NEWTON_SCHULZ, STEPS = (3.4445, -4.7750, 2.0315), 5  # Jordan et al. 2024


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix (a, b) with singular values of about 1. In single precision on a CPU: most of them have no units for
    bfloat16, in which it takes ten times as long."""
    a, b, c = NEWTON_SCHULZ
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    if x.is_cuda or x.shape[1] < 2 * x.shape[0]:
        for _ in range(STEPS):
            gram = x @ x.mT
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x
    # The same on the small side alone: all steps are polynomials of x xᵀ, which commute.
    gram, product = x @ x.mT, torch.eye(len(x))
    for _ in range(STEPS):
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        product, gram = step @ product, step @ gram @ step
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised (Jordan et al. 2024), of the size that AdamW's have (Liu et al. 2025,
    arXiv 2502.16982). torch.optim.Muon does the same in bfloat16 alone."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step down the gradients that there are."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                step = orthogonalised(torch.lerp(p.grad, momentum, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step.to(p.dtype), alpha=-0.2 * group["lr"] * max(p.shape) ** 0.5)


class Optimizers:
    """Muon orthogonalises the step of a matrix, which learns more from few objects than AdamW; it is for
    matrices between hidden layers only. Ranks average their gradients, and each orthogonalises a share of the matrices."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], settings: Adapt, ranks: Ranks):
        plain = [{"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay},
                 {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
        self._all: list[torch.optim.Optimizer] = [torch.optim.AdamW(plain, lr=settings.lr)]
        self._own = set(_shares([p.numel() for p in matrices], ranks.size)[ranks.rank])
        if self._own:
            self._all.append(Muon([matrices[i] for i in sorted(self._own)], settings.matrix_lr, settings.weight_decay))
        self._base = [[group["lr"] for group in one.param_groups] for one in self._all]
        self._parameters, self._matrices, self._ranks = matrices + others, matrices, ranks

    def step(self, loss: torch.Tensor, done: float) -> tuple[bool, float]:
        """One step down the mean of the ranks' losses when a share `done` of training is over. Returns whether it was made (not
        if a gradient isn't finite) and the mean of what the ranks hold for `done`, which is the same on all."""
        for parameter in self._parameters:
            parameter.grad = None
        loss.backward()
        done = self._average_gradients(done)
        finite = bool(torch.isfinite(nn.utils.clip_grad_norm_(self._parameters, 1.0)))
        for one, base in zip(self._all, self._base, strict=True):
            for group, lr in zip(one.param_groups, base, strict=True):
                group["lr"] = lr * one_cycle(done)
            if finite:
                one.step()
        if finite and self._ranks.size > 1 and self._matrices:
            with torch.no_grad():
                new = [p if i in self._own else torch.zeros_like(p) for i, p in enumerate(self._matrices)]
                for p, value in zip(self._matrices, self._ranks.sum_tensors(new), strict=True):
                    p.copy_(value)
        return finite, done

    def _average_gradients(self, done: float) -> float:
        size = self._ranks.size
        if size == 1:
            return done
        there = torch.tensor([done, *(float(p.grad is not None) for p in self._parameters)], device=self._ranks.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        total, *gradients = self._ranks.sum_tensors([there, *gradients])
        mean, *anywhere = total.tolist()
        for p, gradient, had in zip(self._parameters, gradients, anywhere, strict=True):
            p.grad = gradient / size if had else None  # what no rank used must not decay
        return mean / size


def _shares(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Numbers of the items of these sizes in `count` shares of about the same total."""
    shares: list[list[int]] = [[] for _ in range(count)]
    totals = [0] * count
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = totals.index(min(totals))
        shares[least].append(i)
        totals[least] += sizes[i]
    return shares


def one_cycle(done: float) -> float:
    """Factor of the learning rate when a share `done` of training is over: warm-up over a twentieth, then cosine to 0."""
    return min(1.0, 20 * done) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """The exponential running average of a module's weights, over fewer steps as long as there were few."""

    def average(mean: list[torch.Tensor], now: list[torch.Tensor], steps: torch.Tensor | int) -> None:
        weight = max(1 - decay, 1 / (1 + float(steps) / 10))
        torch._foreach_lerp_(mean, now, weight)

    return AveragedModel(module, multi_avg_fn=average)  # type: ignore[arg-type]
