"""The training loop of heads: on every rank of a job, each with its share of the objects."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from hpcspec.adapt.augment import augmented
from hpcspec.adapt.heads import REDSHIFT, Adapted, Targets, head_loss, targets
from hpcspec.adapt.labels import LabelSet
from hpcspec.adapt.optimizers import Optimizers, averaged
from hpcspec.adapt.redshift import shift
from hpcspec.adapt.relabel import Relabel
from hpcspec.config import Adapt
from hpcspec.model.attention import Packing
from hpcspec.model.low_rank import add_low_rank, merge_low_rank
from hpcspec.model.unified import Encoded, hidden_matrices
from hpcspec.stream.batch import Batch, Tokens, collate
from hpcspec.stream.batches import prefetch
from hpcspec.training.ranks import Ranks

log = logging.getLogger(__name__)
EVALUATION_TOKENS = 8192


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


def evaluated(adapted: Adapted, items: Mapping[int, Tokens], work: Callable[[Batch], Sequence[Any]]) -> dict[int, list[Any]]:
    """For each item, its rows of what `work` gives for batches (N, …), by the model in evaluation."""
    adapted.eval()
    out: dict[int, list[torch.Tensor]] = {}
    device, kinds = adapted.device, adapted.model.vocabulary.kinds
    with torch.inference_mode():
        for numbers in packed_budget(items, EVALUATION_TOKENS):
            batch = collate(numbers, [items[n] for n in numbers], kinds).to(device)
            found = work(batch)
            out.update({n: [f[k].cpu() for f in found] for k, n in enumerate(batch.objects.tolist())})
    return out


def _encoded_frozen(adapted: Adapted, items: Mapping[int, Tokens]) -> dict[int, list[torch.Tensor]]:
    """The frozen encoder's tokens (t, D) of each object, float16, and their log wavelengths (t,)."""

    def tokens(batch: Batch) -> list[list[torch.Tensor]]:
        encoded = adapted.model.encode(batch)
        assert encoded.log_wavelength is not None
        return [list(x.split(encoded.packing.lengths)) for x in (encoded.tokens.half(), encoded.log_wavelength)]

    return evaluated(adapted, items, tokens)


def fit(adapted: Adapted, items: Mapping[int, Tokens], labels: LabelSet, relabel: Relabel | None, settings: Adapt, seed: int,
        ranks: Ranks) -> None:  # fmt: skip
    """Train the head alone on what the frozen encoder gives, or head and encoder on augmented objects; over `steps`, or in
    `minutes`. items: the objects of this rank."""
    full, model, head = settings.mode != "frozen", adapted.model, adapted.head
    optimizers = _optimizers(adapted, settings, ranks)
    frozen = {} if full else _encoded_frozen(adapted, items)
    numbers, budget = np.array(list(items)), max(1, settings.tokens_per_batch // ranks.size)
    kinds, z = model.vocabulary.kinds, labels.values.get(REDSHIFT, np.full(len(labels.object_class), np.nan))

    def batches() -> Iterator[tuple[Batch | Encoded, Targets]]:
        for epoch in itertools.count():
            rng = np.random.default_rng([seed, epoch, ranks.rank])
            for some in packed_budget({n: items[n] for n in rng.permutation(numbers).tolist()}, budget):
                if full:
                    views = {}
                    for n in some:
                        one, move = items[n], np.zeros(len(head.task.parameters))
                        if relabel is not None and rng.random() < settings.relabel:
                            one, move = relabel(n, one, rng, rng.random() < settings.renew)
                        moved = shift(float(z[n]), rng.random())
                        views[n] = augmented(one, kinds, rng, settings, moved), moved, move
                    batch = collate(some, [views[n][0] for n in some], kinds)
                    shifts, moves = (np.array([views[n][k] for n in batch.objects.tolist()]) for k in (1, 2))
                    yield batch, targets(labels, head.task, batch.objects, shifts, moves)
                else:
                    some = sorted(some, key=lambda n: len(frozen[n][0]))
                    packing = Packing(tuple(len(frozen[n][0]) for n in some))
                    tokens, wavelengths = (torch.cat([frozen[n][k] for n in some]).float() for k in range(2))
                    yield Encoded(tokens, packing, wavelengths), targets(labels, head.task, np.array(some))

    adapted.train()
    model.train(full)
    mean = averaged(adapted, settings.average) if full and settings.average else None
    torch.manual_seed(int(np.random.SeedSequence([seed, ranks.rank]).generate_state(1)[0]))  # of dropout: not the same on all
    began = shown = time.monotonic()
    losses: list[float] = []
    lost = 0
    for step, prepared in enumerate(prefetch(batches(), 8), 1):
        done = step / settings.steps
        if settings.minutes:
            done = max(done, (time.monotonic() - began) / (60 * settings.minutes))
        given, target = prepared[0].to(ranks.device), prepared[1].to(ranks.device)
        loss = head_loss(head(model.encode(given) if isinstance(given, Batch) else given), target, head.z)
        made, done = optimizers.step(loss, done)
        lost += not made
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


def _optimizers(adapted: Adapted, settings: Adapt, ranks: Ranks) -> Optimizers:
    """Of what `settings.mode` says is to be trained."""
    head, model = list(adapted.head.parameters()), adapted.model
    if settings.mode == "frozen":
        return Optimizers([], head, settings, ranks)
    if settings.mode == "low_rank":
        return Optimizers([], head + add_low_rank(model.encoder, settings.rank), settings, ranks)
    encoder = [p for n, p in model.named_parameters() if n.startswith(("embed", "encoder", "norm."))]
    matrices = hidden_matrices(adapted, adapted.head.outputs)
    trained = head + encoder
    chosen = {id(p) for p in matrices} & {id(p) for p in trained}
    hidden, others = [p for p in matrices if id(p) in chosen], [p for p in trained if id(p) not in chosen]
    return Optimizers(hidden, others, settings, ranks)
