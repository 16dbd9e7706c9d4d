from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hpcspec.atomic import file_hash
from hpcspec.errors import UserError
from hpcspec.model.unified import Unified
from hpcspec.model.weights import load_model, load_weights, save_model, save_weights
from hpcspec.stream.vocabulary import Vocabulary
from tests.making import WORDS, batch
from tests.model.small import OBJECTS, SMALL, made


def save(folder: Path, model: Unified) -> Path:
    save_model(folder / "weights.safetensors", model.config, model.vocabulary, model.state_dict())
    return folder / "weights.safetensors"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "model", made())


def test_weights_come_back_and_the_model_is_the_same(path: Path) -> None:
    first, second = made(0), made(1)
    given = batch(OBJECTS, mask=0.5)
    assert not torch.equal(first(given)["loss"], second(given)["loss"])
    load_weights(path, second)
    assert torch.equal(first(given)["loss"], second(given)["loss"])
    assert {k: v.dtype for k, v in load_file(path).items()} == {k: torch.float32 for k in first.state_dict()}


def test_a_model_comes_back_with_its_configuration_its_vocabulary_and_its_standards(path: Path, tmp_path: Path) -> None:
    given = batch(OBJECTS)
    model = load_model(path)
    assert not model.training and model.config == SMALL and model.vocabulary == WORDS
    assert torch.equal(model.embed_scalar.center, made().embed_scalar.center)
    with torch.inference_mode():
        assert torch.equal(model.summary(model.encode(given)), made().summary(made().encode(given)))
    of = Vocabulary(8, 3, ("curves",), ("V mJy",))
    other = load_model(save(tmp_path / "other", made(of=of, layers=1)))
    assert other.vocabulary == of and other.config.layers == 1
    assert json.loads(path.with_name("model.json").read_text())["vocabulary"] == WORDS.as_json()


def test_half_precision_is_saved_as_float32(tmp_path: Path) -> None:
    state = made().bfloat16().state_dict()
    save_weights(tmp_path / "w.safetensors", state)
    saved = load_file(tmp_path / "w.safetensors")
    assert all(v.dtype == torch.float32 and torch.equal(v, state[k].float()) for k, v in saved.items())


def test_the_same_weights_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    state = made().state_dict()
    save_weights(tmp_path / "again.safetensors", dict(reversed(state.items())))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("changed", [{"width": 64}, {"layers": 3}, {"layers": 1}, {"frequencies": 9}, {"decoder_layers": 3}])
def test_weights_of_another_configuration_are_a_user_error(path: Path, changed: dict[str, int]) -> None:
    said = "weights.safetensors are of another model configuration"
    with pytest.raises(UserError, match=said):
        load_weights(path, made(**changed))
    description = path.with_name("model.json")
    content = json.loads(description.read_text())
    content["model"] |= changed
    description.write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        load_model(path)


@pytest.mark.parametrize("changed", [{"patch": 16}, {"bands": ["V mag"]}, {"measured": ["teff"]}])
def test_weights_of_another_vocabulary_are_a_user_error(path: Path, changed: dict[str, Any]) -> None:
    description = path.with_name("model.json")
    content = json.loads(description.read_text())
    content["vocabulary"] |= changed
    description.write_text(json.dumps(content))
    with pytest.raises(UserError, match="weights.safetensors are of another model configuration"):
        load_model(path)


WORD = '{"model": {}, "vocabulary": {"patch": %s, "epochs": 4, "inputs": %s, "bands": [], "measured": []}}'


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "{}", '{"model": {}}', '{"model": {"width": 32}, "vocabulary": {}}',
                                  '{"model": {"widht": 32}, "vocabulary": {}}', '{"model": 3, "vocabulary": 4}', WORD % (8, 3),
                                  WORD % ('"8"', "[]")])  # fmt: skip
def test_a_missing_or_damaged_description_is_a_user_error(path: Path, text: str | None) -> None:
    description = path.with_name("model.json")
    description.unlink()
    if text is not None:
        description.write_text(text)
    with pytest.raises(UserError, match="model.json"):
        load_model(path)


@pytest.mark.parametrize("keep", [0, 5, 500, -100])
def test_damaged_or_missing_weights_are_a_user_error(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    for load in (lambda: load_weights(path, made()), lambda: load_model(path)):
        with pytest.raises(UserError, match="can't read weights .*weights.safetensors"):
            load()
    path.unlink()
    with pytest.raises(UserError, match="can't read weights"):
        load_model(path)
