"""What the experiments of a row share: samples, runs of the model, and where results go."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml

from hpcspec.atomic import write_text
from hpcspec.errors import UserError
from hpcspec.evaluate.baselines import QUICK, Effort
from hpcspec.evaluate.inputs import NotMeasured, Sample, load_sample
from hpcspec.evaluate.model import ModelUnderTest, Training
from hpcspec.evaluate.resample import write_resampled
from hpcspec.evaluate.spec import Evaluation
from hpcspec.surveys import discover

log = logging.getLogger(__name__)
T = TypeVar("T")
FEW = 100  # simulated objects of each recipe with --quick


class Workspace:
    """The evaluation's data below `data`, its results and runs below `output`."""

    def __init__(self, evaluation: Evaluation, data: Path, output: Path, quick: bool):
        self.evaluation, self.data, self.output, self.quick = evaluation, data, output, quick
        self.effort = QUICK if quick else Effort(threads=os.cpu_count() or 1)
        self.sample = functools.lru_cache(maxsize=6)(self._sample)  # hundreds of MB each
        self._kept: dict[str, Any] = {}
        self._models: dict[tuple[str, int, int], ModelUnderTest] = {}

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What `make` gives, kept under a name."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def seeds(self, wanted: list[int]) -> list[int]:
        """These, or the first of them with --quick."""
        return wanted[:1] if self.quick else wanted

    def folder(self, name: str, part: str, seed: int = 1) -> Path:
        """The folder of survey files of a part of a data set; those of a split are links, and resampled spectra are written.

        Raises NotMeasured if it isn't there.
        """
        data = self.evaluation.data[name]
        if data.resampled is not None:
            out = self.output / "resampled" / f"{name}-{data.resampled.step:g}-s{seed}" / part
            if not out.is_dir():
                making = out.with_suffix(".tmp")
                write_resampled(self.sample(data.resampled.data, part, seed).objects, making, data.resampled.step)
                making.rename(out)
            return out
        if part in data.recipes:
            recipe = dict(data.recipes[part])
            if self.quick and isinstance(recipe.get("objects"), int):
                recipe["objects"] = min(recipe["objects"], FEW)
            file = self.output / "simulated" / name / part / f"{name}-{part}.simulated.yaml"
            text = yaml.safe_dump(recipe, sort_keys=False)
            if not file.is_file() or file.read_text() != text:
                write_text(file, text)
            return file.parent
        source = "all" if data.split and part in ("train", "test") else part
        if source not in data.folders:
            raise NotMeasured(f"data.{name} names no folder {part!r}: add it to data.{name}.folders")
        path = (self.data / data.folders[source]).resolve()
        if not path.is_dir():
            raise NotMeasured(f"{path} is not there: put {data.survey} files in it, or name another in data.{name}.folders")
        if source == part:
            return path
        return self._linked(name, path, part, seed)

    def _linked(self, name: str, path: Path, part: str, seed: int) -> Path:
        data = self.evaluation.data[name]
        out = self.output / "split" / f"{name}-s{seed}" / part
        try:
            sources = discover(data.survey, path)
        except UserError as error:
            raise NotMeasured(str(error)) from error
        draws = {s.key: int.from_bytes(hashlib.sha256(f"{seed} {s.key}".encode()).digest()[:8], "big") for s in sources}
        tested = {s.key for s in sorted(sources, key=lambda s: draws[s.key])[: round((data.split or 0) * len(sources))]}
        if not tested or len(tested) == len(sources):
            raise NotMeasured(
                f"{path} holds {len(sources)} file(s) with objects, too few to split: give `train` and `test` folders"
            )
        _link(out, path, (f for source in sources if (source.key in tested) == (part == "test") for f in source.paths))
        return out

    def _sample(self, name: str, part: str = "train", seed: int = 1) -> Sample:
        """The objects of a part of a data set with their labels. Raises NotMeasured if they aren't there."""
        data = self.evaluation.data[name]
        of_part = data.tables
        if isinstance(of_part, dict):
            of_part = [of_part[k] for k in ("all" if data.split else part,) if k in of_part]
        return load_sample(data, self.folder(name, part, seed), [self.data / t for t in of_part])

    def model(self, run: str, seed: int, labels: Mapping[str, Sample], split_seed: int = 1) -> ModelUnderTest:
        """A run of the model with this seed, on the labels of all its training objects, or of these, by data set. Data sets of
        one survey are trained on as one.

        Raises NotMeasured if data are not there.
        """
        said = self.evaluation.runs[run]
        pretrained = self.model(said.pretrained, seed, labels, split_seed) if said.pretrained else None
        folder = (
            self.output / "runs" / f"{run}-s{seed}" if split_seed == 1 else self.output / "runs" / f"{run}-s{seed}-{split_seed}"
        )
        quick = self.evaluation.quick if self.quick else {}
        key = (run, seed, split_seed)
        if key not in self._models:
            try:
                settings = sorted({**said.set, **quick}.items(), key=lambda item: item[0].count("."))  # a section, then its keys
                self._models[key] = ModelUnderTest(folder, said.config, dict(settings), seed, said.minutes, pretrained)
            except UserError as error:
                raise NotMeasured(str(error)) from error
        members: dict[str, dict[str, Sample]] = {}
        for name in said.data:
            try:
                sample = labels.get(name) or self.sample(name, "train", split_seed)
            except NotMeasured as reason:
                if said.absent == "refuse" or name in labels:
                    raise
                self.once(f"absent {run} {name}", partial(log.info, "%s is trained without %s: %s", run, name, reason))
                continue
            members.setdefault(self.evaluation.data[name].survey, {})[name] = self._learned(name, sample)
        if not members:
            raise NotMeasured(f"none of {', '.join(said.data)} is there")
        surveys: dict[str, Training] = {}
        for survey, samples in members.items():
            joined, name = _joined(list(samples.values())), "-".join(samples)
            table = folder / "labels" / f"{name}-{len(joined)}.csv"
            joined.write_labels(table)
            learned = tuple(p for p in joined.values if joined.known([p]).sum() >= 10)
            inputs = {n: self.folder(n, "train", split_seed) for n in samples}
            for part, path in inputs.items() if len(inputs) > 1 else ():
                found = (f for source in discover(survey, path) for f in source.paths)
                _link(folder / "inputs" / name / part, path, found)
            whole = folder / "inputs" / name if len(inputs) > 1 else next(iter(inputs.values()))
            surveys[survey] = Training(whole, table, bool((joined.classes != "").any()), learned)
        self._models[key].use(surveys)
        return self._models[key]

    def _learned(self, name: str, sample: Sample) -> Sample:
        """A sample with the labels that runs may learn alone."""
        data = self.evaluation.data[name]
        names = data.parameters if data.learn is None else data.learn
        return replace(sample, values={p: sample.values[p] for p in names if p in sample.values})


def _link(out: Path, folder: Path, files: Iterable[Path]) -> None:
    """Links to files below a folder, at the same places below another."""
    for file in files:
        link = out / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(file)


def _joined(samples: list[Sample]) -> Sample:
    """Samples one after another, with the labels of any."""
    if len(samples) == 1:
        return samples[0]
    names = dict.fromkeys(name for s in samples for name in s.values)
    values = {n: np.concatenate([s.values.get(n, np.full(len(s), np.nan)) for s in samples]) for n in names}
    objects, rows = (tuple(x for s in samples for x in getattr(s, key)) for key in ("objects", "rows"))
    return Sample(objects, values, np.concatenate([s.classes for s in samples]), rows)
