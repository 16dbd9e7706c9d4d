"""The array task: pieces of work that don't depend on how many tasks share them, each written as one part."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from hpcspec.adapt.heads import Adapted, Answers, Head, Task, encoded, physical, without
from hpcspec.adapt.refine import Refine
from hpcspec.atomic import file_hash
from hpcspec.catalog.parts import open_part, provenance_of, write_part
from hpcspec.catalog.schema import NOWHERE, Column, Flag, class_column, columns
from hpcspec.config import Catalog, Config
from hpcspec.errors import UserError
from hpcspec.model.weights import load_model, load_weights
from hpcspec.stream.batch import Batch
from hpcspec.stream.batches import ordered_batches, prefetch
from hpcspec.stream.index import DataIndex, open_index
from hpcspec.stream.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """Objects start … stop-1 of the index, written as one part."""

    name: str
    start: int
    stop: int


def cut_pieces(tokens: np.ndarray, count: int) -> list[Piece]:
    """At most `count` contiguous pieces of about equal cost, from the tokens (n,) of each object; a pure function."""
    done = np.concatenate([[0], np.cumsum(tokens)])
    edges = np.unique(np.searchsorted(done, np.linspace(0, done[-1], min(count, len(tokens)) + 1)))
    return [Piece(f"part-{i:05d}", int(a), int(b)) for i, (a, b) in enumerate(zip(edges[:-1], edges[1:], strict=True))]


class Predictor:
    """The released model: embeddings from the pretrained encoder, classes and parameters from the adapted head; on the GPU where
    there is one, its encoders there in bfloat16."""

    def __init__(self, config: Config, pretrained: Path, adapted: Path):
        if not (adapted / "task.json").is_file():
            raise UserError(f"{adapted} has no head: adapt it first (python -m hpcspec.submit adapt)")
        self.config = config
        self.task = Task.load(adapted / "task.json")
        self.model, encoder = load_model(pretrained), load_model(pretrained)
        head = Head(self.task, encoder.config.width, encoder.config.heads, 0.0)
        self.adapted = Adapted(encoder, head, Refine(self.task.refine["shape"]) if self.task.refine else None)
        load_weights(adapted / "weights.safetensors", self.adapted)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.adapted = self.model.to(self.device), self.adapted.to(self.device).eval()
        files = (pretrained, adapted / "weights.safetensors", adapted / "task.json")
        self.hash = hashlib.sha256("".join(file_hash(f) for f in files).encode()).hexdigest()[:16]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The catalogue's columns."""
        return columns(self.task.classes, self.task.parameters)

    def __call__(self, batch: Batch) -> dict[str, np.ndarray]:
        """Embedding (N, D), probability (N, classes), value, error and half width of the 95 % interval (wide), each (N,
        parameters), anomaly, and how many valid pixels, epochs and tokens there are (N,)."""
        batch = batch.to(self.device)
        with torch.inference_mode():
            given = without(batch, self.task.withheld, self.model.vocabulary)
            read = encoded(self.model, given)
            summary = self.model.summary(read)
            if self.task.separate_encoder:
                read = encoded(self.adapted.model, given)
            answers = Answers(*(None if x is None else x.cpu().numpy() for x in self.adapted.answers(read, given)))
            anomaly = self.adapted.anomaly(summary).cpu().numpy()
            embedding = self.adapted.embedding(summary).cpu().numpy()
        value, error, wide = physical(self.task, *answers.together(self.task))
        logits = answers.logits
        probability = softmax(logits.astype(np.float64) / self.task.temperature, axis=1) if logits.shape[1] else logits
        _, of_spectra, of_curves = batch.owners
        pixels, epochs = (np.bincount(owner.cpu().numpy(), torch.isfinite(sigma).sum(1).cpu().numpy(), minlength=len(batch))
                          for owner, sigma in ((of_spectra, batch.spectra.sigma), (of_curves, batch.curves.sigma)))  # fmt: skip
        return {"embedding": embedding, "probability": probability, "value": value, "error": error, "wide": wide,
                "anomaly": anomaly, "pixels": pixels, "epochs": epochs, "tokens": np.array(batch.lengths) - 1}  # fmt: skip


def rows(
    index: DataIndex, numbers: np.ndarray, found: dict[str, np.ndarray], task: Task, settings: Catalog
) -> dict[str, np.ndarray]:
    """Catalogue columns of the objects with these numbers from what the predictor found, in the same order."""
    n = len(numbers)
    out: dict[str, np.ndarray] = {"object_id": index.column("id")[numbers], "survey": index.survey[numbers]}
    for ours, theirs in (("ra", "ra"), ("dec", "dec"), ("_healpix_29", "healpix"), ("sn_median", "sn_median")):
        out[ours] = index.column(theirs)[numbers]
    flags = np.zeros(n, np.int32)
    flags[out["sn_median"] < settings.low_sn] |= Flag.LOW_SN
    nowhere = out["_healpix_29"] == NOWHERE
    flags[nowhere] |= Flag.NO_POSITION
    flags[(index.column("approximate")[numbers] != 0) & ~nowhere] |= Flag.APPROXIMATE_POSITION
    few = np.where(found["pixels"] > 0, found["pixels"] < settings.few_pixels,
                   (found["epochs"] > 0) & (found["epochs"] < settings.few_epochs))  # fmt: skip
    flags[few | (found["tokens"] == 0)] |= Flag.FEW_PIXELS
    flags[found["anomaly"] > task.anomaly_limit] |= Flag.OUT_OF_TRAINING_RANGE
    probability = found["probability"].astype(np.float32)
    if task.classes:
        best = probability.argmax(1)
        out["class"], out["class_prob"] = np.array(task.classes)[best], probability[np.arange(n), best]
        flags[out["class_prob"] < settings.ambiguous] |= Flag.CLASS_AMBIGUOUS
        out |= {class_column(c): probability[:, i] for i, c in enumerate(task.classes)}
    else:
        out["class"], out["class_prob"] = np.full(n, ""), np.full(n, np.nan, np.float32)
    for k, p in enumerate(task.parameters):
        value, error, wide = (found[name][:, k].astype(np.float32) for name in ("value", "error", "wide"))
        means = np.isin(out["class"], task.applies[k]) if task.applies[k] else np.ones(n, bool)
        flags[means & ((value < task.lowest[k]) | (value > task.highest[k]))] |= Flag.EXTRAPOLATED_LABEL
        flags[~means] |= Flag.NOT_APPLICABLE
        out |= {name: np.where(means, x, np.nan) for name, x in ((p, value), (f"{p}_err", error), (f"{p}_err95", wide))}
    bad = ~np.all([np.isfinite(found[k]).all(1) for k in ("embedding", "probability", "value", "error", "wide")], axis=0)
    if bad.any():
        raise UserError(
            f"the model gives NaN for object {out['object_id'][bad][0]!r} of {out['survey'][bad][0]}: its weights are damaged"
        )
    return out | {"anomaly": found["anomaly"].astype(np.float32), "flags": flags, "embedding": found["embedding"]}


def is_done(path: Path, provenance: dict[str, str]) -> bool:
    """Whether a part is there, whole, and made by this model from these data."""
    try:
        with open_part(path) as part:
            have = provenance_of(part)
            return all(have.get(k) == v for k, v in provenance.items())
    except UserError:
        return False


def plan(index: DataIndex, config: Config, vocabulary: Vocabulary) -> list[Piece]:
    """The pieces of a catalogue of this index, which is read in these words."""
    return cut_pieces(index.tokens(vocabulary), config.catalog.pieces)


def catalog_task(config: Config, shards: Sequence[Path], predictor: Predictor, parts: Path, task: int, tasks: int) -> int:
    """Do the pieces task, task+tasks, … that are not done yet; returns how many objects these were."""
    settings = config.catalog
    torch.set_num_threads(settings.threads)
    index, words = open_index(shards), predictor.model.vocabulary
    flagging = settings.model_dump_json(include={"low_sn", "few_pixels", "few_epochs", "ambiguous"})
    named = ",".join(c.name for c in predictor.columns)
    provenance = {"model_hash": predictor.hash, "data": index.fingerprint, "flagging": flagging, "columns": named}
    objects = 0
    for piece in plan(index, config, words)[task::tasks]:
        path = parts / f"{piece.name}.parquet"
        if is_done(path, {**provenance, "piece": f"{piece.start}-{piece.stop}"}):
            log.info("catalog: %s is done already", piece.name)
            continue
        began = time.monotonic()
        numbers: list[np.ndarray] = []
        found: list[dict[str, np.ndarray]] = []
        batches = ordered_batches(index, np.arange(piece.start, piece.stop), words, settings.tokens_per_batch)
        for batch in prefetch(batches, 2):
            numbers.append(batch.objects)
            found.append(predictor(batch))
        joined = {k: np.concatenate([f[k] for f in found]) for k in found[0]}
        table = rows(index, np.concatenate(numbers), joined, predictor.task, settings)
        write_part(path, table, {**provenance, "piece": f"{piece.start}-{piece.stop}"})
        count = piece.stop - piece.start
        objects += count
        log.info("catalog: %s written, %d objects, %.0f spectra/s", piece.name, count, count / (time.monotonic() - began))
    return objects
