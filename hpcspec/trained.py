"""A trained run from Python: embeddings, classes and parameters, whatever else the model can say, nearest neighbours."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from astropy.table import Table

from hpcspec.catalog.schema import class_column
from hpcspec.catalog.task import Predictor
from hpcspec.cluster.run import Run
from hpcspec.config import Config
from hpcspec.errors import UserError
from hpcspec.model.unified import Answers, Questions
from hpcspec.shards.objects import collect
from hpcspec.shards.variability import with_variability
from hpcspec.stream.batch import Batch
from hpcspec.stream.packing import layout, pack
from hpcspec.stream.tokens import tokenize
from hpcspec.stream.vocabulary import DERIVED, KINDS, OF_CURVE, OF_SPECTRUM, PERIOD, band_name
from hpcspec.surveys import discover, read
from hpcspec.surveys.grids import log_grid, table_grid
from hpcspec.surveys.observation import BadObject, Observation, check, make_arm, make_curve

log = logging.getLogger(__name__)
TOGETHER = 64  # objects
NOWHERE = float("nan")


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
    return Observation(object_id, "", NOWHERE, NOWHERE, (arm,), "")


def light_curve(band: str, time: np.ndarray, value: np.ndarray, error: np.ndarray, unit: str = "mag",
                object_id: str = "light curve") -> Observation:  # fmt: skip
    """An object of one light curve: the name of its band, as its survey's reader gives it, times, days, values in `unit` and
    their errors.

    Raises UserError if they can't be a light curve.
    """
    try:
        curve = make_curve(band, time, np.asarray(value), error, unit=unit)
    except BadObject as error_:
        raise UserError(f"{object_id}: {error_}") from error_
    return Observation(object_id, "", NOWHERE, NOWHERE, curves=(curve,))


def scalars(values: Mapping[str, float | tuple[float, float]], object_id: str = "scalars") -> Observation:
    """An object of scalars: name to value, or to value and error."""
    pairs = {name: value if isinstance(value, tuple) else (value, float("nan")) for name, value in values.items()}
    return Observation(object_id, "", NOWHERE, NOWHERE, scalars=pairs)


def together(*measurements: Observation) -> Observation:
    """One object of all these measurements of it; identifier and position are those of the first."""
    arms, curves = (tuple(x for one in measurements for x in getattr(one, name)) for name in ("arms", "curves"))
    of_all = {name: value for one in measurements for name, value in one.scalars.items()}
    unit = next((one.flux_unit for one in measurements if one.arms), "")
    return replace(measurements[0], arms=arms, curves=curves, scalars=of_all, flux_unit=unit)


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
    """What a run has learned. Objects are those of `observations`, or what `spectrum`, `light_curve`, `scalars` and
    `together` make."""

    def __init__(self, config: Config, predictor: Predictor):
        self.config, self._predictor = config, predictor
        self._words = predictor.model.vocabulary

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
                self._known(one)
            gathered = collect([(with_variability(one), 0, row) for row, one in enumerate(some)], [""])
            parts = [layout([gathered], np.arange(len(some)), self._words)]
            batch = tokenize(pack(parts, [0], torch.from_numpy(gathered.samples)), self._words)
            if empty := [i for i, n in zip(batch.objects.tolist(), batch.lengths, strict=True) if n == 1]:
                raise UserError(f"{some[empty[0]].object_id}: no good sample of what the model reads ({self._reads()})")
            yield some, np.argsort(batch.objects), batch

    def _known(self, one: Observation) -> None:
        """Raise UserError if the model can read nothing of an object; what it can't read of it is logged."""
        words = self._words
        lost = [f"light curve {c.band} in {c.unit}" for c in one.curves if band_name(c.band, c.unit) not in words.bands]
        lost += [f"scalar {name}" for name in one.scalars if name not in words.measured]
        lost += ["spectra"] * bool(one.arms and "spectra" not in words.inputs)
        if len(lost) == len(one.curves) + len(one.scalars) + bool(one.arms):
            raise UserError(f"{one.object_id}: the model was not trained on its {', '.join(lost)}; it reads {self._reads()}")
        if lost:
            log.warning("%s: the model was not trained on its %s", one.object_id, ", ".join(lost))

    def _reads(self) -> str:
        words = self._words
        measured = [name for name in words.measured if not name.startswith(DERIVED)]
        return ", ".join(["spectra"] * ("spectra" in words.inputs) + [*words.bands, *measured])

    def embed(self, objects: Iterable[Observation], kind: str | None = None) -> np.ndarray:
        """(n, D) float32: one vector per object, the same as in the catalogue's file of embeddings; or, with kind "spectra",
        "curves" or "scalars", that of these measurements alone, in the space where kinds of one object are near each other.

        Raises UserError for an object without a good measurement (of that kind).
        """
        found = [np.zeros((0, self._predictor.model.config.width), np.float32)]
        if kind is not None and kind not in KINDS[1:]:
            raise UserError(f"kind {kind!r}: one of {', '.join(KINDS[1:])}")
        for some, order, batch in self._batches(objects):
            if kind is None:
                found.append(self._predictor(batch)["embedding"][order])
                continue
            with torch.inference_mode():
                of_kind = self._predictor.model.summary_of(batch.to(self._predictor.device), KINDS.index(kind))
                found.append(of_kind.cpu().numpy()[order])
            if np.isnan(found[-1]).any():
                lost = some[int(np.isnan(found[-1]).any(1).argmax())]
                raise UserError(f"{lost.object_id} has no {kind} that the model reads")
        return np.concatenate(found)

    def predict(self, objects: Iterable[Observation], names: Sequence[str] | None = None) -> Table:
        """A row per object: object_id, class and its probabilities, and of each parameter p (all, or those of these names) its
        value p, error p_err and half width p_err95 of the 95 % interval, as in the catalogue but for its flags.

        Raises UserError for a name that the run has not learned, and for an object without a good pixel.
        """
        task = self._predictor.task
        for name in names or ():
            if name not in task.parameters:
                raise UserError(f"the run has not learned {name!r}: it knows {', '.join(task.parameters) or 'no parameter'}")
        ids: list[str] = []
        rows: dict[str, list[np.ndarray]] = {"probability": [], "value": [], "error": [], "wide": []}
        for some, order, batch in self._batches(objects):
            ids += [one.object_id for one in some]
            found = self._predictor(batch)
            for key, values in rows.items():
                values.append(found[key][order])
        table = Table({"object_id": np.array(ids, np.str_)})
        probability, value, error, wide = (np.concatenate(x) if x else np.zeros((0, 0)) for x in rows.values())
        if task.classes and len(ids):
            table["class"] = np.array(task.classes)[probability.argmax(1)]
            for k, name in enumerate(task.classes):
                table[class_column(name)] = probability[:, k]
        for name in task.parameters if len(ids) else ():
            if names is None or name in names:
                k = task.parameters.index(name)
                table[name], table[f"{name}_err"], table[f"{name}_err95"] = value[:, k], error[:, k], wide[:, k]
        return table

    def generate(self, objects: Iterable[Observation], wavelengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flux and error (n, w) of each object at these vacuum wavelengths (w,), Å, ascending and about evenly spaced over a
        patch of pixels: what the model expects, whatever the object's own grid. Both are in the unit of the object's own flux;
        of an object without a spectrum, in units of the flux's median. It is best at the pixels of a survey's grid: the
        model knows patches that begin at multiples of `model.patch` on it, here at the first wavelength, but for logarithmic
        grids of 10⁻⁴ dex, on which it is known where they begin.

        Raises UserError for wavelengths that are none, and for an object that the model can't read.
        """
        w, patch = np.asarray(wavelengths, np.float64), self._words.patch
        if "spectra" not in self._words.inputs:
            raise UserError(f"the model was not trained on spectra; it reads {self._reads()}")
        if w.ndim != 1 or not len(w) or not np.isfinite(w).all() or w[0] <= 0 or (np.diff(w) <= 0).any():
            raise UserError("wavelengths are one ascending array of positive numbers, Å")
        grid, first = log_grid(np.log10(w))
        ahead = first % patch if grid.kind == "log10" else 0
        count, w = len(w), grid.wavelength(first - ahead, len(w) + ahead) if ahead else w
        starts = np.arange(0, len(w), patch)
        low, high = w[starts], w[np.minimum(starts + patch, len(w)) - 1]
        size = np.minimum(starts + patch, len(w)) - starts
        step = np.where(size > 1, (high - low) / np.maximum(size - 1, 1), 1.0)
        middle = (low + high) / 2 + step * (patch - size) / 2
        asked = torch.from_numpy(np.stack([middle, step], axis=1).astype(np.float32))
        found = [np.zeros((2, 0, count), np.float32)]
        for order, batch, answers in self._answers(objects, coordinates=asked):
            scale = self._own(batch, OF_SPECTRUM[0], 0.0)[order]
            both = [x[order, ahead : ahead + count] for x in _apart(answers.spectra, len(batch))]
            found.append(10.0 ** scale[:, None] * np.stack(both))
        flux, error = np.concatenate(found, axis=1)
        return flux, error

    def generate_light_curve(self, objects: Iterable[Observation], band: str, days: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value and error (n, t) of each object in a band (with its unit, "V mag") at these days (t,) since its own first
        epoch: what the model expects. Of an object without that band, about its level and in units of its amplitude.

        Raises UserError for an unknown band, and for an object that the model can't read.
        """
        if band not in self._words.bands:
            raise UserError(f"band {band!r}: the model knows {', '.join(self._words.bands) or 'none'}")
        days = np.asarray(days, np.float64)
        if days.ndim != 1 or not np.isfinite(days).all():
            raise UserError("days are one array of finite numbers")
        when = torch.from_numpy(days).float()
        found = [np.zeros((2, 0, len(when)), np.float32)]
        for order, batch, answers in self._answers(objects, days=when, band=self._words.bands.index(band)):
            level, amplitude = (self._own(batch, f"{name} {band}", 0.0)[order, None] for name in OF_CURVE)
            mean, error = (x[order] * 10.0**amplitude for x in _apart(answers.curves, len(batch)))
            found.append(np.stack([mean + level, error]))
        value, error = np.concatenate(found, axis=1)
        return value, error

    def generate_scalars(self, objects: Iterable[Observation], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Value and error (n, k) of scalars of these names (k,): what the pretrained model expects of each object.

        Raises UserError for an unknown name, and for an object that the model can't read.
        """
        known = [name for name in self._words.names[1:] if name != PERIOD]  # which is never hidden, so never asked for
        for name in names:
            if name not in known:
                raise UserError(f"the model knows no scalar {name!r}: it knows {', '.join(known)}")
        asked = torch.tensor([self._words.names.index(name) for name in names])
        found = [np.zeros((2, 0, len(names)), np.float32)]
        for order, batch, answers in self._answers(objects, names=asked):
            mean, error = (torch.from_numpy(x).flatten() for x in _apart(answers.scalars, len(batch)))
            questions = (x.to(self._predictor.device) for x in (asked.repeat(len(batch)), mean, error))
            measured = self._predictor.model.embed_scalar.measured(*questions)
            found.append(np.stack([x.cpu().numpy().reshape(len(batch), -1)[order] for x in measured]))
        value, error = np.concatenate(found, axis=1)
        return value, error

    def _answers(self, objects: Iterable[Observation], names: torch.Tensor | None = None, coordinates: torch.Tensor | None = None,
                 days: torch.Tensor | None = None, band: int = 0) -> Iterator[tuple[np.ndarray, Batch, Answers]]:  # fmt: skip
        """The same questions about each object: the order that undoes that of the batch, the batch and the answers."""
        model, device, none = self._predictor.model, self._predictor.device, torch.zeros(0)
        name, where, when = (none.long() if names is None else names, torch.zeros(0, 2) if coordinates is None else coordinates,
                             none if days is None else days)  # fmt: skip
        for _, order, batch in self._batches(objects):
            n = len(batch)
            owners = [torch.arange(n).repeat_interleave(len(x)) for x in (name, where, when)]
            phases = self._phases(batch, when)
            asked = Questions(name.repeat(n), where.repeat(n, 1), when.repeat(n), phases, torch.full((n * len(when),), band),
                              (owners[0], owners[1], owners[2]))  # fmt: skip
            with torch.inference_mode():
                given = batch.to(device)
                encoded = model.encode(given)
                yield order, batch, model.answer(asked.to(device), encoded.tokens, encoded.packing, given)

    def _phases(self, batch: Batch, days: torch.Tensor) -> torch.Tensor:
        """(n·t,) phases of days (t,) at the period of each object, NaN where it isn't known."""
        if self._words.period is None:
            return torch.full((len(batch) * len(days),), torch.nan)
        period = 10.0 ** torch.from_numpy(self._own(batch, PERIOD, np.nan))
        return ((days / period[:, None]) % 1).flatten().float()

    def _own(self, batch: Batch, name: str, absent: float) -> np.ndarray:
        """(n,) value of a scalar of each object."""
        out = np.full(len(batch), absent)
        of_name = batch.scalars.name == self._words.names.index(name)
        out[batch.owners[0][of_name].numpy()] = batch.scalars.value[of_name].numpy()
        return out

    def search(self, embedding: np.ndarray, among: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The rows of `among` (m, D) that are most like each row of `embedding` (n, D), most alike first, and their cosine
        similarities: (n, k) int64 and float32, k the lower of `count` and m."""
        from sklearn.neighbors import NearestNeighbors

        fitted = NearestNeighbors(n_neighbors=min(count, len(among)), metric="cosine", algorithm="brute").fit(among)
        distance, rows = fitted.kneighbors(embedding)
        return rows, (1 - distance).astype(np.float32)


def _apart(answer: tuple[torch.Tensor, torch.Tensor], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and error (n, …) of a batch of n objects from mean and log variance one after another."""
    mean, log_variance = (x.reshape(count, -1).cpu().numpy() for x in answer)
    return mean, np.exp(0.5 * log_variance)
