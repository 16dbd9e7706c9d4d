"""The model in DeepSpeed's hands: what the YAML says about ZeRO, precision and accumulation, and its checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from hpcspec.atomic import read_json, write_json
from hpcspec.config import Config, Training
from hpcspec.errors import UserError
from hpcspec.model.unified import Unified, hidden_matrices, set_standards
from hpcspec.stream.standards import Standards
from hpcspec.stream.vocabulary import Vocabulary
from hpcspec.training.ranks import Ranks

COMPLETE = "complete.json"


def deepspeed_config(training: Training) -> dict[str, Any]:
    """DeepSpeed's own configuration for these settings."""
    zero: dict[str, Any] = {"stage": training.zero.stage}
    if training.optimizer == "muon" and training.zero.stage == 3:
        zero["reduce_scatter"] = False  # it needs whole gradients
    if training.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if training.zero.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # a micro-batch is a token budget, which DeepSpeed has no notion of
        "gradient_accumulation_steps": training.accumulation,
        # Muon's steps have a size of their own, which clipping would take for that of a gradient.
        "gradient_clipping": training.clip if training.optimizer == "adamw" else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "steps_per_print": 2**31,
    }


def learning_rate(training: Training, step: int) -> float:
    """Linear warm-up, then cosine to a hundredth; a factor of training.lr."""
    if step < training.warmup:
        return (step + 1) / training.warmup
    done = min(1.0, (step - training.warmup) / max(1, training.steps - training.warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def build(config: Config, vocabulary: Vocabulary, measured: Standards, ranks: Ranks) -> Any:
    """DeepSpeed's engine around a freshly initialised model, the same on every rank."""
    if ranks.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # DeepSpeed would compile Muon, which needs a compiler
    # DeepSpeed calls torch by names that are going out of use, and every call would say so.
    warnings.filterwarnings("ignore", r".*torch\.distributed\.\w+. is deprecated", FutureWarning)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Without this DeepSpeed compiles a shared-memory reduction at the first start, which needs a compiler; gloo does it too.
    __compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(config.seed)
    model = Unified(config.model, vocabulary, config.training.activation_checkpointing)
    set_standards(model, measured)
    optimizer = _optimizer(model, config.training, ranks)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(config.training, step))
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=schedule, config=deepspeed_config(config.training)
    )
    return engine


def _optimizer(model: Unified, training: Training, ranks: Ranks) -> torch.optim.Optimizer:
    """AdamW, or DeepSpeed's Muon for the matrices of hidden layers and AdamW for the rest."""
    fused = ranks.device.type == "cuda" and not training.zero.offload_optimizer
    adam: dict[str, Any] = {"lr": training.lr, "betas": (0.9, 0.98)}
    matrices = hidden_matrices(model, model.answers_by) if training.optimizer == "muon" else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": [p for p in rest if p.ndim > 1], "weight_decay": training.weight_decay},
              {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, **adam, fused=fused)
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for p in model.parameters():
        p.use_muon = id(p) in chosen  # type: ignore[attr-defined]
    of_muon = {"params": matrices, "use_muon": True, "lr": training.matrix_lr, "momentum": 0.95,
               "weight_decay": training.weight_decay}  # fmt: skip
    of_adam = [{**group, "use_muon": False, **adam, "eps": 1e-8} for group in groups]
    return MuonWithAuxAdam([of_muon, *of_adam], torch.optim.AdamW, {"fused": fused})


def save(engine: Any, folder: Path, step: int, content: dict[str, Any], ranks: Ranks, keep: int) -> None:
    """Save a checkpoint; it counts only once `complete.json`, written last, is there. All ranks call this."""
    tag = f"step{step:08d}"
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    if ranks.rank == 0:
        write_json(folder / tag / COMPLETE, {"step": step, "world_size": ranks.size, **content})
        for old in complete_checkpoints(folder)[:-keep]:
            (old / COMPLETE).unlink()
            shutil.rmtree(old)
    torch.distributed.barrier()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The usable checkpoints in a folder, oldest first."""
    return sorted(p.parent for p in folder.glob(f"step*/{COMPLETE}"))


def restore(engine: Any, folder: Path, ranks: Ranks, expected: dict[str, Any]) -> dict[str, Any] | None:
    """Load the newest complete checkpoint and return what was saved with it; None if there is none.

    expected: what must have been saved with it, unchanged. Raises UserError if that differs, or if the checkpoint was written
    by another number of ranks.
    """
    found = complete_checkpoints(folder)
    if not found:
        return None
    content: dict[str, Any] = read_json(found[-1] / COMPLETE) or {}
    if content["world_size"] != ranks.size:
        raise UserError(f"checkpoint {found[-1]} was written by {content['world_size']} ranks, this job has {ranks.size}: "
                        f"start it on {content['world_size']}")  # fmt: skip
    changed = [k for k, v in expected.items() if content[k] != v]
    if changed:
        raise UserError(f"checkpoint {found[-1]} was written with another {' and '.join(changed)} than this run's: "
                        "use a new run folder, or remove the checkpoints to start again")  # fmt: skip
    path, _ = engine.load_checkpoint(str(folder), tag=found[-1].name)
    if path is None:
        raise UserError(f"checkpoint {found[-1]} can't be loaded: delete it to go on from the one before")
    return content


def full_weights(engine: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The float32 weights of the newest complete checkpoint, put together from all ranks' shares. One rank calls this."""
    if engine.zero_optimization_stage() == 0:
        return engine.module.state_dict()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=complete_checkpoints(folder)[-1].name)
