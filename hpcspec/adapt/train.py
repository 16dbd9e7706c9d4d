"""Adaptation: a head on the pretrained encoder, calibrated, and measured on objects that nothing was trained on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import nn

from hpcspec.adapt.heads import Head, Targets, Task, head_loss, make_task, targets
from hpcspec.adapt.labels import LabelSet, describe, load_labels, wanted
from hpcspec.adapt.report import held_out_report
from hpcspec.config import Adapt, Config
from hpcspec.errors import UserError
from hpcspec.model.attention import Packing
from hpcspec.model.spectral import Encoded, SpectralModel
from hpcspec.model.weights import load_weights, save_weights
from hpcspec.stream.batches import Batch, collate, in_order, prefetch
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.tokens import LOG_ERROR, Tokens, tokenize

log = logging.getLogger(__name__)
WITHIN_ONE_SIGMA = 0.6827


@dataclass(frozen=True)
class Split:
    """Numbers of the objects that train the head, calibrate its errors, and measure it."""

    train: np.ndarray
    calibration: np.ndarray
    test: np.ndarray


def split(index: DataIndex, labelled: np.ndarray, seed: int, adapt: Adapt) -> Split:
    """By place on the sky, so that no object is on two sides; `test` was held out of pretraining too.

    Raises UserError if a part is empty.
    """
    held = index.sky_fraction(seed) < adapt.held_out
    calibrating = index.sky_fraction(seed + 1) < adapt.calibration
    parts = Split(*(np.flatnonzero(labelled & mask) for mask in (~held & ~calibrating, ~held & calibrating, held)))
    if min(len(parts.train), len(parts.calibration), len(parts.test)) < 5:
        raise UserError(f"{labelled.sum()} labelled objects are too few to train, calibrate and test a head "
                        f"({len(parts.train)}/{len(parts.calibration)}/{len(parts.test)}, at least 5 each): give more labels")  # fmt: skip
    return parts


def labelled_objects(labels: LabelSet) -> np.ndarray:
    """(n,) bool: whether an object has any label."""
    known = [np.isfinite(v) for v in labels.values.values()]
    return np.any([labels.object_class != "", *known], axis=0)


class Adapted(nn.Module):
    """Encoder and head, and where the training objects' summaries lie."""

    anomaly_mean: torch.Tensor
    anomaly_whitening: torch.Tensor

    def __init__(self, model: SpectralModel, head: Head):
        super().__init__()
        self.model, self.head = model, head
        width = model.config.width
        self.register_buffer("anomaly_mean", torch.zeros(width))
        self.register_buffer("anomaly_whitening", torch.eye(width))

    def anomaly(self, summary_ND: torch.Tensor) -> torch.Tensor:
        """(N,) root mean square of the whitened summary: Mahalanobis distance from the training objects over √D, about 1
        for a typical one."""
        return ((summary_ND - self.anomaly_mean) @ self.anomaly_whitening).square().mean(-1).sqrt()


def packed_budget(items: Sequence[Tokens], budget: int, order: np.ndarray) -> Iterator[list[int]]:
    """Places of items in groups of at most `budget` tokens, in the given order."""
    group: list[int] = []
    used = 0
    for i in order.tolist():
        size = len(items[i].values) + 1
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(i)
        used += size
    if group:
        yield group


def _noisy(tokens: Tokens, rng: np.random.Generator, noise: float, drop: float) -> Tokens:
    """A copy with noise of up to `noise` σ added to flux and local flux alike, and a share of its patches left out."""
    kept = rng.random(len(tokens.values)) >= drop
    kept[rng.integers(len(kept))] = True
    values, sigma = tokens.values[kept].copy(), tokens.sigma[kept]
    good = np.isfinite(sigma)
    size = rng.uniform(0, noise) if noise else 0.0
    added = np.where(good, np.minimum(np.where(good, sigma, 0), 10 ** LOG_ERROR[1]), 0)
    added = (size * rng.standard_normal(sigma.shape, np.float32) * added).astype(np.float32)
    values[..., 0] += added
    values[..., 2] += added / np.maximum(np.abs(values[..., 0]), 0.1)
    values[..., 1] += np.where(good, 0.5 * np.log10(1 + size**2), 0).astype(np.float32)
    return replace(tokens, values=values, sigma=sigma, coordinates=tokens.coordinates[kept])


def adapt(config: Config, shards: Sequence[Path], weights: Path, folder: Path) -> Task:
    """Train a head as `config.adapt` says; write `folder/weights.safetensors` and `folder/task.json`.

    Where the configuration maps no label columns there is nothing to train: the catalogue then has embeddings only.
    Raises UserError if there are no or too few labels.
    """
    settings = config.adapt
    torch.set_num_threads(settings.threads)
    torch.manual_seed(config.seed)
    index = open_index(shards)
    model = SpectralModel(config.model)
    load_weights(weights, model)
    labelled = any(wanted(s.labels) for s in config.surveys.values())
    labels = load_labels(index, config.surveys)
    mask = labelled_objects(labels) if labelled else np.ones(len(index), bool)
    parts = split(index, mask, config.seed, settings)
    task = make_task(labels, parts.train)
    if labelled and not task.parameters and not task.classes:
        raise UserError("too few labels for any class (5 objects) or parameter (10 objects): give more labels")
    adapted = Adapted(model, Head(task, config.model.width, config.model.heads, settings.dropout))
    numbers = np.concatenate([parts.train, parts.calibration, parts.test])
    items = {n: tokenize(p, config.model.patch) for n, p in in_order(index, np.sort(numbers))}
    log.info("adapt: labels %s; %d training, %d calibration, %d held-out objects", describe(labels),
             *map(len, (parts.train, parts.calibration, parts.test)))  # fmt: skip
    limit = _fit_anomaly(adapted, [items[n] for n in parts.train], settings)
    began = time.monotonic()
    report: dict[str, Any] = {}
    if labelled:
        _fit(adapted, items, labels, parts.train, settings, config.seed)
        task = _calibrate(adapted, items, labels, task, parts.calibration, settings)
        report = {"mode": settings.mode, "seconds": time.monotonic() - began}
        report |= held_out_report(config, index, labels, task, parts, _outputs(adapted, items, parts.test, settings))
    task = replace(task, anomaly_limit=limit, separate_encoder=labelled and settings.mode == "full", report=report)
    save_weights(folder / "weights.safetensors", adapted.state_dict())
    task.save(folder / "task.json")
    return task


def _encoded_frozen(adapted: Adapted, items: dict[int, Tokens], numbers: np.ndarray, budget: int) -> dict[int, torch.Tensor]:
    """The frozen encoder's tokens (t+1, D) of each object, float16."""
    out: dict[int, torch.Tensor] = {}
    listed = [items[n] for n in numbers.tolist()]
    adapted.eval()
    with torch.inference_mode():
        for group in packed_budget(listed, budget, np.arange(len(listed))):
            batch = collate(numbers[group].tolist(), [listed[i] for i in group])
            encoded = adapted.model.encode(batch)
            for k, number in enumerate(batch.objects.tolist()):
                out[number] = encoded.tokens[encoded.packing.offsets[k] : encoded.packing.offsets[k + 1]].half()
    return out


def _fit(adapted: Adapted, items: dict[int, Tokens], labels: LabelSet, train: np.ndarray, settings: Adapt, seed: int) -> None:
    """AdamW with a one-cycle cosine over `epochs`; of the head alone, or of encoder and head with augmented spectra."""
    full = settings.mode == "full"
    task = adapted.head.task
    groups = [{"params": list(adapted.head.parameters()), "lr": settings.lr}]
    if full:
        groups.append({"params": [p for n, p in adapted.model.named_parameters() if n.startswith(("embed", "encoder", "norm."))],
                       "lr": settings.encoder_lr})  # fmt: skip
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    frozen = {} if full else _encoded_frozen(adapted, items, train, settings.tokens_per_batch)

    def noisy_batches(epoch: int) -> Iterator[tuple[Batch, Targets]]:
        rng = np.random.default_rng([seed, epoch])
        listed = [_noisy(items[n], rng, settings.noise, settings.drop_tokens) for n in train.tolist()]
        for group in packed_budget(listed, settings.tokens_per_batch, rng.permutation(len(listed))):
            batch = collate(train[group].tolist(), [listed[i] for i in group])
            yield batch, targets(labels, task, batch.objects)

    def frozen_batches(epoch: int) -> Iterator[tuple[Encoded, Targets]]:
        rng = np.random.default_rng([seed, epoch])
        listed = [items[n] for n in train.tolist()]
        for group in packed_budget(listed, settings.tokens_per_batch, rng.permutation(len(listed))):
            numbers = train[sorted(group, key=lambda i: len(listed[i].values))]
            packing = Packing(tuple(len(frozen[n]) for n in numbers.tolist()))
            yield Encoded(torch.cat([frozen[n] for n in numbers.tolist()]).float(), packing), targets(labels, task, numbers)

    batches: Callable[[int], Iterator[Any]] = noisy_batches if full else frozen_batches
    per_epoch = max(1, sum(1 for _ in packed_budget([items[n] for n in train.tolist()], settings.tokens_per_batch, np.arange(len(train)))))
    total = settings.epochs * per_epoch
    base = [g["lr"] for g in optimizer.param_groups]
    step, shown = 0, time.monotonic()
    for epoch in range(settings.epochs):
        adapted.train()
        adapted.model.train(full)
        losses = []
        for given, target in prefetch(batches(epoch), 4):
            factor = min(1.0, (step + 1) / (0.05 * total)) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * max(factor, 1e-3)
            loss = head_loss(adapted.head(adapted.model.encode(given) if full else given), target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            if torch.isfinite(loss):
                optimizer.step()
            losses.append(loss.item())
            step += 1
        if time.monotonic() - shown > 5 or epoch + 1 == settings.epochs:
            shown = time.monotonic()
            log.info("adapt: epoch %d of %d, loss %.3f", epoch + 1, settings.epochs, np.mean(losses))


def _outputs(adapted: Adapted, items: dict[int, Tokens], numbers: np.ndarray, settings: Adapt) -> tuple[np.ndarray, ...]:
    """Logits, means, log variances of objects, in the order of `numbers`."""
    adapted.eval()
    listed = [items[n] for n in numbers.tolist()]
    found: dict[int, list[np.ndarray]] = {}
    with torch.inference_mode():
        for group in packed_budget(listed, settings.tokens_per_batch, np.arange(len(listed))):
            batch = collate(numbers[group].tolist(), [listed[i] for i in group])
            output = [o.numpy() for o in adapted.head(adapted.model.encode(batch))]
            found.update({n: [o[k] for o in output] for k, n in enumerate(batch.objects.tolist())})
    return tuple(np.array([found[n][k] for n in numbers.tolist()]) for k in range(3))


def _calibrate(adapted: Adapted, items: dict[int, Tokens], labels: LabelSet, task: Task, numbers: np.ndarray,
               settings: Adapt) -> Task:  # fmt: skip
    """Scale the errors so that 68 % of these objects lie within one, and the logits to the best likelihood."""
    logits, mean, log_variance = _outputs(adapted, items, numbers, settings)
    target = targets(labels, task, numbers)
    scales = []
    for k in range(len(task.parameters)):
        known = np.isfinite(target.value[:, k].numpy())
        z = np.abs(target.value[:, k].numpy() - mean[:, k])[known] / np.exp(0.5 * log_variance[known, k])
        scales.append(float(np.quantile(z, WITHIN_ONE_SIGMA)) if known.sum() >= 5 else 1.0)
    temperature = 1.0
    known_class = target.object_class >= 0
    if len(task.classes) > 1 and known_class.any():
        scores, classes = torch.tensor(logits)[known_class], target.object_class[known_class]
        candidates = np.geomspace(0.25, 4, 41)
        losses = [nn.functional.cross_entropy(scores / t, classes).item() for t in candidates]
        temperature = float(candidates[int(np.argmin(losses))])
    return replace(task, error_scale=tuple(scales), temperature=temperature)


def _fit_anomaly(adapted: Adapted, items: list[Tokens], settings: Adapt) -> float:
    """Mean and whitening of the pretrained summaries of the training objects (Ledoit & Wolf 2004 covariance); returns the
    anomaly score that 99.9 % of them stay below."""
    adapted.eval()
    summaries = []
    with torch.inference_mode():
        for group in packed_budget(items, settings.tokens_per_batch, np.arange(len(items))):
            batch = collate(group, [items[i] for i in group])
            summaries.append(adapted.model.summary(adapted.model.encode(batch)).numpy())
    found = np.concatenate(summaries)
    fitted = LedoitWolf().fit(found.astype(np.float64))
    values, vectors = np.linalg.eigh(fitted.covariance_)
    whitening = vectors / np.sqrt(np.maximum(values, 1e-9 * values.max()))
    adapted.anomaly_mean.copy_(torch.tensor(fitted.location_))
    adapted.anomaly_whitening.copy_(torch.tensor(whitening))
    return float(np.quantile(adapted.anomaly(torch.tensor(found)).numpy(), 0.999))
