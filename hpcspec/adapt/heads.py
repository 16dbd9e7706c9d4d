"""Heads: an attention-pooled reading of the encoder's tokens as class and parameters with errors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hpcspec.adapt.calibration import NORMAL, Calibration
from hpcspec.adapt.labels import LabelSet
from hpcspec.adapt.redshift import STARS, Redshift, estimate, redshift_loss
from hpcspec.adapt.refine import Refine, combined
from hpcspec.atomic import write_json
from hpcspec.model.attention import AttentionPool
from hpcspec.model.unified import Encoded, Unified
from hpcspec.stream.batch import Batch
from hpcspec.stream.vocabulary import PERIOD, Vocabulary

LOG_VARIANCE = (-10.0, 5.0)
REDSHIFT, REDSHIFT_WEIGHT = "z", 0.3


@dataclass(frozen=True)
class Task:
    """What a head predicts, and the numbers that turn its outputs into the catalogue's.

    center, spread: standardise each parameter (median, 1.4826·MAD of the training labels); lowest, highest: the range of
    the training labels; applies: the classes each parameter was trained for (empty: all); error_power, error_scale: of each
    (standardised) error, then a factor on it, so that they cover 68 % of the calibration objects, and error_tail: how many of
    them cover 95 % (`calibrated`);
    temperature: divisor of the class logits; anomaly_limit: 99.9 % of the training objects have a smaller anomaly score;
    separate_encoder: the head's encoder was trained further, so it is not the one that makes the embeddings; withheld: scalars
    that are labels too, which the head doesn't get to read; refine: the shape of the fit that refines the parameters, if there
    is one, and the scales of its errors and of the head's by which they are combined.
    """

    classes: tuple[str, ...]
    parameters: tuple[str, ...]
    center: tuple[float, ...]
    spread: tuple[float, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    applies: tuple[tuple[str, ...], ...]
    error_scale: tuple[float, ...] = ()
    error_power: tuple[float, ...] = ()
    error_tail: tuple[float, ...] = ()
    temperature: float = 1.0
    anomaly_limit: float = float("inf")
    separate_encoder: bool = False
    withheld: tuple[str, ...] = ()
    refine: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: Path) -> Task:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        lists = {k: tuple(v) for k, v in content.items() if isinstance(v, list) and k != "applies"}
        return Task(**{**content, **lists, "applies": tuple(tuple(a) for a in content["applies"])})


def without(batch: Batch, names: Sequence[str], vocabulary: Vocabulary) -> Batch:
    """The batch without the scalars of these names."""
    if not names:
        return batch
    chosen = torch.tensor([vocabulary.names.index(name) for name in names], device=batch.order.device)
    lost = torch.zeros_like(batch.order, dtype=torch.bool)
    lost[: len(batch.scalars.name)] = torch.isin(batch.scalars.name, chosen)
    if PERIOD in names:
        batch = replace(batch, curves=batch.curves._replace(phases=torch.full_like(batch.curves.phases, torch.nan)))
    return batch.take(~lost[batch.order])


def make_task(labels: LabelSet, train: np.ndarray) -> Task:
    """The task that the labels of the training objects (numbers) define; a class with fewer than 5 members is left out."""
    classes = tuple(c for c in labels.classes if (labels.object_class[train] == c).sum() >= 5)
    parameters = tuple(p for p, v in labels.values.items() if np.isfinite(v[train]).sum() >= 10)
    stats: list[tuple[float, float, float, float]] = []
    applies = []
    for p in parameters:
        v = labels.values[p][train]
        known = v[np.isfinite(v)]
        middle = float(np.median(known))
        width = float(1.4826 * np.median(np.abs(known - middle))) or float(known.std()) or 1.0
        stats.append((middle, width, float(known.min()), float(known.max())))
        share = {c: float(np.isfinite(v[labels.object_class[train] == c]).mean()) for c in classes}
        applies.append(tuple(c for c in classes if share[c] >= 0.02))
    center, spread, lowest, highest = (tuple(of[k] for of in stats) for k in range(4))
    untold = ((of,) * len(parameters) for of in Calibration())
    return Task(classes, parameters, center, spread, lowest, highest, tuple(applies), *untold)


class Output(NamedTuple):
    """Logits (N, classes), means and log variances (N, parameters), standardised; redshift: logits (N, classes, bins), if z is
    one of the parameters."""

    logits: torch.Tensor
    mean: torch.Tensor
    log_variance: torch.Tensor
    redshift: torch.Tensor | None = None


class Head(nn.Module):
    """Attention pool, one hidden layer, then classes and parameters; the redshift has a way of its own."""

    def __init__(self, task: Task, width: int, heads: int, dropout: float):
        super().__init__()
        self.task = task
        self.pool = AttentionPool(width, heads)
        self.hidden = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout))
        self.logits = nn.Linear(2 * width, len(task.classes))
        self.mean = nn.Linear(2 * width, len(task.parameters))
        self.log_variance = nn.Linear(2 * width, len(task.parameters))
        self.z = task.parameters.index(REDSHIFT) if REDSHIFT in task.parameters else None
        self.redshift = Redshift(width, 2 * width, len(task.classes)) if self.z is not None else None

    @property
    def outputs(self) -> tuple[nn.Module, ...]:
        """Its last layers."""
        return self.logits, self.mean, self.log_variance

    def forward(self, encoded: Encoded) -> Output:
        h = self.hidden(self.pool(encoded.tokens, encoded.packing))
        mean, log_variance = self.mean(h), self.log_variance(h).clamp(*LOG_VARIANCE)
        if self.redshift is None or self.z is None:
            return Output(self.logits(h), mean, log_variance)
        distribution, logits = self.redshift(encoded, h), self.logits(h)
        likely = torch.zeros(len(h), dtype=torch.long, device=h.device)
        if self.task.classes:
            logits = logits + distribution.logsumexp(-1) - math.log(distribution.shape[-1])
            likely = logits.argmax(1)
        value, error = estimate(distribution.detach()[torch.arange(len(h), device=h.device), likely])
        center, spread = self.task.center[self.z], self.task.spread[self.z]
        of_z = torch.arange(mean.shape[1], device=mean.device) == self.z
        mean = torch.where(of_z, ((value - center) / spread)[:, None].to(mean.dtype), mean)
        log_variance = torch.where(of_z, 2 * (error / spread).log()[:, None].to(mean.dtype), log_variance)
        return Output(logits, mean, log_variance, distribution)


def encoded(model: Unified, batch: Batch) -> Encoded:
    """What the encoder says, f4, in bfloat16 on a GPU."""
    device = batch.order.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        found = model.encode(batch)
    return replace(found, tokens=found.tokens.float())


class Answers(NamedTuple):
    """Logits (N, classes), means and log variances (N, parameters), standardised, of the head and of the fit."""

    logits: Any
    mean: Any
    log_variance: Any
    fitted: Any = None
    fitted_log_variance: Any = None

    def together(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Mean and log variance (N, parameters) of both, of arrays."""
        if self.fitted is None:
            return self.mean, self.log_variance
        return combined(self.mean, self.log_variance, self.fitted, self.fitted_log_variance, task.refine["scales"])


@dataclass(frozen=True)
class Targets:
    """Labels of a batch in the head's terms: object_class (N,) int64, -1 unknown; value, error (N, parameters), NaN unknown;
    z (N,), the redshift itself, NaN unknown; moved (N,) bool: spectra that were moved so far that they don't teach classes."""

    object_class: torch.Tensor
    value: torch.Tensor
    error: torch.Tensor
    z: torch.Tensor
    moved: torch.Tensor | None = None

    def to(self, device: torch.device) -> Targets:
        """The same on a device."""
        there = {name: x.to(device) for name, x in vars(self).items() if x is not None}
        return Targets(**there)


def targets(labels: LabelSet, task: Task, numbers: np.ndarray, shifts: np.ndarray | float = 0.0,
            moves: np.ndarray | None = None) -> Targets:  # fmt: skip
    """The targets of objects with these numbers, whose spectra are moved by `shifts` (N,) in ln λ and by `moves`
    (N, parameters) in their labels."""
    place = {c: i for i, c in enumerate(task.classes)}
    classes = torch.tensor([place.get(c, -1) for c in labels.object_class[numbers].tolist()], dtype=torch.int64)
    columns = [(labels.values[p][numbers] - c) / s for p, c, s in zip(task.parameters, task.center, task.spread, strict=True)]
    errors = [labels.errors[p][numbers] / s for p, s in zip(task.parameters, task.spread, strict=True)]
    shape = (len(numbers), len(task.parameters))
    value = torch.tensor(np.array(columns).T.reshape(shape), dtype=torch.float32)
    if moves is not None:
        value = value + torch.tensor(moves / np.array(task.spread), dtype=torch.float32)
    z = labels.values.get(REDSHIFT, np.full(len(labels.object_class), np.nan))[numbers]
    z_there = torch.tensor(np.expm1(np.log1p(z) + shifts), dtype=torch.float32)
    far = torch.from_numpy(np.abs(np.broadcast_to(shifts, len(numbers))) > STARS)
    return Targets(classes, value, torch.tensor(np.array(errors).T.reshape(shape), dtype=torch.float32), z_there, far)


def head_loss(output: Output, target: Targets, z: int | None = None) -> torch.Tensor:
    """Cross-entropy plus Gaussian −ln L with V = e^s + (label error)², over the labels that are known; parameter `z` is learned
    as a distribution."""
    logits, mean, log_variance, distribution = output
    loss = 0.0 * mean.sum() + 0.0 * logits.sum()  # a gradient even where nothing is known
    kind = target.object_class if target.moved is None else target.object_class.masked_fill(target.moved, -1)
    if logits.shape[1] > 1 and (kind >= 0).any():
        loss = loss + F.cross_entropy(logits, kind, ignore_index=-1)
    known = torch.isfinite(target.value)
    if distribution is not None:
        of_z = torch.isfinite(target.z)
        loss = loss + 0.0 * distribution.sum()
        if of_z.any():
            loss = loss + REDSHIFT_WEIGHT * redshift_loss(distribution[of_z], target.z[of_z], target.object_class[of_z])
        known = known & (torch.arange(known.shape[1], device=known.device) != z)
    if known.any():
        variance = log_variance.exp() + target.error**2
        residual = (torch.where(known, target.value, mean) - mean) / variance.sqrt()
        nll = F.huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=5.0) + 0.5 * variance.log()
        loss = loss + (nll * known).sum() / known.sum(0).clamp(min=1).max()
    return loss


def physical(task: Task, mean: np.ndarray, log_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, errors and half widths of 95 % intervals (n, parameters) in the labels' units from a head's standardised
    outputs."""
    spread = np.array(task.spread)
    error = np.exp(0.5 * log_variance * np.array(task.error_power))
    error = error * np.array(task.error_scale) * spread
    return mean * spread + np.array(task.center), error, error * np.array(task.error_tail or (NORMAL,))


class Adapted(nn.Module):
    """Encoder and head, the fit that refines its answers if there is one, where the training objects' summaries lie, and the
    space in which they are published."""

    embedding_mean: torch.Tensor
    embedding_map: torch.Tensor
    anomaly_mean: torch.Tensor
    anomaly_whitening: torch.Tensor

    def __init__(self, model: Unified, head: Head, refine: Refine | None = None):
        super().__init__()
        self.model, self.head, self.refine = model, head, refine
        width = model.config.width
        self.register_buffer("embedding_mean", torch.zeros(width))
        self.register_buffer("embedding_map", torch.eye(width))
        self.register_buffer("anomaly_mean", torch.zeros(width))
        self.register_buffer("anomaly_whitening", torch.eye(width))

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.anomaly_mean.device

    def summary(self, batch: Batch) -> torch.Tensor:
        """(N, D) f4 summaries of objects by its encoder: after training further, not those that are published."""
        return self.model.summary(encoded(self.model, batch)).float()

    def answers(self, encoded: Encoded, batch: Batch) -> Answers:
        """What the head, and the fit that goes on from it, say of objects."""
        logits, mean, log_variance, _ = self.head(encoded)
        fitted = self.refine(batch, mean) if self.refine is not None else ()
        return Answers(logits, mean, log_variance, *fitted)

    def embedding(self, summary_ND: torch.Tensor) -> torch.Tensor:
        """(N, D) of summaries (`adapt/embedding.py`)."""
        return (summary_ND - self.embedding_mean) @ self.embedding_map

    def anomaly(self, summary_ND: torch.Tensor) -> torch.Tensor:
        """(N,) root mean square of the whitened summary: Mahalanobis distance from the training objects over √D, about 1
        for a typical one."""
        return ((summary_ND - self.anomaly_mean) @ self.anomaly_whitening).square().mean(-1).sqrt()
