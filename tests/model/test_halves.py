"""The agreement of what is seen of an object and what is hidden of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpcspec.stream.batch import Batch
from tests.making import batch, spectrum, star
from tests.model.small import OBJECTS, made


def halves(model: torch.nn.Module, given: Batch) -> torch.Tensor:
    return model(given, 0.0, 0.0, 1.0, 1.0)["loss_halves"]


def test_it_is_chance_for_objects_that_can_not_be_told_apart_and_counts_only_those_with_something_hidden() -> None:
    model, ones = made(), [replace(spectrum(1, pixels=200), object_id=f"{i}") for i in range(8)]
    for parameter in model.project_half.parameters():
        torch.nn.init.zeros_(parameter)
    given = batch(ones, mask=0.5)
    assert halves(model, given).item() == pytest.approx(np.log(8), rel=1e-4)
    owner = torch.repeat_interleave(torch.arange(8), torch.tensor(given.lengths))
    part = replace(given, hidden=given.hidden & (owner < 5))
    assert halves(model, part).item() == pytest.approx(np.log(5), rel=1e-4)


@pytest.mark.parametrize("mask", [0.0, 0.5])
def test_any_objects_have_a_finite_loss_and_a_gradient(mask: float) -> None:
    for ones in (OBJECTS, [star(1)], [spectrum(1, pixels=8)]):
        model = made().train()
        found = halves(model, batch(ones, mask=mask))
        found.backward()
        assert torch.isfinite(found) and model.project_half.weight.grad is not None
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    given = batch(OBJECTS, mask=0.5)
    assert halves(made(), replace(given, hidden=torch.zeros_like(given.hidden))) >= 0


def test_training_makes_the_halves_of_an_object_agree() -> None:
    model, ones = made().train(), [spectrum(i, pixels=160) for i in range(16)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(80):
        torch.manual_seed(step)
        loss = halves(model, batch(ones, mask=0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[:3]) > 0.8 * np.log(16) and np.mean(losses[-10:]) < 0.6 * np.log(16), losses[::10]
