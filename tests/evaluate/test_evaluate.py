"""`python -m hpcspec.evaluate` from its YAML to its tables, on simulated survey files."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from hpcspec.config_files import config_folder
from hpcspec.errors import UserError
from hpcspec.evaluate.__main__ import KINDS, main
from hpcspec.evaluate.report import Result, write
from hpcspec.evaluate.spec import load_evaluation
from hpcspec.simulate import simulate

PIPELINE = """\
name: tiny
surveys: [sdss, desi]
model: {patch: 64, width: 16, layers: 1, decoder_layers: 1, heads: 2, frequencies: 8}
training: {steps: 4, tokens_per_batch: 2048, lanes: 4, ranks: 1, zero: {stage: 0}}
adapt: {steps: 20, held_out: 0.1, calibration: 0.2, threads: 1, baseline: none}
catalog: {tasks: 1, pieces: 1}
"""
ROW = """\
data:
  sdss:
    survey: sdss
    folders: {{train: train/sdss, test: test/sdss}}
    tables: [train/sdss/labels.csv, test/sdss/labels.csv]
    object_class: class
    parameters: {{teff: teff, z: z, mass: mass}}
  desi:
    survey: desi
    folders: {{train: train/desi, test: test/desi}}
    tables: [train/desi/labels.csv, test/desi/labels.csv]
  split: {{survey: apogee, folders: {{all: apogee}}, split: 0.3, tables: [apogee/labels.csv], parameters: {{teff: teff}}}}
  nowhere: {{survey: lamost, folders: {{train: lamost/train, test: lamost/test}}}}
runs:
  tiny: {{config: {pipeline}, data: [sdss], minutes: 5}}
  frozen: {{config: {pipeline}, data: [sdss], pretrained: tiny, set: {{adapt.mode: frozen}}, minutes: 5}}
  slow: {{config: {pipeline}, data: [sdss], minutes: 0.01}}
experiments:
  parameters:
    kind: predict
    title: Parameters
    data: sdss
    runs: [tiny, frozen]
    targets: [teff, class, z, mass]
    within: {{z: [GALAXY, QSO]}}
    baselines: [ridge, pca-xgboost]
    goals: {{teff MAD: <= 1e9, class accuracy: ">= 1.1", teff std: <= 0.8 best}}
  repeats: {{kind: repeats, title: Repeats, data: sdss, folders: [test], match: class, runs: [tiny], baselines: [pca]}}
  reconstruction: {{kind: reconstruction, title: Reconstruction, data: sdss, runs: [tiny], baselines: [smoothed, templates]}}
  cross:
    kind: cross_survey
    title: Cross-survey
    data: sdss
    other: desi
    match: ra
    runs: [tiny]
    baselines: [smoothed, templates]
  split: {{kind: predict, title: Split by file, data: split, targets: [teff], baselines: [ridge]}}
  absent: {{kind: predict, title: Absent, data: nowhere, targets: [class], baselines: [ridge]}}
  fails: {{kind: predict, title: Fails, data: sdss, runs: [slow], targets: [teff], baselines: [ridge]}}
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a quick evaluation on 70 and 30 simulated spectra."""
    folder = tmp_path_factory.mktemp("evaluate")
    simulate(folder / "train", {"sdss": 70, "desi": 10}, 1)
    simulate(folder / "test", {"sdss": 30, "desi": 20}, 2)
    simulate(folder, {"apogee": 30}, 1)
    (folder / "tiny.yaml").write_text(PIPELINE)
    (folder / "row.yaml").write_text(ROW.format(pipeline=folder / "tiny.yaml"))
    arguments = [str(folder / "row.yaml"), "--data", str(folder), "--output", str(folder / "out"), "--quick"]
    assert main(arguments) == 0
    return folder / "out"


def lines(shown: Path, experiment: str) -> dict[tuple[str, str, str], dict]:
    """The figures of an experiment by target, figure and method."""
    found = json.loads((shown / "row.json").read_text())["experiments"]
    one = next(x for x in found if x["experiment"] == experiment)
    return {(x["target"], x["figure"], x["method"]): x for x in one["figures"]}


@pytest.mark.slow
def test_predictions_stand_beside_baselines(shown: Path) -> None:
    found = lines(shown, "parameters")
    for method in ("tiny", "ridge", "pca-xgboost"):
        assert {"MAD", "std", "bias"} <= {f for t, f, m in found if t == "teff" and m == method}
        assert found["class", "accuracy", method]["n"] == 30
        assert method == "tiny" or found["z", "NMAD", method]["n"] >= 5  # after some steps all may be stars
    assert found["teff", "MAD", "ridge"]["mean"] < 1000 and found["teff", "cover 68 %", "tiny"]["model"]
    assert found["teff", "MAD", "tiny"]["goal_met"] and found["class", "accuracy", "tiny"]["goal_met"] is False
    text = (shown / "row.md").read_text()
    assert "not measured: mass: no training object of sdss has it" in text and not any(t == "mass" for t, *_ in found)
    assert "# row\n\n`python -m hpcspec.evaluate " in text and "## Parameters" in text and "<= 0.8 best: " in text
    pictures = {p.name for p in shown.glob("*.png")}
    assert {"parameters-teff.png", "parameters-confusion.png", "parameters-calibration.png", "repeats-map.png"} <= pictures
    assert all(f"]({name})" in text for name in pictures)


@pytest.mark.slow
def test_other_experiments(shown: Path) -> None:
    assert {m for *_, m in lines(shown, "repeats")} == {"tiny", "pca"}
    found = lines(shown, "reconstruction")
    for method in ("tiny", "smoothed", "templates"):
        assert {"all pixels seen", "hidden pixels"} == {t for t, _, m in found if m == method}
    assert found["all pixels seen", "chi2/pixel", "smoothed"]["mean"] < found["hidden pixels", "chi2/pixel", "tiny"]["mean"]
    assert found["all pixels seen", "chi2/pixel", "templates"]["n"] == 5
    found = lines(shown, "cross")
    assert {m for *_, m in found} == {"tiny", "smoothed", "templates"}
    assert found["the level of the whole fitted", "chi2/pixel", "tiny"]["n"] == 4  # each fifth object is in both surveys
    assert lines(shown, "split")["teff", "MAD", "ridge"]["n"] == 9


@pytest.mark.slow
def test_runs_share_the_shards_of_the_same_files(shown: Path) -> None:
    training = {run: (shown / "runs" / f"{run}-s1" / "run" / "shards" / "sdss").resolve() for run in ("tiny", "frozen")}
    assert training["tiny"] == training["frozen"] and list(training["tiny"].glob("*.h5"))
    tested = {work.resolve() for work in shown.glob("runs/*/catalogs/*/*/shards/sdss")}
    assert len(tested) == 1 and training["tiny"] not in tested
    log = (shown / "runs" / "frozen-s1" / "log.txt").read_text()
    assert "units read" not in log


@pytest.mark.slow
def test_what_cannot_be_measured_is_said(shown: Path) -> None:
    text = (shown / "row.md").read_text()
    assert "not measured: " in text and "lamost/test is not there: put lamost files in it" in text
    assert not lines(shown, "absent")
    assert {m for *_, m in lines(shown, "fails")} == {"ridge"}
    assert "not measured: slow, all labels: the model took longer than 0.01 minutes" in text


def test_a_report(tmp_path: Path) -> None:
    result = Result("x", "Title", {"teff MAD": "<= 0.8 best", "teff cover 68 %": "0.65..0.71", "class accuracy": ">= 0.9"})
    for values in ({"MAD": 80.0, "cover 68 %": 0.7}, {"MAD": 90.0, "cover 68 %": 0.66}):
        result.add("teff", "ours", values, 10, True)
    result.add("teff", "ridge", {"MAD": 100.0, "std": np.nan}, 12)
    result.add("class", "ridge", {"accuracy": 0.95}, 12)
    result.missing.append("galah: no files")
    assert result.goal("teff", "MAD") == ("<= 0.8 best", False) and result.goal("teff", "cover 68 %")[1] is True
    assert result.goal("class", "accuracy") == (">= 0.9", None)
    other = copy.deepcopy(result)
    other.add("teff", "second run", {"MAD": 10.0}, 10, True)
    assert other.goal("teff", "MAD") == result.goal("teff", "MAD")
    write(tmp_path, "row", "python -m x", {"version": "1"}, [result])
    text = (tmp_path / "row.md").read_text()
    assert "| teff | MAD | 10–12 | **85 ± 7.1** | 100 | <= 0.8 best: **missed** |" in text
    assert "| class | accuracy | 12 | – | 0.95 | >= 0.9 |" in text and "not measured: galah: no files" in text
    line = json.loads((tmp_path / "row.json").read_text())["experiments"][0]["figures"][0]
    assert line["values"] == [80, 90] and line["mean"] == 85 and line["seeds"] == 2 and not line["goal_met"]
    with pytest.raises(UserError, match="goal 'good' of teff MAD"):
        Result("x", "", {"teff MAD": "good"}).goal("teff", "MAD")


@pytest.mark.parametrize("row", sorted(p.stem for p in (config_folder() / "evaluations").glob("*.yaml")))
def test_our_rows_are_valid(row: str) -> None:
    found = load_evaluation(row, [])
    assert all(e.kind in KINDS for e in found.experiments.values())
    assert all(Result(n, "", e.goals).goal(*g.rsplit(" ", 1)) for n, e in found.experiments.items() for g in e.goals)


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "row.yaml"
    for change, said in (
        ({"data": {"a": {"survey": "sdss", "folder": {}}}}, "did you mean 'folders'"),
        ({"experiments": {"x": {"kind": "magic", "title": "", "data": "a"}}}, "unknown 'magic': known are predict"),
        ({"experiments": {"x": {"kind": "predict", "title": "", "data": "b"}}}, "no data 'b': there are a"),
        ({"experiments": {"x": {"kind": "predict", "title": "", "data": "a", "runs": ["r"]}}}, "no run 'r'"),
    ):
        data, experiment = {"survey": "sdss", "folders": {}}, {"kind": "predict", "title": "", "data": "a"}
        good = {"data": {"a": data}, "experiments": {"x": experiment}}
        wrong.write_text(yaml.safe_dump(good | change))
        assert main([str(wrong), "--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    wrong.write_text(yaml.safe_dump(good))
    assert main([str(wrong), "--data", str(tmp_path / "no"), "--output", str(tmp_path / "out")]) == 2
    assert "is not there: give it with --data DIR" in capsys.readouterr().err
