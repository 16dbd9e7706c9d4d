"""A model on disk: weights as safetensors, and beside them what it takes to build it, as JSON; nothing is pickled."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hpcspec.atomic import read_json, replacing, write_json
from hpcspec.config import Model
from hpcspec.errors import UserError
from hpcspec.model.unified import Unified
from hpcspec.stream.vocabulary import Vocabulary


def save_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write a state dict as float32 safetensors, atomically."""
    with replacing(path) as temporary:
        save_file({k: v.detach().float().contiguous().cpu() for k, v in sorted(state.items())}, temporary)


def load_weights(path: Path, module: nn.Module) -> None:
    """Load safetensors into a module.

    Raises UserError if the file is missing or damaged, or belongs to a module of another shape.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"can't read weights {path}: {error}") from error
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        fault = str(error).splitlines()[-1].strip()
        raise UserError(f"the weights in {path} are of another model configuration: {fault}") from error


def save_model(weights: Path, config: Model, vocabulary: Vocabulary, state: dict[str, torch.Tensor]) -> None:
    """Write `weights` and, beside it, `model.json` with the configuration and the vocabulary."""
    write_json(weights.with_name("model.json"), {"model": config.model_dump(), "vocabulary": vocabulary.as_json()})
    save_weights(weights, state)


def described(weights: Path) -> Unified:
    """The model that stands beside weights, without them.

    Raises UserError if its description is missing or damaged.
    """
    path = weights.with_name("model.json")
    content = read_json(path)
    try:
        return Unified(Model(**content["model"]), Vocabulary.from_json(content["vocabulary"]))  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged: pretrain again") from error


def load_model(weights: Path) -> Unified:
    """The model that `save_model` wrote, in evaluation mode.

    Raises UserError if a file is missing or damaged, or they don't belong together.
    """
    model = described(weights)
    load_weights(weights, model)
    return model.eval()
