"""Adaptation: a head on the pretrained encoder, calibrated, and measured on objects that nothing was trained on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcspec.adapt.calibration import calibrated
from hpcspec.adapt.embedding import fit_embedding, repeats, sampled
from hpcspec.adapt.fit import EVALUATION_TOKENS, evaluated, fit
from hpcspec.adapt.heads import Adapted, Answers, Head, Task, make_task, targets, without
from hpcspec.adapt.labels import LabelSet, describe, label_names, load_labels, wanted
from hpcspec.adapt.refine import scales_of
from hpcspec.adapt.relabel import Relabel
from hpcspec.adapt.report import held_out_report
from hpcspec.config import Adapt, Config
from hpcspec.errors import UserError
from hpcspec.model.weights import load_model, save_weights
from hpcspec.stream.batch import Batch, Tokens, apart
from hpcspec.stream.batches import ordered_batches
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.training.ranks import start

log = logging.getLogger(__name__)
FEWEST = 5  # objects of each side of a split


@dataclass(frozen=True)
class Split:
    """Numbers of the objects that train the head, calibrate its errors, and measure it."""

    train: np.ndarray
    calibration: np.ndarray
    test: np.ndarray


def split(index: DataIndex, labelled: np.ndarray, seed: int, adapt: Adapt) -> Split:
    """By place on the sky, so that no object is on two sides; `test` was held out of pretraining too, and is empty if nothing
    is to be.

    Raises UserError if another part is, nearly.
    """
    held, trained = index.sky_fraction(seed) < adapt.held_out, index.lowest_fraction(seed) >= adapt.held_out
    fraction = index.sky_fraction(seed + 1)
    few = np.sort(fraction[labelled & trained])[:FEWEST]
    share = max(adapt.calibration, np.nextafter(few[-1], 1) if len(few) else 0.0)
    calibrating, learning = fraction < share, index.lowest_fraction(seed + 1) >= share
    parts = Split(*(np.flatnonzero(labelled & mask) for mask in (trained & learning, trained & calibrating, held)))
    needed = (parts.train, parts.calibration, *([parts.test] if adapt.held_out else []))
    if min(map(len, needed)) < FEWEST:
        counts = "/".join(str(len(p)) for p in (parts.train, parts.calibration, parts.test))
        raise UserError(f"{labelled.sum()} labelled objects are too few to train, calibrate and test a head ({counts}, at least "
                        "5 each): give more labels")  # fmt: skip
    return parts


def labelled_objects(labels: LabelSet, task: Task | None = None) -> np.ndarray:
    """(n,) bool: whether an object has any label, or any that the task uses."""
    known = [np.isfinite(labels.values[p]) for p in (task.parameters if task else labels.values)]
    classes = task.classes if task else labels.classes
    return np.any([np.isin(labels.object_class, classes), *known], axis=0)


def adapt(config: Config, shards: Sequence[Path], weights: Path, folder: Path) -> Task | None:
    """Train a head on every rank of this job as `config.adapt` says; rank 0 writes `folder/weights.safetensors` and
    `folder/task.json`, and returns the task.

    Where the configuration maps no label columns there is nothing to train: the catalogue then has embeddings only.
    Raises UserError if there are no or too few labels.
    """
    settings = config.adapt
    ranks = start(settings.threads)
    torch.manual_seed(config.seed)
    index = open_index(shards)
    model = load_model(weights)
    labelled = any(wanted(s.labels) for s in config.surveys.values())
    labels = load_labels(index, config.surveys)
    mask = labelled_objects(labels) if labelled else np.ones(len(index), bool)
    parts = split(index, mask, config.seed, settings)
    task = make_task(labels, parts.train)
    if labelled and not task.parameters and not task.classes:
        raise UserError("too few labels for any class (5 objects) or parameter (10 objects): give more labels")
    if labelled:
        usable = labelled_objects(labels, task)
        parts = Split(*(numbers[usable[numbers]] for numbers in (parts.train, parts.calibration, parts.test)))
    if len(parts.train) < ranks.size:
        raise UserError(f"{len(parts.train)} objects to train on are fewer than the {ranks.size} ranks: ask for fewer ranks")
    withheld = tuple(sorted(set(model.vocabulary.measured) & label_names(config.surveys)))

    def read(numbers: np.ndarray) -> dict[int, Tokens]:
        items: dict[int, Tokens] = {}
        for batch in ordered_batches(index, np.sort(numbers), model.vocabulary, EVALUATION_TOKENS):
            items |= apart(without(batch, withheld, model.vocabulary))
        return items

    if ranks.rank == 0:
        log.info("adapt: labels %s; %d training, %d calibration, %d held-out objects, %d rank(s) on %s", describe(labels),
                 *map(len, (parts.train, parts.calibration, parts.test)), ranks.size, ranks.device.type)  # fmt: skip
    adapted = Adapted(model, Head(task, model.config.width, model.config.heads, settings.dropout)).to(ranks.device)
    items = read(parts.train[ranks.rank :: ranks.size])
    of = repeats(index, parts.train)
    some = sampled(parts.train, of, config.seed)
    chosen = parts.train[some].tolist()
    found = evaluated(adapted, {n: items[n] for n in chosen if n in items}, lambda batch: [adapted.summary(batch)])
    known = {n: rows[0].numpy() for part in ranks.gather(found) for n, rows in part.items()}
    vectors = np.stack([known[n] for n in chosen])
    limit = _fit_anomaly(adapted, vectors)
    fit_embedding(adapted, items, vectors, of[some], ranks)
    began = time.monotonic()
    if labelled:
        needed = settings.refine or (settings.relabel and settings.mode != "frozen")
        relabel = Relabel(items, labels, task, parts.train, model.vocabulary.kinds, ranks) if needed else None
        fit(adapted, items, labels, relabel, settings, config.seed, ranks)
        if relabel is not None and settings.refine:
            adapted.refine = relabel.refine(ranks)
            adapted.to(ranks.device)
    if ranks.rank > 0:
        return None
    report: dict[str, Any] = {}
    if labelled:
        items = read(np.concatenate([parts.calibration, parts.test]))
        task = _calibrate(adapted, items, labels, task, parts.calibration)
        report = {"mode": settings.mode, "seconds": time.monotonic() - began}
        if len(parts.test):
            report |= held_out_report(config, index, labels, task, parts, _answers(adapted, items, parts.test))
        # What is reported is measured with errors that the held-out objects had no part in; what is published may use them too.
        task = _calibrate(adapted, items, labels, task, np.concatenate([parts.calibration, parts.test]))
    task = replace(task, anomaly_limit=limit, separate_encoder=labelled and settings.mode != "frozen", withheld=withheld,
                   report=report)  # fmt: skip
    save_weights(folder / "weights.safetensors", adapted.state_dict())
    task.save(folder / "task.json")
    return task


def _answers(adapted: Adapted, items: Mapping[int, Tokens], numbers: np.ndarray) -> Answers:
    """What is found of objects, in the order of `numbers`."""

    def work(batch: Batch) -> list[torch.Tensor]:
        return [x for x in adapted.answers(adapted.model.encode(batch), batch) if x is not None]

    found = evaluated(adapted, {n: items[n] for n in numbers.tolist()}, work)
    return Answers(*(np.stack(column) for column in zip(*(found[n] for n in numbers.tolist()), strict=True)))


def _calibrate(adapted: Adapted, items: Mapping[int, Tokens], labels: LabelSet, task: Task, numbers: np.ndarray) -> Task:
    """Scale the errors to cover these objects, and the logits to the best likelihood."""
    if not len(numbers):
        return task
    answers, target = _answers(adapted, items, numbers), targets(labels, task, numbers)
    if adapted.refine is not None:
        truth = target.value.numpy()
        each = scales_of({"head": truth - answers.mean, "fit": truth - answers.fitted},
                         {"head": answers.log_variance, "fit": answers.fitted_log_variance})  # fmt: skip
        task = replace(task, refine={"shape": adapted.refine.shape, "scales": each})
    logits, (mean, log_variance) = answers.logits, answers.together(task)
    fitted = []
    for k in range(len(task.parameters)):
        known = np.isfinite(target.value[:, k].numpy())
        residual = (target.value[:, k].numpy() - mean[:, k])[known]
        fitted.append(calibrated(residual, np.exp(0.5 * log_variance[known, k])))
    temperature = 1.0
    known_class = target.object_class >= 0
    if len(task.classes) > 1 and known_class.any():
        scores, classes = torch.tensor(logits)[known_class], target.object_class[known_class]
        candidates = np.geomspace(0.25, 4, 41)
        losses = [nn.functional.cross_entropy(scores / t, classes).item() for t in candidates]
        temperature = float(candidates[int(np.argmin(losses))])
    scales, powers, tails = (tuple(of[k] for of in fitted) for k in range(3))
    return replace(task, error_scale=scales, error_power=powers, error_tail=tails, temperature=temperature)


def _fit_anomaly(adapted: Adapted, summaries: np.ndarray) -> float:
    """Mean and whitening of the pretrained summaries (n, D) of training objects (Ledoit & Wolf 2004 covariance); returns the
    anomaly score that 99.9 % of them stay below."""
    from sklearn.covariance import LedoitWolf  # seconds to import

    fitted = LedoitWolf().fit(summaries.astype(np.float64))
    values, vectors = np.linalg.eigh(fitted.covariance_)
    adapted.anomaly_mean.copy_(torch.tensor(fitted.location_))
    adapted.anomaly_whitening.copy_(torch.tensor(vectors / np.sqrt(np.maximum(values, 1e-9 * values.max()))))
    return float(np.quantile(adapted.anomaly(torch.from_numpy(summaries).to(adapted.device)).cpu().numpy(), 0.999))
