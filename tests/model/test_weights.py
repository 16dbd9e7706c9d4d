from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpcspec.atomic import file_hash
from hpcspec.config import Model
from hpcspec.errors import UserError
from hpcspec.model.spectral import SpectralModel
from hpcspec.model.weights import load_weights, save_weights
from tests.making import batch, spectrum

SMALL = Model(patch=8, width=32, layers=2, decoder_layers=1, heads=4, frequencies=8)


def model(seed: int, **changed: int) -> SpectralModel:
    torch.manual_seed(seed)
    return SpectralModel(SMALL.model_copy(update=changed)).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_weights(tmp_path / "model" / "weights.safetensors", model(0).state_dict())
    return tmp_path / "model" / "weights.safetensors"


def test_weights_come_back_and_the_model_is_the_same(path: Path) -> None:
    first, second = model(0), model(1)
    given = batch([spectrum(i) for i in range(3)], SMALL.patch, mask=0.5)
    assert not torch.equal(first(given)["loss"], second(given)["loss"])
    load_weights(path, second)
    assert torch.equal(first(given, 0.25)["loss"], second(given, 0.25)["loss"])
    assert {k: v.dtype for k, v in load_file(path).items()} == {k: torch.float32 for k in first.state_dict()}


def test_half_precision_is_saved_as_float32(tmp_path: Path) -> None:
    state = model(0).bfloat16().state_dict()
    save_weights(tmp_path / "w.safetensors", state)
    saved = load_file(tmp_path / "w.safetensors")
    assert all(v.dtype == torch.float32 and torch.equal(v, state[k].float()) for k, v in saved.items())


def test_the_same_weights_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    state = model(0).state_dict()
    save_weights(tmp_path / "again.safetensors", dict(reversed(state.items())))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("changed", [{"width": 64}, {"layers": 3}, {"layers": 1}, {"patch": 16}, {"frequencies": 9}])
def test_weights_of_another_configuration_are_a_user_error(path: Path, changed: dict[str, int]) -> None:
    with pytest.raises(UserError, match="weights.safetensors are of another model configuration"):
        load_weights(path, model(0, **changed))


@pytest.mark.parametrize("keep", [0, 5, 500, -100])
def test_damaged_or_missing_weights_are_a_user_error(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="can't read weights .*weights.safetensors"):
        load_weights(path, model(0))
    path.unlink()
    with pytest.raises(UserError, match="can't read weights"):
        load_weights(path, model(0))
