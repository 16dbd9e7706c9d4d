"""What the experiments of a row share: samples, runs of the model, and where results go."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from hpcspec.errors import UserError
from hpcspec.evaluate.baselines import QUICK, Effort
from hpcspec.evaluate.inputs import NotMeasured, Sample, load_sample
from hpcspec.evaluate.model import ModelUnderTest, Training
from hpcspec.evaluate.spec import Evaluation
from hpcspec.surveys import discover


class Workspace:
    """The evaluation's data below `data`, its results and runs below `output`."""

    def __init__(self, evaluation: Evaluation, data: Path, output: Path, quick: bool):
        self.evaluation, self.data, self.output, self.quick = evaluation, data, output, quick
        self.effort = QUICK if quick else Effort(threads=os.cpu_count() or 1)
        self.sample = functools.lru_cache(maxsize=6)(self._sample)  # hundreds of MB each
        self._models: dict[tuple[str, int, int], ModelUnderTest] = {}

    def seeds(self, wanted: list[int]) -> list[int]:
        """These, or the first of them with --quick."""
        return wanted[:1] if self.quick else wanted

    def folder(self, name: str, part: str, seed: int = 1) -> Path:
        """The folder of survey files of a part of a data set; parts of a split are folders of links.

        Raises NotMeasured if it isn't there.
        """
        data = self.evaluation.data[name]
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
        for source in sources:
            if (source.key in tested) == (part == "test"):
                for file in source.paths:
                    link = out / file.relative_to(path)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    if not link.is_symlink():
                        link.symlink_to(file)
        return out

    def _sample(self, name: str, part: str = "train", seed: int = 1) -> Sample:
        """The objects of a part of a data set with their labels. Raises NotMeasured if they aren't there."""
        data = self.evaluation.data[name]
        return load_sample(data, self.folder(name, part, seed), [self.data / t for t in data.tables])

    def model(self, run: str, seed: int, labels: Mapping[str, Sample], split_seed: int = 1) -> ModelUnderTest:
        """A run of the model with this seed, on the labels of all its training objects, or of these, by data set.

        Raises NotMeasured if data are not there.
        """
        said = self.evaluation.runs[run]
        folder = (
            self.output / "runs" / f"{run}-s{seed}" if split_seed == 1 else self.output / "runs" / f"{run}-s{seed}-{split_seed}"
        )
        quick = self.evaluation.quick if self.quick else {}
        key = (run, seed, split_seed)
        if key not in self._models:
            try:
                self._models[key] = ModelUnderTest(folder, said.config, {**said.set, **quick}, seed, said.minutes)
            except UserError as error:
                raise NotMeasured(str(error)) from error
        surveys: dict[str, Training] = {}
        for name in said.data:
            data, sample = self.evaluation.data[name], labels.get(name) or self.sample(name, "train", split_seed)
            if data.survey in surveys:
                raise UserError(f"runs.{run}.data: two data sets are of the survey {data.survey}")
            table = folder / "labels" / f"{name}-{len(sample)}.csv"
            sample.write_labels(table)
            learned = tuple(p for p in data.parameters if sample.known([p]).sum() >= 10)
            surveys[data.survey] = Training(self.folder(name, "train", split_seed), table, bool(data.object_class), learned)
        self._models[key].use(surveys)
        return self._models[key]
