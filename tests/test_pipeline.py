"""The whole suite, small, through the command line: survey files to the published catalogue and everything around it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.table import Table

from hpcspec.adapt.train import split
from hpcspec.catalog.schema import Flag, columns
from hpcspec.cluster.stages import run_stage
from hpcspec.config_files import load
from hpcspec.shards.format import shard_paths
from hpcspec.simulate import simulate
from hpcspec.stream.index import open_index
from hpcspec.submit import main
from hpcspec.surveys import SURVEYS

from .tiny import COUNTS, Submit, Tiny, cli, label_ids, stamps

pytestmark = pytest.mark.filterwarnings("ignore:.*did not parse as fits unit")
FILES = {"{}.fits", "{}-embeddings.parquet", "hats/hats.properties", "datamodel.html", "qa/index.html", "provenance.json",
         "quarantine.csv", "SHA256SUMS"}  # fmt: skip


def catalogue(folder: Path, survey: str) -> Table:
    """The published table."""
    return Table.read(folder / f"hpcspec-{survey}.fits", character_as_bytes=False)


@pytest.mark.parametrize("survey", COUNTS)
def test_published_files(tiny: Tiny, submit: Submit, survey: str) -> None:
    folder = tiny.run / "catalog" / survey
    assert {f.format(f"hpcspec-{survey}") for f in FILES} <= set(stamps(folder))
    code, shown, _ = submit("validate", folder)
    assert code == 0 and "FAIL" not in shown and ", 0 failed" in shown
    table = catalogue(folder, survey)
    assert sorted(table["object_id"]) == label_ids(tiny.inputs / survey) and len(table) == COUNTS[survey]
    assert set(table["survey"]) == {survey} and np.isfinite(table["anomaly"]).all()
    facts = json.loads((folder / "provenance.json").read_text())
    assert {"STAR", "GALAXY"} <= set(facts["classes"]) and facts["parameters"] == ["teff", "z"]
    assert table.colnames == [c.name for c in columns(facts["classes"], ("teff", "z"))]
    assert facts["rows_in"] == facts["rows"] + facts["quarantined"] and facts["rows"] == COUNTS[survey]
    assert {"model_hash", "data_fingerprint", "config_hash", "seed", "versions", "accuracy_on_held_out_objects"} <= set(facts)


def test_summary(tiny: Tiny) -> None:
    shown = " ".join(tiny.output.split())
    for text in ("Accuracy on held-out objects", "hpcspec", "pca-xgboost", "teff", "seconds", "ingest-desi", "pretrain",
                 "adapt", "merge-apogee", "hpcspec-desi.fits", "SHA256SUMS", "this command took"):  # fmt: skip
        assert text in shown, text
    assert "hpcspec-apogee-embeddings.parquet" in (tiny.run / "summary.txt").read_text()
    report = json.loads((tiny.run / "adapt/task.json").read_text())["report"]
    line = report["parameters"]["all"]["teff"]
    assert line["mad"] > 0 and line["baseline"]["mad"] > 0 and line["n"] >= 5
    config = load(tiny.run / "config.yaml")
    index = open_index([p for survey in COUNTS for p in shard_paths(tiny.run / "shards" / survey)])
    parts = split(index, np.ones(len(index), bool), config.seed, config.adapt)
    numbers = {"train": len(parts.train), "calibration": len(parts.calibration), "held_out": len(parts.test)}
    assert {name: report["objects"][name] for name in numbers} == numbers
    assert 0.9 * sum(COUNTS.values()) < sum(numbers.values()) <= sum(COUNTS.values())  # few are at a border, on neither side


def test_run_folder(tiny: Tiny, submit: Submit) -> None:
    config = yaml.safe_load((tiny.run / "config.yaml").read_text())
    assert config["training"]["zero"]["stage"] == 2 and config["training"]["ranks"] == 2 and config["catalog"]["low_sn"] == 5
    assert {"hpcspec", "python", "torch", "deepspeed"} <= set(json.loads((tiny.run / "version.json").read_text()))
    lines = [json.loads(line) for line in (tiny.run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for key in ("loss", "spectra_s", "tokens_s", "memory_mib"):
        assert all(np.isfinite(line[key]) and line[key] != 0 for line in lines), key
    assert all(0 <= line["data_wait"] <= 1 for line in lines)
    stages = {"ingest-desi", "ingest-apogee", "pretrain", "adapt", "merge-desi", "merge-apogee"}
    stages |= {f"catalog-{survey}-{task}" for survey in ("desi", "apogee") for task in range(2)}
    assert {p.stem for p in (tiny.run / "state").glob("*.json")} == stages and not list((tiny.run / "state").glob("*.error"))
    logs = {p.stem for p in (tiny.run / "logs").glob("*.log")}
    assert logs == {s for s in stages} | {f"catalog-{s}-{t}" for s in COUNTS for t in (0, 1)}
    assert "2 ranks on" in (tiny.run / "logs/pretrain.log").read_text() and list(
        (tiny.run / "checkpoints").glob("*/complete.json")
    )
    status = submit("status", tiny.run)[1]
    assert status.count("done") == 8 and "to do" not in status  # the array tasks of a catalogue are one row


def test_a_second_run_finds_everything_done(tiny: Tiny, submit: Submit) -> None:
    before, began = stamps(tiny.run), time.monotonic()
    done = cli("pipeline", "--config", tiny.config, "--executor", "local", cwd=tiny.cwd)
    assert time.monotonic() - began < 15 and "everything is done already" in done.stdout and "── " not in done.stdout
    changed = {name for name, stamp in stamps(tiny.run).items() if before.get(name) != stamp}
    assert changed <= {"config.yaml", "version.json", "summary.txt"}  # written again, with the same content
    assert "everything is done" in submit("plan", "--run", tiny.run)[1]
    assert "everything is done" in submit("plan", "--run", tiny.run, "--set", "catalog.tasks=3")[1]


@pytest.mark.parametrize("verb", [["plan"], ["pipeline", "--dry-run"]])
def test_plan_and_dry_run_write_nothing(tiny: Tiny, submit: Submit, tmp_path: Path, verb: list[str]) -> None:
    code, shown, said = submit(*verb, "--config", tiny.config)
    assert (code, said) == (0, "")
    order = ["ingest-desi", "ingest-apogee", "pretrain", "adapt", "catalog-desi", "merge-desi", "catalog-apogee", "merge-apogee"]
    places = [shown.find(name) for name in order]
    assert -1 not in places and places == sorted(places) and stamps(tmp_path) == {}
    if verb[0] == "pipeline":
        assert shown.count("#!/bin/bash") == len(order) and "#SBATCH --array=0-1%" in shown
    before = stamps(tiny.cwd)
    shown = submit(*verb, "--run", tiny.run, "--set", "adapt.lr=0.002")[1]
    assert "adapt" in shown and "merge-desi" in shown and "pretrain" not in shown
    assert stamps(tiny.cwd) == before


def test_a_changed_key_redoes_what_depends_on_it(tiny: Tiny, submit: Submit, tmp_path: Path) -> None:
    run = tiny.copy(tmp_path / "run")
    before = stamps(run)
    code, shown, said = submit("catalog", "--run", run, "--survey", "desi", "--set", "catalog.low_sn=1e6", "--executor", "debug")
    assert (code, said) == (0, "") and "── catalog-desi" in shown and "── merge-desi" in shown
    assert not any(f"── {s}" in shown for s in ("ingest", "pretrain", "adapt", "catalog-apogee"))
    assert (catalogue(run / "catalog/desi", "desi")["flags"] & Flag.LOW_SN != 0).all()
    assert not (catalogue(tiny.run / "catalog/desi", "desi")["flags"] & Flag.LOW_SN != 0).all()
    same = (
        "shards/",
        "model/",
        "adapt/",
        "checkpoints/",
        "catalog/apogee/",
        "state/ingest",
        "state/pretrain",
        "state/adapt",
        "metrics",
    )
    after = stamps(run)
    assert all(after[name] == stamp for name, stamp in before.items() if name.startswith(same))
    again = submit("plan", "--run", run)[1]
    assert "catalog-apogee" in again and "desi" not in again


def shards(folder: Path) -> dict[str, bytes]:
    """Every file of a run's shards."""
    files = (p for p in sorted((folder / "shards").rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize("executor", ["debug", "local"])
def test_an_array_that_reads_makes_the_same_shards(tiny: Tiny, submit: Submit, tmp_path: Path, executor: str) -> None:
    run = tmp_path / "run"
    options = ["--config", tiny.config, "--run", run, "--set", "ingest.array=2"]
    steps = "read-desi × 2, ingest-desi, read-apogee × 2, ingest-apogee"
    assert submit("plan", *options)[1].startswith(f"run {run}: {steps}, pretrain")
    done = cli("ingest", *options, "--executor", executor, cwd=tmp_path)
    assert re.findall(r"^── (\S+)$", done.stdout, re.MULTILINE) == steps.replace(" × 2", "").split(", ") and not done.stderr
    assert shards(run) == shards(tiny.run)
    stages = {"ingest-desi", "ingest-apogee", *(f"read-{survey}-{task}" for survey in COUNTS for task in range(2))}
    assert {p.stem for p in (run / "state").iterdir()} == {p.stem for p in (run / "logs").glob("*.log")} == stages
    assert "everything is done already" in submit("ingest", *options)[1]
    assert submit("status", run)[1].count("done") == 4
    (run / "state/read-desi-1.json").rename(run / "state/read-desi-1.error")
    assert re.search(r"read-desi +│ failed", submit("status", run)[1])


def test_an_array_that_is_not_through_is_seen(tiny: Tiny, submit: Submit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert submit("prepare", "--config", tiny.config, "--run", run, "--set", "ingest.array=2")[0] == 0
    run_stage("read", str(run), 0, survey="apogee")
    assert re.search(r"read-apogee +│ to do +│ 1 units read, 1 of 2 tasks done", submit("status", run)[1])
    code, shown, _ = submit("doctor", run)
    assert code == 1 and "the ingest was not finished; run it again" in shown and "MiB of files read already" in shown


def test_each_epoch_is_an_object_where_the_configuration_says_so(tiny: Tiny, submit: Submit, tmp_path: Path) -> None:
    """In the run's own shards, and in the catalogue of other files of the survey."""
    run, folder = tiny.copy(tmp_path / "run"), tiny.inputs / "apogee"
    settings, visits = ["--set", "surveys.apogee.epochs=true"], [f"{name}@visit1" for name in label_ids(folder)]
    code, _, said = submit("ingest", "--run", run, *settings, "--executor", "debug")
    assert (code, said) == (0, "")
    shutil.copytree(folder, tmp_path / "files")
    code, _, said = submit("catalog", "--run", run, *settings, "--survey", "apogee", "--input", tmp_path / "files", "--output",
                           tmp_path / "out", "--executor", "debug")  # fmt: skip
    assert (code, said) == (0, "") and submit("validate", tmp_path / "out")[0] == 0
    for path in (run / "shards" / "apogee", tmp_path / "out" / "work" / "shards" / "apogee"):
        assert sorted(open_index(shard_paths(path)).column("id")) == visits
    assert sorted(catalogue(tmp_path / "out", "apogee")["object_id"]) == visits
    code, _, said = submit("catalog", "--run", run, "--set", "surveys.sdss.epochs=true", "--survey", "sdss", "--input", folder)
    assert code == 2 and said.startswith("error: --set surveys.sdss: ") and "trained without it" in said


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_pipeline_without_labels_publishes_embeddings(tiny: Tiny, submit: Submit, tmp_path: Path) -> None:
    run = tiny.copy(tmp_path / "run")
    without = [f"--set=surveys.{survey}.labels={{}}" for survey in COUNTS]
    code, shown, said = submit("pipeline", "--run", run, *without, "--executor", "debug")
    assert (code, said) == (0, "") and "── adapt" in shown and "── pretrain" not in shown and "Accuracy" not in shown
    for survey, count in COUNTS.items():
        table = catalogue(run / "catalog" / survey, survey)
        assert table.colnames == [c.name for c in columns((), ())] and len(table) == count
        assert np.isfinite(table["anomaly"]).all() and submit("validate", run / "catalog" / survey)[0] == 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_pipeline_starts_from_the_model_of_another_run(tiny: Tiny, submit: Submit, tmp_path: Path) -> None:
    source, run, other = tiny.copy(tmp_path / "source"), tmp_path / "run", yaml.safe_load(tiny.config.read_text())
    del other["surveys"]["apogee"]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other | {"model": {"base": "nano"}}))
    command = ["pipeline", "--config", tmp_path / "other.yaml", "--run", run]
    code, shown, said = submit(*command, "--pretrained", tmp_path, "--executor", "debug")
    assert code == 2 and f"{tmp_path} is no run that has been pretrained" in said
    code, shown, said = submit(*command, "--pretrained", source, "--executor", "debug")
    assert (code, said) == (0, "") and "── adapt" in shown and "── pretrain" not in shown
    assert (run / "model/weights.safetensors").read_bytes() == (source / "model/weights.safetensors").read_bytes()
    assert load(run / "config.yaml").model.width == 16  # as it was pretrained
    assert len(catalogue(run / "catalog", "desi")) == COUNTS["desi"] and not (run / "metrics.jsonl").exists()
    shutil.rmtree(source)  # it has its own copy
    assert "everything is done" in submit("plan", "--run", run)[1]
    code, shown, said = submit("adapt", "--run", run, "--set=adapt.steps=10", "--executor", "debug")
    assert (code, said) == (0, "") and "── adapt" in shown and "── pretrain" not in shown


@pytest.mark.parametrize("verb", ["catalog", "merge"])
def test_the_help_names_every_survey(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert set(SURVEYS) < set(re.findall(r"\w+", capsys.readouterr().out))


@pytest.fixture(scope="module")
def other(tiny: Tiny) -> Path:
    """Survey files that the run was not trained on, in a folder whose name needs quoting."""
    folder = tiny.cwd / 'other people\'s "files" $HOME'
    simulate(folder, {"desi": 7, "apogee": 9, "sdss": 5}, 2)
    return folder


def test_catalogue_of_files_that_were_not_in_training(tiny: Tiny, other: Path, submit: Submit, tmp_path: Path) -> None:
    """With spaces and quotes in all paths."""
    survey = "apogee"
    run, out = tiny.copy(tmp_path / 'a run\'s "folder" $HOME'), tmp_path / "out put's"
    command = ["catalog", "--run", run, "--survey", survey, "--input", other / survey, "--output", out, "--executor", "local",
               "--set", "catalog.tasks=1"]  # fmt: skip
    before = stamps(run / "catalog")
    done = cli(*command, cwd=tmp_path)
    table = catalogue(out, survey)
    assert sorted(table["object_id"]) == label_ids(other / survey) and set(table["survey"]) == {survey}
    assert f"{len(table)} rows, 0 quarantined: {out / f'hpcspec-{survey}.fits'}" in done.stdout
    published = {k: v for k, v in stamps(out).items() if not k.startswith("work/")}
    assert "everything is done already" in submit(*command)[1]
    assert {k: v for k, v in stamps(out).items() if not k.startswith("work/")} == published
    assert submit("validate", out)[0] == 0
    assert stamps(run / "catalog") == before and "everything is done" in submit("plan", "--run", run)[1]


def test_single_file_without_output(tiny: Tiny, other: Path, submit: Submit, tmp_path: Path) -> None:
    """One object of a survey that the run has never seen: its catalogue goes into the run folder."""
    run, (path, *_) = tiny.copy(tmp_path / "runs/one"), sorted((other / "sdss").glob("spec-*.fits"))
    (tmp_path / "in").mkdir()
    shutil.copy(path, tmp_path / "in")
    command = ["catalog", "--run", "runs/one", "--survey", "sdss", "--input", "in", "--executor", "debug"]
    code, shown, said = submit(*command)
    published = Path(shown.strip().splitlines()[-1].split(" quarantined: ")[1])
    assert (code, said) == (0, "") and published.is_relative_to(run / "catalog")
    (found,) = Table.read(published, character_as_bytes=False)["object_id"]
    assert found in label_ids(other / "sdss") and "everything is done already" in submit(*command)[1]


def test_other_files_of_the_same_survey_take_nothing_from_the_run(
    tiny: Tiny, other: Path, submit: Submit, tmp_path: Path
) -> None:
    run = tiny.copy(tmp_path / "run")
    before = stamps(run / "catalog/desi")
    command = ["catalog", "--run", run, "--survey", "desi", "--input", other / "desi", "--executor", "debug"]
    assert submit(*command)[0] == 0 and "everything is done already" in submit(*command)[1]
    assert stamps(run / "catalog/desi") == before and "everything is done" in submit("plan", "--run", run)[1]


def test_bare_catalog_takes_the_newest_trained_run(
    tiny: Tiny, submit: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, new = tiny.copy(tmp_path / "runs/a-newer"), tiny.copy(tmp_path / "runs/b-older")
    os.utime(new / "model/weights.safetensors", (1, 1))
    (tmp_path / "runs/untrained").mkdir()
    (old / "catalog/apogee/hpcspec-apogee.fits").unlink()
    monkeypatch.setenv("HPCSPEC_EXECUTOR", "debug")
    code, shown, _ = submit("catalog", "--survey", "apogee")
    assert code == 0 and "taking the newest trained run: runs/a-newer" in shown and str(tiny.inputs / "apogee") in shown
    assert "── merge-apogee" in shown and len(catalogue(old / "catalog/apogee", "apogee")) == COUNTS["apogee"]
    monkeypatch.delenv("HPCSPEC_DATA", raising=False)
    code, _, said = submit("catalog", "--survey", "sdss")
    assert code == 2 and "not trained on sdss" in said and "--input" in said


def processes_naming(text: str) -> list[int]:
    """The processes whose command line or environment names a path."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text.encode() in (entry / "cmdline").read_bytes() and "State:\tZ" not in (entry / "status").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="there is no /proc here to see processes in")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_jobs_and_the_same_command_goes_on(tiny: Tiny, submit: Submit, tmp_path: Path, number: int) -> None:
    run = tiny.copy(tmp_path / "run")
    shutil.rmtree(run / "state/parts/desi")
    (run / "state/merge-desi.json").unlink()
    command = ["catalog", "--run", str(run), "--survey", "desi", "--executor", "local"]
    process = subprocess.Popen([sys.executable, "-m", "hpcspec.submit", *command], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True,  # a shell has the commands in its background ignore SIGINT
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    jobs = str(run / "logs/jobs/catalog-desi")
    until = time.monotonic() + 60
    while len(processes_naming(jobs)) < 2 and time.monotonic() < until:  # a controller and its task
        time.sleep(0.02)
    assert processes_naming(jobs)
    time.sleep(0.5)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr == "interrupted: run the same command again to go on\n"
    assert processes_naming(jobs) == []
    code, shown, said = submit(*command[:-1], "debug")
    assert (code, said) == (0, "") and "── merge-desi done" in shown and submit("validate", run / "catalog/desi")[0] == 0
