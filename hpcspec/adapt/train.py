"""Adaptation: a head on the pretrained encoder, calibrated, and measured on objects that nothing was trained on."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcspec.adapt.augment import augmented
from hpcspec.adapt.calibration import calibrated
from hpcspec.adapt.heads import REDSHIFT, Adapted, Head, Targets, Task, head_loss, make_task, targets, without
from hpcspec.adapt.labels import LabelSet, describe, label_names, load_labels, wanted
from hpcspec.adapt.optimizers import Optimizers, averaged, hidden_matrices
from hpcspec.adapt.redshift import shift
from hpcspec.adapt.report import held_out_report
from hpcspec.config import Adapt, Config
from hpcspec.errors import UserError
from hpcspec.model.attention import Packing
from hpcspec.model.low_rank import add_low_rank, merge_low_rank
from hpcspec.model.unified import Encoded
from hpcspec.model.weights import load_model, save_weights
from hpcspec.stream.batch import Batch, Tokens, apart, collate
from hpcspec.stream.batches import ordered_batches, prefetch
from hpcspec.stream.index import DataIndex, open_index

log = logging.getLogger(__name__)
EVALUATION_TOKENS = 8192
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


def packed_budget(items: Mapping[int, Tokens], budget: int) -> Iterator[list[int]]:
    """Numbers of the items, in their order, in groups of at most `budget` tokens."""
    group: list[int] = []
    used = 0
    for number, tokens in items.items():
        size = len(tokens)
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(number)
        used += size
    if group:
        yield group


def evaluated(items: Mapping[int, Tokens], kinds: np.ndarray, work: Callable[[Batch], Sequence[Any]]) -> dict[int, list[Any]]:
    """For each item, its rows of what `work` gives for batches (N, …); kinds: of the vocabulary's names."""
    out: dict[int, list[torch.Tensor]] = {}
    with torch.inference_mode():
        for numbers in packed_budget(items, EVALUATION_TOKENS):
            batch = collate(numbers, [items[n] for n in numbers], kinds)
            found = work(batch)
            out.update({n: [f[k] for f in found] for k, n in enumerate(batch.objects.tolist())})
    return out


def adapt(config: Config, shards: Sequence[Path], weights: Path, folder: Path) -> Task:
    """Train a head as `config.adapt` says; write `folder/weights.safetensors` and `folder/task.json`.

    Where the configuration maps no label columns there is nothing to train: the catalogue then has embeddings only.
    Raises UserError if there are no or too few labels.
    """
    settings = config.adapt
    torch.set_num_threads(settings.threads)
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
    adapted = Adapted(model, Head(task, model.config.width, model.config.heads, settings.dropout))
    numbers = np.concatenate([parts.train, parts.calibration, parts.test])
    items: dict[int, Tokens] = {}
    withheld = tuple(sorted(set(model.vocabulary.measured) & label_names(config.surveys)))
    for batch in ordered_batches(index, np.sort(numbers), model.vocabulary, EVALUATION_TOKENS):
        items |= apart(without(batch, withheld, model.vocabulary))
    log.info("adapt: labels %s; %d training, %d calibration, %d held-out objects", describe(labels),
             *map(len, (parts.train, parts.calibration, parts.test)))  # fmt: skip
    limit = _fit_anomaly(adapted, {n: items[n] for n in parts.train.tolist()})
    began = time.monotonic()
    report: dict[str, Any] = {}
    if labelled:
        _fit(adapted, items, labels, parts.train, settings, config.seed)
        task = _calibrate(adapted, items, labels, task, parts.calibration)
        report = {"mode": settings.mode, "seconds": time.monotonic() - began}
        if len(parts.test):
            report |= held_out_report(config, index, labels, task, parts, _outputs(adapted, items, parts.test))
        # What is reported is measured with errors that the held-out objects had no part in; what is published may use them too.
        task = _calibrate(adapted, items, labels, task, np.concatenate([parts.calibration, parts.test]))
    task = replace(task, anomaly_limit=limit, separate_encoder=labelled and settings.mode != "frozen", withheld=withheld,
                   report=report)  # fmt: skip
    save_weights(folder / "weights.safetensors", adapted.state_dict())
    task.save(folder / "task.json")
    return task


def _encoded_frozen(adapted: Adapted, items: Mapping[int, Tokens], numbers: np.ndarray) -> dict[int, list[torch.Tensor]]:
    """The frozen encoder's tokens (t, D) of each object, float16, and their log wavelengths (t,)."""
    adapted.eval()

    def tokens(batch: Batch) -> list[list[torch.Tensor]]:
        encoded = adapted.model.encode(batch)
        assert encoded.log_wavelength is not None
        return [list(x.split(encoded.packing.lengths)) for x in (encoded.tokens.half(), encoded.log_wavelength)]

    chosen = {n: items[n] for n in numbers.tolist()}
    return evaluated(chosen, adapted.model.vocabulary.kinds, tokens)


def _fit(adapted: Adapted, items: dict[int, Tokens], labels: LabelSet, train: np.ndarray, settings: Adapt, seed: int) -> None:
    """Train the head alone on what the frozen encoder gives, or head and encoder on augmented objects; over `steps`, or in
    `minutes`."""
    full, model, head = settings.mode != "frozen", adapted.model, adapted.head
    optimizers = _optimizers(adapted, settings)
    frozen = {} if full else _encoded_frozen(adapted, items, train)
    kinds, z = model.vocabulary.kinds, labels.values.get(REDSHIFT, np.full(len(labels.object_class), np.nan))

    def batches() -> Iterator[tuple[Batch | Encoded, Targets]]:
        for epoch in itertools.count():
            rng = np.random.default_rng([seed, epoch])
            for numbers in packed_budget({n: items[n] for n in rng.permutation(train).tolist()}, settings.tokens_per_batch):
                if full:
                    moved = {n: shift(float(z[n]), rng.random()) for n in numbers}
                    batch = collate(numbers, [augmented(items[n], kinds, rng, settings, moved[n]) for n in numbers], kinds)
                    shifts = np.array([moved[n] for n in batch.objects.tolist()])
                    yield batch, targets(labels, head.task, batch.objects, shifts)
                else:
                    numbers = sorted(numbers, key=lambda n: len(frozen[n][0]))
                    packing = Packing(tuple(len(frozen[n][0]) for n in numbers))
                    tokens, wavelengths = (torch.cat([frozen[n][k] for n in numbers]).float() for k in range(2))
                    encoded = Encoded(tokens, packing, wavelengths)
                    yield encoded, targets(labels, head.task, np.array(numbers))

    adapted.train()
    model.train(full)
    mean = averaged(adapted, settings.average) if full and settings.average else None
    began = shown = time.monotonic()
    losses: list[float] = []
    lost = 0
    for step, (given, target) in enumerate(prefetch(batches(), 8), 1):
        done = step / settings.steps
        if settings.minutes:
            done = max(done, (time.monotonic() - began) / (60 * settings.minutes))
        loss = head_loss(head(model.encode(given) if isinstance(given, Batch) else given), target, head.z)
        lost += not optimizers.step(loss, done)
        if mean is not None:
            mean.update_parameters(adapted)
        losses.append(loss.item())
        if time.monotonic() - shown > 10 or done >= 1:
            log.info("adapt: step %d of %d, loss %.3f", step, settings.steps, np.mean(losses))
            shown, losses = time.monotonic(), []
        if done >= 1:
            if step < settings.steps:
                log.warning("adapt: stopped at adapt.minutes, %d of %d steps done", step, settings.steps)
            if lost:
                log.warning("adapt: %d of %d steps left out, their loss was not finite: look at the labels", lost, step)
            break
    if mean is not None:
        adapted.load_state_dict(mean.module.state_dict())
    if settings.mode == "low_rank":
        merge_low_rank(model.encoder)


def _optimizers(adapted: Adapted, settings: Adapt) -> Optimizers:
    """Of what `settings.mode` says is to be trained."""
    head, model = list(adapted.head.parameters()), adapted.model
    if settings.mode == "frozen":
        return Optimizers([], head, settings)
    if settings.mode == "low_rank":
        return Optimizers([], head + add_low_rank(model.encoder, settings.rank), settings)
    encoder = [p for n, p in model.named_parameters() if n.startswith(("embed", "encoder", "norm."))]
    matrices = hidden_matrices(adapted, adapted.head.outputs)
    chosen = {id(p) for p in matrices} & {id(p) for p in head + encoder}
    return Optimizers([p for p in matrices if id(p) in chosen], [p for p in head + encoder if id(p) not in chosen], settings)


def _outputs(adapted: Adapted, items: Mapping[int, Tokens], numbers: np.ndarray) -> tuple[np.ndarray, ...]:
    """Logits, means, log variances of objects, in the order of `numbers`."""
    adapted.eval()
    chosen, kinds = {n: items[n] for n in numbers.tolist()}, adapted.model.vocabulary.kinds
    found = evaluated(chosen, kinds, lambda batch: adapted.head(adapted.model.encode(batch))[:3])
    return tuple(np.stack([found[n][k].numpy() for n in numbers.tolist()]) for k in range(3))


def _calibrate(adapted: Adapted, items: Mapping[int, Tokens], labels: LabelSet, task: Task, numbers: np.ndarray) -> Task:
    """Scale the errors so that 68 % of these objects lie within one, and the logits to the best likelihood."""
    if not len(numbers):
        return task
    logits, mean, log_variance = _outputs(adapted, items, numbers)
    target = targets(labels, task, numbers)
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
    scales, floors = (tuple(of[k] for of in fitted) for k in range(2))
    return replace(task, error_scale=scales, error_floor=floors, temperature=temperature)


def _fit_anomaly(adapted: Adapted, items: Mapping[int, Tokens]) -> float:
    """Mean and whitening of the pretrained summaries of the training objects (Ledoit & Wolf 2004 covariance); returns the
    anomaly score that 99.9 % of them stay below."""
    from sklearn.covariance import LedoitWolf  # seconds to import

    adapted.eval()
    found = evaluated(items, adapted.model.vocabulary.kinds, lambda batch: [adapted.model.summary(adapted.model.encode(batch))])
    summaries = torch.stack([f[0] for f in found.values()])
    fitted = LedoitWolf().fit(summaries.double().numpy())
    values, vectors = np.linalg.eigh(fitted.covariance_)
    adapted.anomaly_mean.copy_(torch.tensor(fitted.location_))
    adapted.anomaly_whitening.copy_(torch.tensor(vectors / np.sqrt(np.maximum(values, 1e-9 * values.max()))))
    return float(np.quantile(adapted.anomaly(summaries).numpy(), 0.999))
