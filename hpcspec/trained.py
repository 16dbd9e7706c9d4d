"""A trained run from Python: embeddings, classes and parameters, spectra at other wavelengths, nearest neighbours."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table

from hpcspec.catalog.schema import class_column
from hpcspec.catalog.task import Predictor
from hpcspec.cluster.run import Run
from hpcspec.config import Config
from hpcspec.errors import UserError
from hpcspec.model.attention import Packing
from hpcspec.shards.objects import collect
from hpcspec.stream.packing import layout, pack
from hpcspec.stream.tokens import SCALARS, Batch, tokenize
from hpcspec.surveys import discover, read
from hpcspec.surveys.grids import table_grid
from hpcspec.surveys.observation import BadObject, Observation, check, make_arm

log = logging.getLogger(__name__)
TOGETHER = 64  # objects
SCALE = SCALARS.index("log10_flux_scale")


def load(run: str | Path) -> Trained:
    """The model of a run folder, with its heads; weights are safetensors, nothing is unpickled.

    Raises UserError if the folder is no run, or it isn't trained to the end.
    """
    folder = Run(Path(run))
    config = folder.config()
    return Trained(config, Predictor(config, folder.weights, folder.adapted))


def spectrum(wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray, object_id: str = "spectrum") -> Observation:
    """An object of one spectrum on any grid: vacuum wavelengths, Å, ascending; flux in any unit; inverse variance, 0 where bad.

    Raises UserError if they can't be a spectrum.
    """
    try:
        arm = make_arm("spectrum", table_grid(np.asarray(wavelength, np.float64)), 0, flux, ivar)
    except BadObject as error:
        raise UserError(f"{object_id}: {error}") from error
    return Observation(object_id, "", float("nan"), float("nan"), (arm,), "")


def observations(survey: str, folder: str | Path) -> Iterator[Observation]:
    """The objects of a survey's files in a folder; of what can't be used the log has the reason.

    Raises UserError for an unknown survey, or a folder without its files.
    """
    for source in discover(survey, Path(folder)):
        for one in read(survey, source):
            if isinstance(one, Observation):
                yield one
            else:
                log.warning("%s %s: %s", one.path, one.object_id, one.reason)


class Trained:
    """What a run has learned. Objects are those of `observations`, or what `spectrum` makes."""

    def __init__(self, config: Config, predictor: Predictor):
        self.config, self._predictor = config, predictor

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that it tells apart."""
        return self._predictor.task.classes

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters that it estimates."""
        return self._predictor.task.parameters

    def _batches(self, objects: Iterable[Observation]) -> Iterator[tuple[Sequence[Observation], np.ndarray, Batch]]:
        """Some objects at a time, the order that undoes that of the batch, and the batch."""
        given = iter(objects)
        while some := list(itertools.islice(given, TOGETHER)):
            for i, one in enumerate(some):
                try:
                    some[i] = check(one)
                except BadObject as error:
                    raise UserError(f"{one.object_id}: {error}") from error
                if not one.arms or one.curves:
                    raise UserError(f"{one.object_id}: the model reads spectra only")
            together = collect([(one, 0, row) for row, one in enumerate(some)], [""])
            parts = [layout([together], np.arange(len(some)), self.config.model.patch)]
            batch = tokenize(pack(parts, [0], torch.from_numpy(together.samples)), self.config.model.patch)
            yield some, np.argsort(batch.objects), batch

    def embed(self, objects: Iterable[Observation]) -> np.ndarray:
        """(n, D) float32: one vector per object, the same as in the catalogue's file of embeddings.

        Raises UserError for an object without a good pixel.
        """
        found = [self._predictor(batch)["embedding"][order] for _, order, batch in self._batches(objects)]
        return np.concatenate(found) if found else np.zeros((0, self.config.model.width), np.float32)

    def predict(self, objects: Iterable[Observation], names: Sequence[str] | None = None) -> Table:
        """A row per object: object_id, class and its probabilities, and of each parameter (all, or those of these names) value
        and error, as in the catalogue but for its flags.

        Raises UserError for a name that the run has not learned, and for an object without a good pixel.
        """
        task = self._predictor.task
        for name in names or ():
            if name not in task.parameters:
                raise UserError(f"the run has not learned {name!r}: it knows {', '.join(task.parameters) or 'no parameter'}")
        ids: list[str] = []
        rows: dict[str, list[np.ndarray]] = {"probability": [], "value": [], "error": []}
        for some, order, batch in self._batches(objects):
            ids += [one.object_id for one in some]
            found = self._predictor(batch)
            for key, values in rows.items():
                values.append(found[key][order])
        table = Table({"object_id": np.array(ids, np.str_)})
        probability, value, error = (np.concatenate(x) if x else np.zeros((0, 0)) for x in rows.values())
        if task.classes and len(ids):
            table["class"] = np.array(task.classes)[probability.argmax(1)]
            for k, name in enumerate(task.classes):
                table[class_column(name)] = probability[:, k]
        for name in task.parameters if len(ids) else ():
            if names is None or name in names:
                k = task.parameters.index(name)
                table[name], table[f"{name}_err"] = value[:, k], error[:, k]
        return table

    def generate(self, objects: Iterable[Observation], wavelengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flux and error (n, w) of each object at these vacuum wavelengths (w,), Å, ascending and about evenly spaced over a
        patch of pixels, in the unit of its own flux: what the model expects, whatever the object's own grid.

        Raises UserError for wavelengths that are none, and for an object without a good pixel.
        """
        w, patch = np.asarray(wavelengths, np.float64), self.config.model.patch
        if w.ndim != 1 or not len(w) or not np.isfinite(w).all() or w[0] <= 0 or (np.diff(w) <= 0).any():
            raise UserError("wavelengths are one ascending array of positive numbers, Å")
        starts = np.arange(0, len(w), patch)
        low, high = w[starts], w[np.minimum(starts + patch, len(w)) - 1]
        size = np.minimum(starts + patch, len(w)) - starts
        step = np.where(size > 1, (high - low) / np.maximum(size - 1, 1), 1.0)
        asked = torch.from_numpy(np.stack([(low + high) / 2, step], axis=1).astype(np.float32))
        flux: list[np.ndarray] = []
        error: list[np.ndarray] = []
        model = self._predictor.model
        for _, order, batch in self._batches(objects):
            with torch.inference_mode():
                encoded, n = model.encode(batch), len(batch)
                mean, log_variance = model.decode(asked.repeat(n, 1), Packing((len(asked),) * n), encoded.tokens, encoded.packing)
            scale = 10.0 ** batch.scalars[:, SCALE].numpy()[order, None]
            for into, values in ((flux, mean), (error, (0.5 * log_variance).exp())):
                into.append(scale * values.numpy().reshape(n, -1)[order, : len(w)])
        empty = np.zeros((0, len(w)), np.float32)
        return np.concatenate([empty, *flux]), np.concatenate([empty, *error])

    def search(self, embedding: np.ndarray, among: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `among` (m, D) that are most like each row of `embedding` (n, D), most alike first, and their cosine
        similarities: (n, k) int64 and float32, k the lower of `count` and m."""
        from sklearn.neighbors import NearestNeighbors

        fitted = NearestNeighbors(n_neighbors=min(count, len(among)), metric="cosine", algorithm="brute").fit(among)
        distance, rows = fitted.kneighbors(embedding)
        return rows, (1 - distance).astype(np.float32)
