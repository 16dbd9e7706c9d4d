"""Pretraining: the loop from stream to weights, resumable, the same with every ZeRO stage."""

from __future__ import annotations

import json
import logging
import resource
import signal
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from hpcspec.atomic import read_json, write_text
from hpcspec.comm import world
from hpcspec.config import Config
from hpcspec.errors import Stopped, UserError
from hpcspec.model.weights import save_model
from hpcspec.stream.batch import Batch
from hpcspec.stream.batches import training_batches
from hpcspec.stream.index import open_index
from hpcspec.stream.standards import standards
from hpcspec.stream.stream import Stream, joined_state
from hpcspec.stream.tokens import Hiding
from hpcspec.stream.vocabulary import Vocabulary, vocabulary
from hpcspec.training import engine as ds
from hpcspec.training.ranks import Ranks, start

log = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Meter:
    """What happened since the last line of metrics.jsonl, on this rank."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.sums: Counter[str] = Counter()

    def add(self, **values: float) -> None:
        """Add to the sums."""
        self.sums.update(values)

    def line(self, ranks: Ranks, names: Sequence[str]) -> dict[str, float]:
        """Losses averaged and rates summed over the ranks; starts the next interval."""
        seconds = time.monotonic() - self.since
        keys = ["micro", "spectra", "tokens", "wait", *names]
        total = dict(zip(keys, ranks.sums([float(self.sums[k]) for k in keys]), strict=True))
        if ranks.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(ranks.device) / 2**20
        else:
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        self.__init__()  # type: ignore[misc]
        line = {name: total[name] / max(1, total["micro"]) for name in names}
        return line | {"spectra_s": total["spectra"] / seconds, "tokens_s": total["tokens"] / seconds,
                       "data_wait": total["wait"] / seconds / ranks.size, "memory_mib": memory, "seconds": seconds}  # fmt: skip


def pretrain(config: Config, shards: Sequence[Path], checkpoints: Path, metrics: Path, weights: Path) -> dict[str, Any]:
    """Train on every rank of this job until `training.steps`, going on from the newest checkpoint; write `weights`.

    Returns the last metrics. Raises Stopped when asked to stop by SIGUSR2 or SIGTERM (after saving), UserError for a
    configuration, data or checkpoint that don't fit together.
    """
    training = config.training
    ranks = start(training.threads)
    comm = world()
    index = open_index(shards, comm)
    model = config.model
    words = vocabulary(index.shards, model.patch, model.epochs, model.inputs, model.ignore)
    if not ("spectra" in words.inputs or words.bands or words.measured):
        surveys = ", ".join(sorted({s.survey for s in index.shards}))
        raise UserError(f"{surveys}: none of the {', '.join(model.inputs)} that the model reads (model.inputs)")
    known = ds.complete_checkpoints(checkpoints)
    if known and training.changed_data == "new_epoch":  # new data may have names that the model doesn't know
        words = Vocabulary.from_json((read_json(known[-1] / ds.COMPLETE) or {})["model"])
    stream = Stream(index, config.seed, training.lanes, training.block, training.shuffle_blocks, vocabulary=words,
                    share=config.adapt.held_out, temperature=training.temperature, weights=training.weights,
                    rank=ranks.rank, size=ranks.size, comm=comm)  # fmt: skip
    engine = ds.build(config, words, standards(index, words, comm), ranks)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    fixed = {"model": {**model.model_dump(mode="json"), **words.as_json()},
             "training": {k: v for k, v in training.says().items() if k != "steps"}}
    saved = ds.restore(engine, checkpoints, ranks, fixed)
    step = 0
    if saved:
        stream.restore(saved["stream"], training.changed_data == "new_epoch")
        step = saved["step"]
    if ranks.rank == 0:
        _cut(metrics, step)
        log.info("%s: %.2f M parameters, %d objects, %d ranks on %s, ZeRO-%d, %s at step %d of %d", config.name, parameters / 1e6,
                 len(index), ranks.size, ranks.device.type, training.zero.stage, "going on" if saved else "starting",
                 step, training.steps)  # fmt: skip
    hiding = Hiding(*training.masks, training.hide_whole, config.seed)
    batches = training_batches(stream, training.tokens_per_batch, hiding, training.prefetch, ranks.device)
    try:
        return _loop(config, words, engine, batches, ranks, step, fixed, checkpoints, metrics, weights)
    finally:
        batches.close()  # before MPI ends


def _loop(config: Config, vocabulary: Vocabulary, engine: Any, batches: Generator[Batch, None, None], ranks: Ranks, step: int,
          fixed: dict[str, Any], checkpoints: Path, metrics: Path, weights: Path) -> dict[str, Any]:  # fmt: skip
    training = config.training
    asked = {"stop": False}

    def ask(number: int, _: FrameType | None) -> None:
        log.warning("caught %s: saving at the next step", signal.Signals(number).name)
        asked["stop"] = True

    previous = {s: signal.signal(s, ask) for s in STOP_SIGNALS}
    meter, nonfinite, line, state = Meter(), 0, {}, {}
    try:
        engine.train()
        while step < training.steps:
            # One seed per step and rank, so that a resumed run draws the same dropout without saving generator states.
            torch.manual_seed(int(np.random.SeedSequence([config.seed, step, ranks.rank]).generate_state(1, np.uint64)[0] >> 1))
            micro = 0
            while micro < training.accumulation:
                waited = time.monotonic()
                batch, stop = _agreed_next(batches, ranks, asked["stop"])
                meter.add(wait=time.monotonic() - waited)
                state = batch.state or {}
                losses = engine(batch, training.summary_share, training.contrastive, training.reconstruction, training.halves)
                if ranks.any(not torch.isfinite(losses["loss"]).item())[0]:
                    nonfinite += 1
                    log.warning("step %d: non-finite loss on some rank, batch skipped (%d so far)", step, nonfinite)
                    if nonfinite > training.max_nonfinite:
                        raise UserError(f"{nonfinite} non-finite losses: lower training.lr or look at the data")
                    continue
                engine.backward(losses["loss"])
                engine.step()
                micro += 1
                meter.add(micro=1, spectra=len(batch), tokens=sum(batch.lengths), **{k: v.item() for k, v in losses.items()})
            step += 1
            if step % training.log_every == 0 or step == training.steps:
                names = [k for k in losses]
                line = {"step": step, "lr": engine.get_lr()[0], **meter.line(ranks, names), "nonfinite": nonfinite}
                if ranks.rank == 0:
                    with open(metrics, "a") as file:
                        file.write(json.dumps(line) + "\n")
                    log.info("pretrain: step %d of %d, loss %.3f, %.0f spectra/s, data wait %.0f %%", step, training.steps,
                             line["loss"], line["spectra_s"], 100 * line["data_wait"])  # fmt: skip
            if step % training.save_every == 0 or step == training.steps or stop:
                ds.save(engine, checkpoints, step, {**fixed, "stream": joined_state(ranks.gather(state))}, ranks, training.keep)
                if ranks.rank == 0:
                    log.info("checkpoint saved at step %d", step)
            if stop and step < training.steps:
                raise Stopped(f"stopped at step {step} of {training.steps} after saving: submit the same job again to go on")
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
    if ranks.rank == 0:
        save_model(weights, config.model, vocabulary, ds.full_weights(engine, checkpoints))
    torch.distributed.barrier()
    return line or (_lines(metrics) or [{}])[-1]


def _agreed_next(batches: Iterator[Batch], ranks: Ranks, asked: bool) -> tuple[Batch, bool]:
    """This rank's next batch, and whether any rank was asked to stop.

    Raises UserError on all ranks if any has none, before anyone waits for it in the model's own communication.
    """
    batch, failure = None, None
    try:
        batch = next(batches)
    except Exception as error:
        failure = error
    failed, stop = ranks.any(failure is not None, asked)
    if not failed:
        assert batch is not None
        return batch, stop
    reasons = ranks.gather(failure and f"{type(failure).__name__}: {failure}")
    rank, reason = next((rank, reason) for rank, reason in enumerate(reasons) if reason)
    raise UserError(f"rank {rank} has no data: {reason.removeprefix('UserError: ')}") from failure


def _lines(metrics: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that was torn by a kill is left out."""
    lines = []
    for text in metrics.read_text().splitlines() if metrics.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _cut(metrics: Path, step: int) -> None:
    """Drop the lines of steps after `step`: they were not saved and will be done again."""
    write_text(metrics, "".join(json.dumps(line) + "\n" for line in _lines(metrics) if line["step"] <= step))
