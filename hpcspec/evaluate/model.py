"""The model as a user meets it: trained and catalogued through the command line, and read from what that publishes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from astropy.table import Table
from astropy.units import UnitsWarning

from hpcspec.atomic import read_json, write_json, write_text
from hpcspec.cluster.run import digest
from hpcspec.config_files import dump, load, named_file
from hpcspec.errors import UserError
from hpcspec.evaluate.inputs import NotMeasured

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What one survey of a run is trained on: its folder, a table with the columns object_id, class and the parameters, and
    which of these columns to learn."""

    folder: Path
    table: Path
    classes: bool
    parameters: tuple[str, ...]


def submit(arguments: Sequence[str | Path], log_file: Path, minutes: float) -> float:
    """`python -m hpcspec.submit …`, its output appended to a file; returns its seconds.

    Raises NotMeasured with the last line of its errors if it fails or takes too long; it goes on where it was when run again.
    """
    command = [sys.executable, "-m", "hpcspec.submit", *map(str, arguments)]
    log_file.parent.mkdir(parents=True, exist_ok=True)
    log.info("%s", " ".join(command[1:]))
    began = time.monotonic()
    with open(log_file, "a") as file:
        print("$", *command, file=file, flush=True)
        at = file.tell()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"the model took longer than {minutes:g} minutes: raise `minutes`, or run the same again") from None
        finally:
            if process.poll() is None:  # it ends its jobs first
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    if code:
        with open(log_file) as file:
            file.seek(at)
            lines = [line.strip() for line in file if line.strip()]
        said = next((x for x in reversed(lines) if x.startswith(("error:", "failed:"))), lines[-1] if lines else "")
        raise NotMeasured(f"the model's run failed: {said} (see {log_file})")
    return time.monotonic() - began


class ModelUnderTest:
    """A run folder that is trained as asked, once or again with other labels, and the catalogues made with it."""

    def __init__(self, folder: Path, config: str, settings: Mapping[str, Any], seed: int, minutes: float,
                 pretrained: ModelUnderTest | None = None):  # fmt: skip
        self.path, self._folder, self._minutes, self._log = folder / "run", folder, minutes, folder / "log.txt"
        given = [f"{k}={json.dumps(v)}" for k, v in {"seed": seed, **settings}.items()]
        self._loaded: tuple[str | None, Any] = (None, None)
        self._pretrained = pretrained
        self._config, self._text, self._key = load(named_file("pipelines", config), given), "", ""

    def use(self, surveys: Mapping[str, Training]) -> None:
        """From here on it is the model that was trained on these surveys and labels. It is trained when it is asked something
        that is not known yet; shards and weights that are there are kept, and only the heads trained for other labels."""
        tree = yaml.safe_load(dump(self._config))
        tree["surveys"], tree["simulate"] = {}, {}
        for name, x in surveys.items():
            labels = {"path": str(x.table), "key": "object_id", "parameters": {p: p for p in x.parameters}}
            labels |= {"object_class": "class"} if x.classes else {}
            tree["surveys"][name] = {"input": str(x.folder), "labels": labels}
            self._share(self.path, name, x.folder)
        self._text = yaml.safe_dump(tree, sort_keys=False)
        self._key = digest(self._text, [x.table.read_text() for x in surveys.values()])

    def _share(self, run_or_catalogue: Path, survey: str, folder: Path) -> None:
        """Let a run or a catalogue have its shards of survey files in a place that all of the evaluation's share: what one has
        ingested the others find done."""
        known = digest(survey, str(folder), self._config.ingest.model_dump())
        shared, link = self._folder.parent.parent / "shards" / known, run_or_catalogue / "shards" / survey
        shared.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and link.resolve() != shared.resolve():
            link.unlink()
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(shared.resolve())

    def _train(self) -> None:
        marker = self._folder / "trained.json"
        if (read_json(marker) or {}).get("key") == self._key:
            return
        arguments: list[str | Path] = []
        if self._pretrained is not None:
            self._pretrained.pretrain()
            arguments = ["--pretrained", self._pretrained.path]
        write_json(marker, {"key": self._key, "seconds": self._submitted("adapt", *arguments)})

    def _submitted(self, verb: str, *more: str | Path) -> float:
        config = self._folder / "evaluate.yaml"
        write_text(config, self._text)
        given = [verb, "--config", config, "--run", self.path, *more, "--executor", "local"]
        return submit(given, self._log, self._minutes)

    def pretrain(self) -> None:
        """Make sure that it is pretrained."""
        marker, key = self._folder / "pretrained.json", digest(self._config.model_dump(exclude={"adapt", "catalog"}))
        if (read_json(marker) or {}).get("key") != key:
            write_json(marker, {"key": key, "seconds": self._submitted("pretrain")})

    @property
    def seconds(self) -> float:
        """Wall time of the last training, without the pretraining where that is another run's."""
        return (read_json(self._folder / "trained.json") or {}).get("seconds", float("nan"))

    def catalogue(self, survey: str, folder: Path, name: str) -> Table:
        """The published table of the survey files in a folder, with the embeddings (n, D) as a column `embedding`.

        Raises NotMeasured if it can't be made.
        """
        out = self._folder / "catalogs" / f"{name}-{self._key[:12]}"
        if not (out / "evaluated.json").is_file():
            self._train()
            self._share(out / "work", survey, folder)
            arguments: list[str | Path] = ["catalog", "--run", self.path, "--survey", survey, "--input", folder, "--output", out]
            seconds = submit([*arguments, "--executor", "local"], self._log, self._minutes)
            write_json(out / "evaluated.json", {"seconds": seconds})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnitsWarning)  # dex, which FITS doesn't know
            table = Table.read(out / f"hpcspec-{survey}.fits", character_as_bytes=False)
        vectors = pq.read_table(out / f"hpcspec-{survey}-embeddings.parquet", columns=["object_id", "embedding"])
        by_id = dict(zip(vectors["object_id"].to_pylist(), vectors["embedding"].to_numpy(), strict=True))
        table["embedding"] = np.stack([by_id[i] for i in table["object_id"].tolist()])
        return table

    def loaded(self) -> Any:
        """`hpcspec.load` of the run. Raises NotMeasured if it isn't trained."""
        from hpcspec.trained import load as load_run

        self._train()
        if self._loaded[0] != self._key:
            try:
                self._loaded = self._key, load_run(self.path)
            except UserError as error:
                raise NotMeasured(str(error)) from error
        return self._loaded[1]


def rows_of(table: Table, ids: Sequence[str]) -> np.ndarray:
    """(n,) row of each identifier in a catalogue, −1 where it has none."""
    place = {name: i for i, name in enumerate(table["object_id"].tolist())}
    return np.array([place.get(name, -1) for name in ids], int)


def column(table: Table, name: str, rows: np.ndarray) -> np.ndarray:
    """A column's values for these rows, NaN (or "") where the row is −1 or the value is masked.

    Raises NotMeasured if the catalogue has no such column.
    """
    if name not in table.colnames:
        raise NotMeasured(f"the catalogue has no column {name!r}")
    values = np.ma.asarray(table[name])
    empty: Any = "" if values.dtype.kind in "US" else np.nan
    filled = np.array(values.filled(empty) if np.ma.isMaskedArray(values) else values)
    return np.where(rows >= 0, filled[rows], empty)
