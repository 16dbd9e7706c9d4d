"""How YAML files become the configuration.

A section (`model`, `training`, `surveys.<name>`) may be the name of a file in `configs/<section>/`, or a mapping whose
key `base` names that file and whose other keys override it. `$NAME` in a text value is the environment variable.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hpcspec.config import Config, Section
from hpcspec.errors import UserError

FOLDERS = {"model": "models", "training": "training", "surveys": "surveys"}


def config_folder() -> Path:
    """Where the named configurations are: `$HPCSPEC_CONFIGS`, else `configs/` beside the package."""
    return Path(os.environ.get("HPCSPEC_CONFIGS", Path(__file__).resolve().parents[1] / "configs"))


def named_file(group: str, name: str) -> Path:
    """The YAML file of a named configuration, or the path itself if `name` is one.

    Raises UserError if there is none, naming what there is.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    else:
        path = config_folder() / group / f"{name}.yaml"
    if not path.is_file():
        folder = config_folder() / group
        known = sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
        raise UserError(f"no configuration {name!r} in {path.parent}: known are {', '.join(known) or 'none'}")
    return path


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping.

    Raises UserError if it can't be read or isn't one.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"can't read configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: the top level must be keys and values")
    return content


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`, mappings merged key by key; an empty mapping empties."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(out.get(key), Mapping) and isinstance(value, Mapping) and value
        out[key] = merge(out[key], value) if both else value
    return out


def _resolve(group: str, section: Any) -> Any:
    """A section with its named base file merged in."""
    if isinstance(section, str):
        section = {"base": section}
    if isinstance(section, dict) and "base" in section:
        if not isinstance(section["base"], str):
            raise UserError(f"base: {section['base']!r} is not the name of a file in configs/{group}/")
        over = {k: v for k, v in section.items() if k != "base"}
        return merge(_resolve(group, read_yaml(named_file(group, section["base"]))), over)
    return section


def _expand(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _expand(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_expand(v) for v in value]
    return os.path.expandvars(value) if isinstance(value, str) else value


def assign(tree: dict[str, Any], assignment: str) -> None:
    key, equals, value = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"--set {assignment!r}: write it as a.b=value")
    *parents, last = key.split(".")
    for parent in parents:
        child = tree.get(parent)
        if isinstance(child, str):
            child = {"base": child}
        tree[parent] = dict(child) if isinstance(child, dict) else {}
        tree = tree[parent]
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {assignment!r}: the value is not valid YAML: {' '.join(str(error).split())}") from error


def _by_name(surveys: Any) -> Any:
    """The surveys as a mapping, where they are given as one name or a list of names, or without a section."""
    names = [surveys] if isinstance(surveys, str) else surveys
    if isinstance(names, list) and all(isinstance(n, str) for n in names):
        return {name: name for name in names}
    return {n: n if s is None else s for n, s in surveys.items()} if isinstance(surveys, dict) else surveys


S = TypeVar("S", bound=Section)


def _known_keys(section: type[BaseModel], location: Iterable[Any]) -> list[str]:
    """The keys allowed at the last but one place of `location`, walking down from `section`."""
    current: Any = section
    for step in location:
        fields = getattr(current, "model_fields", None)
        if fields is None:
            return []
        if step in fields:
            annotation = fields[step].annotation
            inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
            current = inner[0] if inner else annotation
    return list(getattr(current, "model_fields", {}))


def validated(kind: type[S], content: Mapping[str, Any], where: str) -> S:
    """`content` as a section of that kind.

    Raises UserError with the dotted name of every wrong key or value; an unknown key is given the nearest right one.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            name = ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                known = _known_keys(kind, fault["loc"][:-1])
                near = difflib.get_close_matches(str(fault["loc"][-1]), known, 1, 0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                lines.append(f"{name}: unknown key, {hint}")
            else:
                value = fault.get("input")
                shown = "" if isinstance(value, Mapping | BaseModel) else f" (it is {value!r})"
                lines.append(f"{name}: {re.sub('^Value error, ', '', fault['msg'])}{shown}")
        raise UserError(f"{where}: " + "; ".join(lines)) from error


def load(path: Path, settings: Iterable[str] = ()) -> Config:
    """The configuration of a pipeline file with `--set a.b=value` settings applied.

    Raises UserError for an unreadable file, an unknown name or key, or a value that can't be.
    """
    return _resolved(read_yaml(path), settings, str(path))


def load_survey(name: str, settings: Iterable[str] = ()) -> Config:
    """The configuration of a pipeline of one survey: configs/pipelines/NAME.yaml, or else the defaults of everything.

    Raises UserError as `load` does.
    """
    path, section = (config_folder() / group / f"{name}.yaml" for group in ("pipelines", FOLDERS["surveys"]))
    if path.is_file():
        return load(path, settings)
    return _resolved({"name": name, "surveys": {name: name if section.is_file() else {}}}, settings, f"survey {name}")


def _resolved(tree: dict[str, Any], settings: Iterable[str], where: str) -> Config:
    for assignment in settings:
        if "surveys" in tree:
            tree["surveys"] = _by_name(tree["surveys"])
        assign(tree, assignment)
    for section in ("model", "training"):
        if section in tree:
            tree[section] = _resolve(FOLDERS[section], tree[section])
    surveys = _by_name(tree.get("surveys"))
    if isinstance(surveys, dict):
        tree["surveys"] = {n: _resolve("surveys", s) for n, s in surveys.items()}
    return validated(Config, _expand(tree), where)


def dump(config: Config) -> str:
    """The whole resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
