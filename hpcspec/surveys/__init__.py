"""Readers of survey files, one module per survey, found by name.

A reader is a module with `discover(folder) -> list[Source]` and `read(source) -> Iterator[Observation | Quarantined]`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

from hpcspec.errors import UserError
from hpcspec.surveys.base import Quarantined, Source
from hpcspec.surveys.observation import Observation

SURVEYS = {name: f"hpcspec.surveys.{name}" for name in ("sdss", "desi", "apogee", "galah", "lamost")}


class Reader(Protocol):
    """What a survey's module offers."""

    LABELS: frozenset[str]
    """Names in `Observation.meta` that can serve as labels where no label table is given."""

    def discover(self, folder: Path) -> list[Source]:
        """The pieces of work in `folder`, sorted; each is read alone."""
        ...

    def read(self, source: Source) -> Iterator[Observation | Quarantined]:
        """The objects of one source; every object comes out once, as a spectrum or as a quarantined row."""
        ...


def reader(survey: str) -> Reader:
    """The reader of a survey.

    Raises UserError for an unknown survey, naming the nearest known one.
    """
    if survey not in SURVEYS:
        near = difflib.get_close_matches(survey, SURVEYS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown survey {survey!r}: known are {', '.join(SURVEYS)}.{hint}")
    return cast(Reader, importlib.import_module(SURVEYS[survey]))
