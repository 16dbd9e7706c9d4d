from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpcspec.adapt.heads import Output, head_loss, make_task, targets
from hpcspec.adapt.labels import LabelSet
from hpcspec.adapt.redshift import FARTHEST, HIGHEST, STARS, STAY, STEP, Redshift, bins, estimate, redshift_loss, shift
from hpcspec.model.attention import Packing
from hpcspec.model.unified import Encoded

WIDTH, LENGTHS = 8, (5, 9, 9)


@pytest.fixture
def votes() -> Redshift:
    """Votes alone, without what the summary says."""
    torch.manual_seed(0)
    made = Redshift(WIDTH, 4, 2)
    torch.nn.init.zeros_(made.bins.weight)
    torch.nn.init.zeros_(made.bins.bias)
    return made


@pytest.fixture
def encoded() -> Encoded:
    """Three objects; the first two tokens of each are no patches of a spectrum."""
    torch.manual_seed(1)
    wavelength = torch.linspace(math.log(3800), math.log(9000), sum(LENGTHS))
    for start in Packing(LENGTHS).offsets[:-1]:
        wavelength[start : start + 2] = torch.nan
    return Encoded(torch.randn(sum(LENGTHS), WIDTH), Packing(LENGTHS), wavelength)


def moved(of: Encoded, by: float) -> Encoded:
    assert of.log_wavelength is not None
    return Encoded(of.tokens, of.packing, of.log_wavelength + by)


def test_moving_a_spectrum_moves_the_votes(votes: Redshift, encoded: Encoded) -> None:
    hidden, steps = torch.zeros(3, 4), 37
    before, after = votes(encoded, hidden), votes(moved(encoded, steps * STEP), hidden)
    torch.testing.assert_close(after[..., steps:], before[..., :-steps], rtol=0, atol=1e-3)
    assert (after - before).abs().max() > 0.1


def test_only_an_object_s_own_patches_vote(votes: Redshift, encoded: Encoded) -> None:
    hidden = torch.zeros(3, 4)
    before = votes(encoded, hidden)
    tokens = encoded.tokens.clone()
    tokens[[0, 1, 5, 6]] += 3.0  # no patches of spectra
    tokens[7] += 3.0  # of the second object
    after = votes(Encoded(tokens, encoded.packing, encoded.log_wavelength), hidden)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]])
    assert (after[1] - before[1]).abs().max() > 0.01


@pytest.mark.parametrize("z", [-0.001, 0.0, 0.0123, 0.7, 3.3, 6.5])
def test_the_estimate_is_where_the_loss_is_lowest(z: float) -> None:
    logits = -0.5 * ((bins(torch.device("cpu")) - math.log1p(z)) / (0.7 * STEP)) ** 2
    value, error = estimate(logits[None])
    assert value.item() == pytest.approx(z, abs=0.1 * STEP * (1 + z))
    assert error.item() == pytest.approx(0.7 * STEP * (1 + z), rel=0.1)
    both = torch.stack([torch.zeros_like(logits), logits])[None]
    for kind in (1, -1):  # of the class that speaks, or of any
        losses = [redshift_loss(both, torch.tensor([z + dz]), torch.tensor([kind])).item() for dz in (-0.01, 0.0, 0.01)]
        assert losses[1] < min(losses[0], losses[2])


def test_extragalactic_objects_move_far_and_stars_hardly() -> None:
    for u in (STAY, 0.7, 0.999):
        assert abs(shift(1e-4, u)) <= STARS and shift(float("nan"), u) == 0.0
        for z in (0.004, 0.1, 1.0, 3.0, 6.9):
            now, d = math.log1p(z), shift(z, u)
            assert abs(d) <= FARTHEST and 0 <= now + d + 1e-9 and (now + d < HIGHEST - 0.05 or d <= 0)
    assert shift(0.1, STAY) == pytest.approx(-math.log1p(0.1)) and shift(1.0, 1.0) == pytest.approx(FARTHEST)


def test_a_share_of_them_stays_and_the_moved_ones_teach_no_class() -> None:
    """Else whatever lies on the survey's own pixels would be a star."""
    moves = np.array([shift(1.0, u) for u in np.linspace(0, 1, 1000, endpoint=False)])
    assert np.mean(np.abs(moves) <= STARS) == pytest.approx(STAY, abs=0.01)
    labels = LabelSet(np.array(["GALAXY", "STAR"] * 6), {"z": np.array([0.5, 0.0] * 6)}, {"z": np.zeros(12)})
    numbers = np.arange(4)
    shifts = np.array([0.2, 1e-4, -1e-4, -3e-4])
    task = make_task(labels, np.arange(12))
    found = targets(labels, task, numbers, shifts)
    assert found.moved is not None and found.moved.tolist() == [True, False, False, False]
    np.testing.assert_allclose(found.z, np.expm1(np.log1p(labels.values["z"][:4]) + shifts), atol=1e-6)
    logits = torch.zeros(4, 2, requires_grad=True)
    none = torch.zeros(4, 1)
    head_loss(Output(logits, none, none), found).backward()
    assert logits.grad is not None and (logits.grad[0] == 0).all() and (logits.grad[1:] != 0).all()


def test_every_weight_learns(votes: Redshift, encoded: Encoded) -> None:
    redshift_loss(votes(encoded, torch.randn(3, 4)), torch.tensor([0.1, 0.5, 2.0]), torch.tensor([0, 1, -1])).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in votes.parameters())
