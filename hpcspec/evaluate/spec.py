"""What an evaluation's YAML may say: data sets, runs of the model, and experiments on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from hpcspec.config import Section
from hpcspec.config_files import assign, config_folder, read_yaml, validated
from hpcspec.errors import UserError


class Resampled(Section):
    """The spectra of another data set on a common grid."""

    data: str
    step: float = Field(gt=0)
    """Å; the grid is all multiples of it."""


class Data(Section):
    """One survey's files, in folders relative to --data or simulated, and what their labels are."""

    survey: str = "simulated"
    folders: dict[str, str] = Field(default_factory=dict)
    """`train` and `test` to folders of survey files, and others by the names that experiments use; with `split`, `all` alone."""
    split: float | None = Field(default=None, gt=0, lt=1)
    """Share of the files of folder `all` that is tested on, drawn by the seed; the rest trains."""
    resampled: Resampled | None = None
    """Instead of files of its own: those of another data set, resampled; `survey` is then `generic`."""
    recipes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Folders' names to recipes of simulated objects (surveys/simulated.py), which are written as files of the results."""
    tables: list[str] | dict[str, str] = Field(default_factory=list)
    """Label tables (CSV, FITS, Parquet) relative to --data: of all folders together, or of each by its name, where folders have
    other objects under the same identifiers. Without one, labels are in the files."""
    key: str = "object_id"
    object_class: str | None = None
    parameters: dict[str, str] = Field(default_factory=dict)
    """Our name to the table's column."""
    learn: list[str] | None = None
    """Those of `parameters` that runs learn; all of them where it isn't given."""
    bounds: dict[str, str] = Field(default_factory=dict)
    """Our parameter to the column of its Cramér–Rao bound."""
    missing: tuple[float, ...] = (-9999.0, -999.0)
    emulated: bool = False
    """Not observed: results say so."""


class ModelRun(Section):
    """A run of the model, trained on the training folders of some data sets."""

    config: str
    """Pipeline configuration: a name in configs/pipelines or a path."""
    data: list[str]
    set: dict[str, Any] = Field(default_factory=dict)
    """Keys of the configuration, dotted, and their values."""
    seeds: list[int] = Field(default=[1], min_length=1)
    minutes: float = Field(default=35, gt=0)
    """Limit of each command's wall time."""
    pretrained: str | None = None
    """Another run, that it takes the pretrained model of."""
    absent: Literal["refuse", "skip"] = "refuse"
    """What to do where a data set is not there: without it the run is not measured, or is trained on the others."""


class Experiment(Section):
    """One thing to measure; what each kind takes is said where it is written."""

    kind: str
    title: str
    data: str
    runs: list[str] = Field(default_factory=list)
    targets: list[str] = Field(default_factory=list)
    """Parameters, or `class`."""
    baselines: list[str] = Field(default_factory=list)
    seeds: list[int] = Field(default=[1, 2, 3], min_length=1)
    """Of the baselines, and of drawn labels."""
    labels: list[float] = Field(default=[1.0], min_length=1)
    """Shares (up to 1) or numbers (more than 1) of the training labels."""
    folders: list[str] = Field(default=["test"], min_length=1)
    """Where the objects tested on are."""
    other: str | None = None
    """A second data set, of the same objects."""
    match: str = "object_id"
    """The column by which two observations are known to be of one object."""
    objects: int = Field(default=200, ge=1)
    """At most so many are reconstructed."""
    inputs: dict[str, list[str]] = Field(default_factory=dict)
    """What is given, by a name for it: scalars ("teff"), ranges of them ("bp_0..29"), or so many at random ("64 random")."""
    arms: dict[Literal["given", "wanted"], list[str]] = Field(default_factory=dict)
    """Names of the arms of an object's spectra that are given, and of those to be predicted from them."""
    within: dict[str, list[str]] = Field(default_factory=dict)
    """Target to the classes of the objects that it is learned and measured on."""
    metadata: bool = True
    """Whether scalars besides the light curves may be used."""
    goals: dict[str, str] = Field(default_factory=dict)
    """"target figure" to "<= x", ">= x", "x..y", or "<= x best": x times the best baseline."""


class Evaluation(Section):
    """One row: the whole file."""

    data: dict[str, Data]
    runs: dict[str, ModelRun] = Field(default_factory=dict)
    experiments: dict[str, Experiment] = Field(min_length=1)
    quick: dict[str, Any] = Field(default_factory=dict)
    """Keys of every run's configuration with --quick."""
    compare: str | None = None
    """A run that is compared with the best other run of the model, figure by figure."""


def load_evaluation(row: str, settings: list[str]) -> Evaluation:
    """configs/evaluations/ROW.yaml with `--set a.b=value` applied. A file may take data, runs and experiments of other rows
    with `include: [ROW, …]`; its own entries come over theirs, `with_runs` adds runs to each included experiment that isn't
    about fewer labels, `without` leaves out experiments, and `baselines: false` the baselines of those that are included.

    Raises UserError for an unreadable file, an unknown key or name, or a value that can't be.
    """
    tree = _tree(Path(row) if row.endswith((".yaml", ".yml")) else config_folder() / "evaluations" / f"{row}.yaml")
    for assignment in settings:
        assign(tree, assignment)
    found = validated(Evaluation, tree, f"evaluation {row}")
    for name, one in found.experiments.items():
        for wanted, known, what in ((one.runs, found.runs, "run"), ([one.data, *filter(None, [one.other])], found.data, "data")):
            if lost := [x for x in wanted if x not in known]:
                raise UserError(f"experiments.{name}: no {what} {lost[0]!r}: there are {', '.join(known) or 'none'}")
    for name, data in found.data.items():
        if data.resampled is not None and data.resampled.data not in found.data:
            raise UserError(f"data.{name}.resampled: no data {data.resampled.data!r}: there are {', '.join(found.data)}")
    for name, run in found.runs.items():
        if lost := [x for x in run.data if x not in found.data]:
            raise UserError(f"runs.{name}: no data {lost[0]!r}: there are {', '.join(found.data)}")
        if run.pretrained is not None and (run.pretrained == name or run.pretrained not in found.runs):
            raise UserError(f"runs.{name}.pretrained: no other run {run.pretrained!r}: there are {', '.join(found.runs)}")
    return found


SECTIONS = ("data", "runs", "experiments", "quick")


def _tree(path: Path) -> dict[str, Any]:
    tree = read_yaml(path)
    included, extra, without = (tree.pop(key, []) for key in ("include", "with_runs", "without"))
    baselines = tree.pop("baselines", True)
    both: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for row in included:
        other = yaml.safe_load(yaml.safe_dump(_tree(path.with_name(f"{row}.yaml")), sort_keys=False))
        other["experiments"] = {name: one for name, one in other["experiments"].items() if name not in without}
        for one in other["experiments"].values():
            if one.get("runs") and len(one.get("labels", [1])) == 1:
                one["runs"] = [*one["runs"], *extra]
            if not baselines:
                one["baselines"] = []
        for section in SECTIONS:
            if section != "quick" and (twice := both[section].keys() & other.get(section, {}).keys()):
                raise UserError(f"{path}: {section}.{min(twice)} is in two of the rows that it includes: rename one")
            both[section] |= other.get(section, {})
    return tree | {section: both[section] | tree.get(section, {}) for section in SECTIONS} if included else tree
