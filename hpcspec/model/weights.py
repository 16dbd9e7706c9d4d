"""Weights on disk: safetensors beside the configuration, loaded without pickle."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from hpcspec.atomic import replacing
from hpcspec.errors import UserError


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
