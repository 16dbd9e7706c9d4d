"""The run folder: where everything about a run is written, and from where every later question is answered."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpcspec import __version__
from hpcspec.atomic import file_hash, read_json, replacing, write_json, write_text
from hpcspec.config import Config
from hpcspec.config_files import dump, load
from hpcspec.errors import UserError

DEPENDENCIES = ("torch", "deepspeed", "numpy", "h5py", "astropy", "mpi4py", "submitit", "pyarrow", "scikit-learn", "xgboost")


def digest(*content: Any) -> str:
    """A short hash of JSON-like values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Run:
    """Paths of a run folder, and the markers of its finished stages."""

    path: Path

    @property
    def config_path(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def logs(self) -> Path:
        """One log per stage, and submitit's folders."""
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        """One JSON line per interval of pretraining."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """DeepSpeed's checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights(self) -> Path:
        """The pretrained weights, put together."""
        return self.path / "model" / "weights.safetensors"

    @property
    def adapted(self) -> Path:
        """The head and what it predicts."""
        return self.path / "adapt"

    def pretrained_elsewhere(self, given: str) -> Path:
        """The weights of a pretrained model that is named by its run folder, by its own folder, or itself; this run's copy of
        them if they are gone.

        Raises UserError if there are none.
        """
        path = Path(given)
        found = [p for p in (path / "model" / "weights.safetensors", path / "weights.safetensors", path) if p.is_file()]
        if not found and (self.done("pretrain") or {}).get("taken_from") == given and self.weights.is_file():
            return self.weights
        if not found:
            raise UserError(f"pretrained: {path} is no run that has been pretrained: it has no model/weights.safetensors")
        return found[0]

    def take_pretrained(self, given: str) -> None:
        """Copy the pretrained model of another run, unless that is done, and note that there is nothing to pretrain."""
        began, source = time.time(), self.pretrained_elsewhere(given)
        key = digest(files_key([source]))
        if source == self.weights or (self.done("pretrain", key) and self.weights.is_file()):
            return
        for name in ("model.json", self.weights.name):
            with replacing(self.weights.with_name(name)) as temporary:
                shutil.copyfile(source.with_name(name), temporary)
        self.mark("pretrain", key, began, weights=file_hash(self.weights), taken_from=given)

    def shards(self, survey: str) -> Path:
        """The survey's shards."""
        return self.path / "shards" / survey

    def catalog(self, survey: str, config: Config) -> Path:
        """Where the survey's catalogue is published: `catalog/`, or a folder each in it for several surveys."""
        return self.path / "catalog" / (survey if len(config.surveys) > 1 or survey not in config.surveys else "")

    def create(self, config: Config) -> None:
        """Write the configuration and the versions; a run that is there already is given the new configuration."""
        write_text(self.config_path, dump(config))
        write_json(self.path / "version.json", versions())

    def config(self) -> Config:
        """The run's configuration.

        Raises UserError if the folder isn't a run.
        """
        if not self.config_path.is_file():
            raise UserError(f"{self.path} is not a run folder (it has no config.yaml): give one with --run")
        return load(self.config_path)

    def _marker(self, stage: str) -> Path:
        return self.path / "state" / f"{stage}.json"

    def done(self, stage: str, key: str | None = None) -> dict[str, Any] | None:
        """What a finished stage left behind, if it is finished and its inputs (`key`) are the same; else None."""
        marker: dict[str, Any] | None = read_json(self._marker(stage))
        return marker if marker and key in (None, marker["key"]) else None

    def mark(self, stage: str, key: str, began: float, **content: Any) -> None:
        """Note that a stage is finished."""
        write_json(self._marker(stage), {"key": key, "seconds": round(time.time() - began, 2), **content})

    def last_metrics(self) -> dict[str, Any]:
        """The last whole line of metrics.jsonl, or nothing."""
        for text in reversed(self.metrics.read_text().splitlines() if self.metrics.is_file() else []):
            try:
                return dict(json.loads(text))
            except json.JSONDecodeError:  # torn by a kill
                continue
        return {}

    def error(self, stage: str, message: str | None = None) -> str | None:
        """Note, or with no message read and forget, the mistake of the user that ended a stage."""
        path = self.path / "state" / f"{stage}.error"
        if message is not None:
            write_text(path, message)
            return message
        found = path.read_text() if path.is_file() else None
        path.unlink(missing_ok=True)
        return found


def versions() -> dict[str, str]:
    """Versions of this program, of Python and of what it depends on."""
    out = {"hpcspec": __version__, "python": platform.python_version()}
    try:
        folder = Path(__file__).resolve().parents[2]
        commit = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        out["commit"] = commit.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    for name in DEPENDENCIES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def newest_trained(folder: Path) -> Run:
    """The run below `folder` whose pretraining finished last.

    Raises UserError if there is none.
    """
    found = sorted(folder.glob("*/model/weights.safetensors"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(f"no trained run in {folder}: train one (sbatch slurm/pretrain.sbatch) or name it with --run")
    return Run(found[-1].parents[1])


@dataclass(frozen=True)
class Release:
    """One catalogue to be made: of a run's own survey, or of other files given with --input and --output."""

    run: Run
    survey: str
    source: Path
    shards: Path
    parts: Path
    out: Path

    @property
    def own(self) -> bool:
        """Whether this is the catalogue of the files that the run itself ingested."""
        return self.shards == self.run.shards(self.survey)

    def made(self, path: Path) -> bool:
        """Whether a file below the input was made by this run or catalogue, so it is no input."""
        return any(path.is_relative_to(folder) and not self.source.is_relative_to(folder)
                   for folder in (self.run.path.resolve(), self.out.resolve()))  # fmt: skip

    def marker(self, stage: str) -> str:
        """The name of a stage's marker in the run's state."""
        return f"{stage}-{self.survey}" if self.own else f"{stage}-{self.survey}-{digest(str(self.out))}"


def release(run: Run, config: Config, survey: str, source: str | None = None, output: str | None = None) -> Release:
    """The catalogue of `survey`, of its configured input or of `source`, in the run folder or in `output`."""
    configured = config.surveys[survey].input if survey in config.surveys else None
    given = Path(source).resolve() if source else None
    if output is None and (given is None or (configured and given == Path(configured).resolve())):
        if not configured:
            raise UserError(f"where are the {survey} files? Give --input, or set surveys.{survey}.input")
        parts = run.path / "state" / "parts" / survey
        return Release(run, survey, Path(configured), run.shards(survey), parts, run.catalog(survey, config))
    source_path = given or Path(configured or "")
    if not source_path.name:
        raise UserError(f"where are the {survey} files? Give --input, or set surveys.{survey}.input")
    out = Path(output or run.path / "catalog" / f"{survey}-{digest(str(source_path))}").resolve()
    work = out / "work"
    return Release(run, survey, source_path, work / "shards" / survey, work / "parts" / survey, out)


def files_key(paths: list[Path]) -> Mapping[str, Any]:
    """Sizes and times of files, to notice that they changed."""
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) if p.exists() else None for p in paths}
