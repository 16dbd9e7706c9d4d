from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcspec.model.embeddings import FARTHEST, ScalarEmbedding, Sinusoids, TimeEmbedding, WavelengthEmbedding
from hpcspec.stream.batch import Scalars
from tests.making import batch
from tests.model.small import OBJECTS, made


@pytest.fixture
def scalars() -> ScalarEmbedding:
    """Of three names: of 0 ± 1, of 5000 ± 300, and of the logarithm, 1 ± 0.5."""
    torch.manual_seed(0)
    of = ScalarEmbedding(3, 16)
    for buffer, values in ((of.center, (0, 5000, 1)), (of.spread, (1, 300, 0.5)), (of.logarithmic, (0, 0, 1))):
        buffer.copy_(torch.tensor(values))
    return of


def one(name: int, value: float, error: float = 0.0) -> Scalars:
    return Scalars(torch.tensor([name]), torch.tensor([value]), torch.tensor([error]))


def test_scalars_are_standardised(scalars: ScalarEmbedding) -> None:
    for name, value, error, wanted in ((0, 0.5, 0.1, (0.5, 0.1)), (1, 5600.0, 60.0, (2.0, 0.2)), (2, 100.0, 0.0, (2.0, 0.0)),
                                       (2, 10.0, 1.0, (0.0, 2 * 0.1 / math.log(10))), (1, 1e9, 1e30, (FARTHEST, 1e3)),
                                       (2, -3.0, 1.0, (-62, 1e3)), (2, 0.0, 0.0, (-62, 0.0)),  # as 1e-30
                                      
                                       (0, -3e38, 3e38, (-FARTHEST, 1e3))):  # fmt: skip
        x, sigma = scalars.standard(one(name, value, error))
        assert (x.item(), sigma.item()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@given(name=st.integers(0, 2), x=st.floats(-5, 5), error=st.floats(0.01, 2))
def test_measured_undoes_standard(name: int, x: float, error: float) -> None:
    of = ScalarEmbedding(3, 16)
    of.center.copy_(torch.tensor([0.0, 5000, 1]))
    of.spread.copy_(torch.tensor([1.0, 300, 0.5]))
    of.logarithmic.copy_(torch.tensor([0.0, 0, 1]))
    value, sigma = of.measured(torch.tensor([name]), torch.tensor([x]), torch.tensor([error]))
    again = of.standard(Scalars(torch.tensor([name]), value, sigma))
    assert (again[0].item(), again[1].item()) == pytest.approx((x, error), rel=1e-3, abs=1e-3)


def test_a_scalar_is_told_by_its_name_value_and_error_and_a_question_by_its_name_alone(scalars: ScalarEmbedding) -> None:
    found = [
        scalars(one(*given))[0] for given in ((1, 5000.0, 3.0), (1, 5100.0, 3.0), (1, 5000.0, 30.0), (1, 5000.0), (0, 0.0, 0.01))
    ]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert (a - b).abs().max() > 1e-3
    names = torch.tensor([2, 0, 2])
    assert torch.equal(scalars.ask(names), scalars.scale.weight[names])
    assert scalars(Scalars(*(torch.zeros(0, dtype=d) for d in (torch.long, torch.float, torch.float)))).shape == (0, 16)


def test_standards_are_saved_with_the_weights() -> None:
    state = made().state_dict()
    assert {f"embed_scalar.{name}" for name in ("center", "spread", "logarithmic")} <= set(state)
    assert 5000 in state["embed_scalar.center"].tolist()


def test_wavelengths_and_times_stay_exact_in_bfloat16() -> None:
    """bfloat16 has eight bits: at 1e4 Å it would round to 64 Å."""
    model, x = made(), torch.linspace(3600, 17000, 500)
    before = [m(x) for m in model.modules() if isinstance(m, Sinusoids)]
    model.bfloat16()
    sinusoids = [m for m in model.modules() if isinstance(m, Sinusoids)]
    assert len(sinusoids) == 3 and all(m.frequencies.dtype == torch.float32 for m in sinusoids)
    for a, m in zip(before, sinusoids, strict=True):
        assert torch.equal(a, m(x))
    losses = model(batch(OBJECTS, mask=0.5), 0.25, 0.1)
    assert torch.isfinite(losses["loss"]) and {x.dtype for x in losses.values()} == {torch.float32}


def test_neighbouring_pixels_of_an_apogee_spectrum_are_told_apart() -> None:
    torch.manual_seed(0)
    x = WavelengthEmbedding(32, 16)(torch.tensor([[16000.0, 0.22], [16000.22, 0.22], [16000.0, 0.8]]))
    assert (x[0] - x[1]).abs().max() > 1e-2 and (x[0] - x[2]).abs().max() > 1e-2


def test_epochs_are_told_apart_by_time_phase_and_band() -> None:
    torch.manual_seed(0)
    when = TimeEmbedding(32, 16, 2)
    times, phases = torch.tensor([100.0, 100.05, 100.0, 100.0, 100.0]), torch.tensor([0.2, 0.2, 0.25, torch.nan, 0.2])
    x = when(times, phases, torch.tensor([0, 0, 0, 0, 1]))
    assert x.shape == (5, 32) and torch.isfinite(x).all()
    assert all((x[0] - other).abs().max() > 1e-2 for other in x[1:])
    turn = when(torch.zeros(2), torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long))
    assert (turn[0] - turn[1]).abs().max() > 1e-2  # half the phase counts too: a period may be of two eclipses
    assert TimeEmbedding(32, 16, 0)(times[:0], phases[:0], torch.zeros(0, dtype=torch.long)).shape == (0, 32)
