"""Recipes of simulated populations: what they hold, what is wrong with bad ones, and through the ingest."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hpcspec.config_files import config_folder
from hpcspec.shards.format import shard_paths
from hpcspec.shards.variability import with_variability
from hpcspec.submit import main
from hpcspec.surveys import discover, labels, read, simulated
from hpcspec.surveys.base import Quarantined
from hpcspec.surveys.observation import Observation
from tests.making import stored, unlike

BAD = {
    "empty": ("", "empty file"),
    "other YAML": ("- a\n- b\n", "not a recipe: it has no key `population`"),
    "text": ("a star\n", "not a recipe"),
    "no YAML": ("population: [", "not YAML"),
    "unknown population": ("population: quasars\nobjects: 3\n", "unknown population 'quasars': known are variables, stars_xp"),
    "list": ("population: [variables]\nobjects: 3\n", "unknown population"),
    "no number": ("population: variables\n", "recipe: objects: Field required"),
    "too many": ("population: variables\nobjects: 100000000000\n", "objects: Input should be less"),
    "share": ("population: variables\nobjects: 3\nmislabelled: 1.5\n", "mislabelled: Input should be less"),
    "misspelt": ("population: variables\nobjects: 3\nmislabeled: 0.1\n", "unknown key, did you mean 'mislabelled'"),
    "inner key": ("population: variables\nobjects: 3\nmissing: {spectra: 0.1}\n", "missing.spectra: unknown key, did you mean"),
    "another's key": ("population: stars_xp\nobjects: 3\nanomalies: 0.1\n", "anomalies: unknown key"),
    "instrument": ("population: stars_xp\nobjects: 3\nspectra: [hubble]\n", "spectra.0: Input should be"),
    "long": ("# " + "x" * 70000 + "\npopulation: variables\nobjects: 3\n", "not a recipe: more than"),
    "binary": ("\0\1\2\3", "not YAML"),
}


def recipe(folder: Path, text: str, name: str = "one.simulated.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def objects(folder: Path) -> list[Observation | Quarantined]:
    return [found for source in discover("simulated", folder) for found in read("simulated", source)]


def test_a_recipe_holds_its_objects_and_the_same_ones_again(tmp_path: Path) -> None:
    recipe(tmp_path, "population: variables\nobjects: 4\nseed: 7\n")
    (tmp_path / "below").mkdir()
    recipe(tmp_path / "below", '{"population": "stars_xp", "objects": 3, "spectra": ["sdss"]}', "b.simulated.yml")
    recipe(tmp_path, "nothing of ours\n", "notes.yaml")
    found = objects(tmp_path)
    assert [o.object_id for o in found] == [f"xp-1-{i:07d}" for i in range(3)] + [f"variable-7-{i:07d}" for i in range(4)]
    for one, again in zip(found, objects(tmp_path), strict=True):
        assert isinstance(one, Observation) and isinstance(again, Observation) and not unlike(one, again)
        assert one.survey == "simulated" and simulated.LABELS & one.meta.keys() >= {"class", "teff", "logg", "m_h", "logebv"}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_recipe_is_one_line_that_says_why(name: str, tmp_path: Path) -> None:
    text, reason = BAD[name]
    path = recipe(tmp_path, text)
    (row,) = objects(tmp_path)
    assert isinstance(row, Quarantined) and row.path == str(path) and reason in row.reason, row
    assert "Error" not in row.reason and "Traceback" not in row.reason


def test_the_configured_labels_are_there() -> None:
    section = yaml.safe_load((config_folder() / "surveys" / "simulated.yaml").read_text())["labels"]
    assert {section["object_class"], *section["parameters"].values()} <= labels("simulated")


def test_through_the_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    recipe(tmp_path / "in", "population: variables\nobjects: 20\nanomalies: 0.4\nmissing: {light_curve: 0.4, spectrum: 0.4}\n")
    recipe(tmp_path / "in", "population: stars_xp\nobjects: 5\nspectra: [desi]\n", "two.simulated.yaml")
    recipe(tmp_path / "in", "population: stars\n", "wrong.simulated.yaml")
    assert main(["ingest", "--survey", "simulated", "--input", "in", "--run", "run", "--executor", "local"]) == 0
    kept = {one.object_id: one for path in shard_paths(tmp_path / "run/shards/simulated") for one, _, _ in stored(path)}
    made = [one for one in objects(tmp_path / "in") if isinstance(one, Observation)]
    assert len(kept) == len(made) == 25
    for one in made:
        back = kept[one.object_id]
        assert set(unlike(back, one)) <= {"meta", "scalars"} and back.meta["teff"] == one.meta["teff"]
        scalars = with_variability(one).scalars
        assert back.scalars.keys() == scalars.keys()
        wanted = {n: pytest.approx(pair, rel=1e-6, nan_ok=True) for n, pair in scalars.items()}  # single precision
        assert back.scalars == wanted
