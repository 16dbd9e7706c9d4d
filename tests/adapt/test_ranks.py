"""Ranks that share the objects step the weights as one process that has them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hpcspec.adapt.optimizers import Muon, Optimizers, one_cycle, orthogonalised
from hpcspec.config import Adapt
from hpcspec.training.ranks import Ranks, start
from tests.two_ranks import finish, launch

STEPS = 4


class Net(torch.nn.Module):
    """Three matrices for two ranks, one layer that the first rank's objects alone use, and one that none uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*shape) for shape in ((6, 10), (10, 10), (10, 1)))
        self.first, self.unused = torch.nn.Linear(6, 10), torch.nn.Linear(6, 10)

    def loss(self, x: torch.Tensor, y: torch.Tensor, first: bool) -> torch.Tensor:
        h = self.layers[0](x) + (self.first(x) if first else 0.0)
        return (self.layers[2](self.layers[1](h.tanh()).tanh())[:, 0] - y).square().mean()


def trained(ranks: Ranks) -> dict[str, torch.Tensor]:
    """Weights after a few steps on the parts that this rank has."""
    net, settings = Net(), Adapt(lr=0.01, matrix_lr=0.05, weight_decay=0.1)
    matrices = [m.weight for m in (*net.layers[:2], net.first, net.unused)]
    others = [p for p in net.parameters() if not any(p is m for m in matrices)]
    optimizers = Optimizers(matrices, others, settings, ranks)
    data = torch.randn(2, STEPS, 16, 7, generator=torch.Generator().manual_seed(2))
    for step in range(STEPS):
        parts = range(2) if ranks.size == 1 else [ranks.rank]
        losses = [net.loss(data[part, step, :, :6], data[part, step, :, 6], first=part == 0) for part in parts]
        # the clocks of the ranks differ: what they agree on is the mean
        done = (step + 0.5) / STEPS if ranks.size == 1 else (step + 0.25 + 0.5 * ranks.rank) / STEPS
        made, agreed = optimizers.step(torch.stack(losses).mean(), done)
        assert made and agreed == pytest.approx((step + 0.5) / STEPS)
    return net.state_dict()


def test_two_ranks_step_as_one(tmp_path: Path) -> None:
    finish(launch("tests.adapt.test_ranks", tmp_path))
    alone = trained(Ranks(0, 1, torch.device("cpu")))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    fresh = Net().state_dict()
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], fresh[name]) == name.startswith("unused"), name


def test_muon_steps_as_torchs_in_bfloat16() -> None:
    ours, theirs = Net(), Net()
    for net in (ours, theirs):
        matrices = [net.layers[0].weight, net.layers[1].weight, net.first.weight]
        one = Muon(matrices, 0.05, 0.1) if net is ours else torch.optim.Muon(
            matrices, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")  # fmt: skip
        data = torch.randn(STEPS, 16, 7, generator=torch.Generator().manual_seed(2))
        for x in data:
            one.zero_grad()
            net.loss(x[:, :6], x[:, 6], first=True).backward()
            one.step()
    fresh, there, here = (dict(net.named_parameters()) for net in (Net(), theirs, ours))
    for name in ("layers.0.weight", "layers.1.weight", "first.weight"):
        moved = (there[name] - fresh[name]).norm()
        assert moved > 0.1 and (here[name] - there[name]).norm() < 0.12 * moved, name  # bfloat16


def test_a_step_of_muon_is_orthogonal() -> None:
    for shape in ((12, 30), (30, 12), (16, 16)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        u, values, vh = torch.linalg.svd(orthogonalised(x), full_matrices=False)
        assert values.min() > 0.5 and values.max() < 1.3, shape
        theirs, _, of = torch.linalg.svd(x, full_matrices=False)
        # between 0.5 and 1.3, as they are, values don't turn what they belong to by much
        assert torch.cosine_similarity(orthogonalised(x).flatten(), (theirs @ of).flatten(), dim=0) > 0.95, shape


def test_the_learning_rate_rises_and_falls() -> None:
    assert one_cycle(0.0) == 0.0 and one_cycle(0.05) > 0.99 and one_cycle(0.5) == pytest.approx(0.5) and one_cycle(1.0) == 0.0


if __name__ == "__main__":
    here = start(1)
    torch.save(trained(here), Path(sys.argv[1]) / f"{here.rank}.pt")
    torch.distributed.barrier()
