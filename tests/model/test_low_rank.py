from __future__ import annotations

import pytest
import torch
from torch import nn

from hpcspec.model.low_rank import add_low_rank, merge_low_rank
from hpcspec.model.unified import Unified
from tests.making import batch
from tests.model.small import OBJECTS, made


def linear(module: nn.Module) -> list[str]:
    return [name for name, m in module.named_modules() if isinstance(m, nn.Linear)]


def trained(model: Unified, rank: int, steps: int = 3) -> tuple[list[nn.Parameter], dict[str, torch.Tensor]]:
    """The changes after some steps of training them, and the weights before."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    changes = add_low_rank(model.encoder, rank)
    optimizer = torch.optim.SGD(changes, lr=10.0)
    for _ in range(steps):
        optimizer.zero_grad()
        model.summary(model.encode(batch(OBJECTS))).square().mean(1)[::2].sum().backward()
        optimizer.step()
    return changes, before


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_before_training_nothing_changes_and_its_size_is_what_the_rank_says(rank: int) -> None:
    model, given = made(), batch(OBJECTS)
    wanted, sizes = model.encode(given).tokens, {n: model.encoder.get_submodule(n).weight.shape for n in linear(model.encoder)}
    changes = add_low_rank(model.encoder, rank)
    assert torch.equal(model.encode(given).tokens, wanted)
    assert sum(p.numel() for p in changes) == rank * sum(rows + columns for rows, columns in sizes.values())
    assert len(sizes) == 5 * len(model.encoder) and all(p.requires_grad for p in changes)


@pytest.mark.parametrize("rank", [1, 3])
def test_merged_it_says_the_same_and_is_a_plain_model_with_changes_of_that_rank(rank: int) -> None:
    model, given = made(), batch(OBJECTS)
    _, before = trained(model, rank)
    wanted = model.encode(given).tokens
    merge_low_rank(model.encoder)
    torch.testing.assert_close(model.encode(given).tokens, wanted, rtol=1e-4, atol=1e-4)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(p.requires_grad for p in model.parameters())
    weights = {f"encoder.{name}.weight" for name in linear(model.encoder)}
    for name, old in before.items():
        if name in weights:
            change = torch.linalg.svdvals((after[name] - old).double())
            assert change[0] > 1e-4 and (change[rank:] < 1e-5).all(), name
        else:
            assert torch.equal(after[name], old), name
    other = made(seed=2)
    other.load_state_dict(after)
    torch.testing.assert_close(other.encode(given).tokens, model.encode(given).tokens)


def test_only_the_changes_train() -> None:
    model = made().train()
    kept = {n: p.detach().clone() for n, p in model.named_parameters()}
    frozen = {f"encoder.{name}.weight" for name in linear(model.encoder)}
    changes, _ = trained(model, 4, 2)
    assert len(changes) == 2 * len(frozen) and all(p.grad is not None and p.grad.abs().max() > 0 for p in changes)
    now = dict(model.named_parameters())
    for name in frozen:
        original = now[name.removesuffix("weight") + "parametrizations.weight.original"]
        assert torch.equal(original, kept[name]) and original.grad is None and not original.requires_grad
    chosen = {id(p) for p in changes}
    assert all(torch.equal(p, kept[n]) for n, p in now.items() if id(p) not in chosen and n in kept)


def test_merged_without_training_it_is_as_it_was() -> None:
    model = made()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    add_low_rank(model.encoder, 2)
    merge_low_rank(model.encoder)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
