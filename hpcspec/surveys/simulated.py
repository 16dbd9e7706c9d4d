"""Simulated populations with known truth, made from recipes: small text files `*.simulated.yaml` (or .yml) that say which
population, how many objects and from what seed; see the classes of POPULATIONS for their other keys.

    population: variables
    objects: 2000
    seed: 1

An object follows from its recipe and its number alone, so the same files always hold the same objects. Those of two recipes
of one population and seed are the same ones, of which the first that is read counts; training and test sets have different
seeds. The truth about each object is in meta.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from hpcspec.config import Section
from hpcspec.config_files import validated
from hpcspec.errors import UserError
from hpcspec.simulate import variables, xp_stars
from hpcspec.surveys.base import FAULTS, Quarantined, Source, guarded, reason_of
from hpcspec.surveys.observation import BadObject, Observation
from hpcspec.surveys.tables import files

LABELS = frozenset({"class", "true_class", "subclass", "teff", "logg", "m_h", "log_period", "abs_mag", "logebv", "distance"})
NAMES = re.compile(r"\.simulated\.ya?ml$", re.IGNORECASE)
LONGEST = 1 << 16  # bytes of a recipe
POPULATIONS: dict[str, tuple[type[Section], Callable[[Any, int], Observation]]] = {
    "variables": (variables.Variables, variables.observation),
    "stars_xp": (xp_stars.XpStars, xp_stars.observation),
}


def discover(folder: Path) -> list[Source]:
    """One source per recipe. Raises UserError if there is none."""
    return [Source(str(path.relative_to(folder)), (path,)) for path in files(folder, NAMES, "recipes (*.simulated.yaml)")]


def read(source: Source) -> Iterator[Observation | Quarantined]:
    """The objects of a recipe, in the order of their numbers; one quarantined row for a file that is none."""
    path = source.paths[0]
    try:
        recipe, made = _recipe(path)
    except (UserError, *FAULTS) as error:
        yield Quarantined(str(path), "", str(error) if isinstance(error, UserError) else reason_of(error))
        return
    for index in range(recipe.objects):
        yield from guarded(path, str(index), partial(made, recipe, index))


def _recipe(path: Path) -> tuple[Any, Callable[[Any, int], Observation]]:
    """What a file asks for. Raises UserError for a key or value that can't be, BadObject or any of FAULTS for other files."""
    with path.open("rb") as file:
        text = file.read(LONGEST + 1)
    if not text.strip() or len(text) > LONGEST:
        raise BadObject("empty file" if not text.strip() else f"not a recipe: more than {LONGEST} bytes")
    try:
        content = yaml.safe_load(text.decode("utf-8"))
    except yaml.YAMLError as error:
        raise BadObject(f"not YAML: {error}") from error
    known = ", ".join(POPULATIONS)
    if not isinstance(content, dict) or "population" not in content:
        raise BadObject(f"not a recipe: it has no key `population` (one of {known})")
    if (name := str(content["population"])) not in POPULATIONS:
        raise BadObject(f"unknown population {name!r}: known are {known}")
    kind, made = POPULATIONS[name]
    return validated(kind, content, "recipe"), made
