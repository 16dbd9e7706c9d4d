"""Readers of survey files, one module per survey, found by name.

A reader is a module with `LABELS`, `discover(folder) -> list[Source]` and `read(source) -> Iterator[Observation | Quarantined]`.
Those of SURVEYS are built in; an installed package adds its own through the entry point group `hpcspec.surveys`:

    [project.entry-points."hpcspec.surveys"]
    mysurvey = "mypackage.mysurvey"

Files of the Multimodal Universe, in its own HDF5 or as HATS (Parquet), are read in place of a survey's own files wherever
`discover` meets them.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from hpcspec.errors import UserError
from hpcspec.surveys.base import Quarantined, Source
from hpcspec.surveys.observation import Observation

log = logging.getLogger(__name__)

GROUP = "hpcspec.surveys"
SURVEYS = {
    name: f"hpcspec.surveys.{name}"
    for name in ("sdss", "desi", "apogee", "galah", "lamost", "gaia", "asassn", "asas", "eros", "light_curves", "simulated",
                 "generic")
}  # fmt: skip
MULTIMODAL = frozenset({"sdss", "desi", "apogee", "galah", "gaia"})  # also read as Multimodal Universe


class Reader(Protocol):
    """What a survey's module offers."""

    LABELS: frozenset[str]
    """Names in `Observation.meta` that can serve as labels where no label table is given."""

    def discover(self, folder: Path) -> list[Source]:
        """The pieces of work in `folder`, sorted; each is read alone."""
        ...

    def read(self, source: Source) -> Iterator[Observation | Quarantined]:
        """The objects of one source; every object comes out once, as an observation or as a quarantined row."""
        ...


def discover(survey: str, folder: Path, epochs: bool = False) -> list[Source]:
    """The pieces of work of a survey in `folder`: Multimodal Universe HDF5 if it holds any, else Multimodal Universe
    Parquet (HATS), else the survey's own files. `epochs` asks for each epoch as an observation of its own.

    Raises UserError for an unknown survey, or a folder without its files.
    """
    native = reader(survey)
    shared = _shared(survey, folder)
    if shared is None:
        return [replace(source, epochs=epochs) for source in native.discover(folder)]
    paths = shared.files(folder)
    log.info("%s: %d files of the %s", folder, len(paths), shared.TITLE)
    return [Source(str(path.relative_to(folder)), (path,), epochs) for path in paths]


def read(survey: str, source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a source that `discover` found; every object comes out once, as an observation or a quarantined row.

    Raises UserError for an unknown survey.
    """
    shared = next((layout for layout in _layouts(survey) if layout.holds(source.paths[0])), None)
    yield from shared.read(survey, source) if shared else reader(survey).read(source)


def read_rows(survey: str, path: Path, numbers: Sequence[int]) -> list[Observation | Quarantined]:
    """The objects of these increasing rows of a file that is read in place: of the Multimodal Universe. A row is the place
    of an item in what `read` yields. Without rows the file isn't opened, only its kind looked at.

    Raises UserError if the file can't be read, has no such rows, or is of a kind that isn't read in place.
    """
    shared = next((layout for layout in _layouts(survey) if layout.holds(path)), None)
    if shared is None:
        raise UserError(f"{path} can't be read in place, only files of the Multimodal Universe can: set ingest.samples: copy")
    found: list[Observation | Quarantined] = shared.rows(survey, path, numbers) if numbers else []
    if len(found) != len(numbers):
        raise UserError(f"{path} has only {len(found)} of {len(numbers)} rows that it had: it was changed; ingest again")
    return found


def labels(survey: str, folder: Path | None = None) -> frozenset[str]:
    """The names in `Observation.meta` that can serve as labels, given what kind of files `folder` holds.

    Raises UserError for an unknown survey.
    """
    shared = _shared(survey, folder) if folder else None
    return shared.labels(survey, cast(Path, folder)) if shared else reader(survey).LABELS


def _layouts(survey: str) -> list[ModuleType]:
    """The modules of the layouts that this survey's objects come in besides its own."""
    names = ("multimodal_hdf5", "hats") if survey in MULTIMODAL else ()
    return [importlib.import_module(f"hpcspec.surveys.{name}") for name in names]


def _shared(survey: str, folder: Path) -> ModuleType | None:
    return next((layout for layout in _layouts(survey) if layout.found(folder)), None)


@functools.cache
def reader(survey: str) -> Reader:
    """The reader of a survey's own files: built in, or from an installed package. A built-in one can't be replaced; a
    package that tries is warned of.

    Raises UserError for an unknown survey, naming the known ones and the nearest, or for a package's reader that is broken.
    """
    added = _added()
    if survey in SURVEYS:
        for entry in added.get(survey, ()):
            log.warning("survey %r of package %s is not used: that is a built-in name; give it another one", survey, _of(entry))
        return cast(Reader, importlib.import_module(SURVEYS[survey]))
    if survey not in added:
        near = difflib.get_close_matches(survey, [*SURVEYS, *added], 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown survey {survey!r}: known are {', '.join([*SURVEYS, *sorted(added)])}.{hint}")
    entries = added[survey]
    if len(entries) > 1:
        packages = ", ".join(map(_of, entries))
        raise UserError(f"survey {survey!r} is offered by more than one package: {packages}; uninstall all but one")
    return _loaded(survey, entries[0])


def _added() -> dict[str, list[metadata.EntryPoint]]:
    """What installed packages add, by name; a package that is found twice on the path counts once."""
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, {}).setdefault((_of(entry), entry.value), entry)
    return {name: list(entries.values()) for name, entries in found.items()}


def _of(entry: metadata.EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _loaded(survey: str, entry: metadata.EntryPoint) -> Reader:
    where = f"survey {survey!r} of package {_of(entry)} ({entry.value})"
    try:
        module = entry.load()
    except Exception as error:  # another's code may raise anything
        raise UserError(f"{where} can't be imported: {type(error).__name__}: {error}") from error
    lost = [name for name in ("LABELS", "discover", "read") if not hasattr(module, name)]
    if lost:
        raise UserError(f"{where} is not a reader: it has no {', '.join(lost)}")
    return cast(Reader, module)
