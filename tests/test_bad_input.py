"""What goes wrong: bad objects are put aside and counted, mistakes end in one line that says what to do and exit code 2."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.table import Table

from hpcspec.atomic import write_json
from hpcspec.shards import ingest as module
from hpcspec.shards.format import INDEX
from hpcspec.shards.ingest import REPEATED, ingest, quarantined_rows
from hpcspec.simulate import simulate

from .tiny import Outcome, Submit, Tiny, label_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*did not parse as fits unit")
GOOD = 6


def refused(outcome: Outcome, said: str) -> None:
    """One line on stderr, exit code 2, no traceback anywhere."""
    code, out, err = outcome
    assert code == 2, f"exit code {code}\n{out}\n{err}"
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert "Traceback" not in out + err and "Error:" not in err, out + err
    assert re.search(said, err), err


def edited(source: Path, target: Path, change: Callable[[fits.HDUList], object]) -> None:
    """A copy of a FITS file with a change."""
    with fits.open(source, memmap=False) as hdus:
        change(hdus)
        hdus.writeto(target)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with GOOD sound APOGEE files and every kind of bad one, and what must be said about each."""
    made = tmp_path_factory.mktemp("made")
    simulate(made, {"apogee": GOOD + 10, "sdss": 1}, 5)
    folder = made / "bad"
    folder.mkdir()
    sound = sorted((made / "apogee").glob("*.fits"))
    for path in sound[:GOOD]:
        shutil.copy(path, folder)
    rest = iter(sound[GOOD:])
    target = next(rest)
    (folder / "truncated.fits").write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    (folder / "empty.fits").write_bytes(b"")
    (folder / "text.fits").write_text("these are not the spectra you are looking for\n")
    (folder / "zz-duplicate.fits").write_bytes(sound[0].read_bytes())
    shutil.copy(next((made / "sdss").glob("spec-*.fits")), folder / "other-survey.fits")
    edited(next(rest), folder / "missing-hdu.fits", lambda h: h.pop(3))
    edited(next(rest), folder / "missing-keyword.fits", lambda h: h[0].header.remove("RA"))
    edited(next(rest), folder / "wrong-length.fits", lambda h: setattr(h[2], "data", h[2].data[:-5]))
    edited(next(rest), folder / "nan-flux.fits", lambda h: h[1].data.fill(np.nan))
    edited(next(rest), folder / "zero-ivar.fits", lambda h: h[2].data.fill(1e10))
    return folder, {
        "truncated": "unreadable FITS file", "empty": "empty file", "text": "unreadable FITS file", "zz-duplicate": REPEATED,
        "other-survey": "not an APOGEE spectrum", "missing-hdu": "not an APOGEE spectrum: HDUs 1 to 3",
        "missing-keyword": "no position: looked for RA/DEC", "wrong-length": "differ in length", "nan-flux": "no valid pixel",
        "zero-ivar": "no valid pixel",
    }  # fmt: skip


def test_bad_objects_are_put_aside_and_counted(
    tiny: Tiny, bad: tuple[Path, dict[str, str]], submit: Submit, tmp_path: Path
) -> None:
    folder, said = bad
    run, out = tiny.copy(tmp_path / "run"), tmp_path / "out"
    code, shown, err = submit(
        "catalog", "--run", run, "--survey", "apogee", "--input", folder, "--output", out, "--executor", "debug"
    )
    assert (code, err) == (0, "")
    assert f"{GOOD + len(said)} rows in = {GOOD} objects + {len(said)} quarantined" in shown
    assert f"{GOOD} rows, {len(said)} quarantined" in shown.splitlines()[-1]
    with open(out / "quarantine.csv", newline="") as file:
        rows = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    assert set(rows) == set(said)
    for name, reason in said.items():
        assert rows[name]["reason"].startswith(reason) or reason in rows[name]["reason"], rows[name]
        assert rows[name]["file"] == str(folder / f"{name}.fits") and "\n" not in rows[name]["reason"]
    ids = set(Table.read(out / "hpcspec-apogee.fits", character_as_bytes=False)["object_id"])
    assert len(ids) == GOOD and rows["zz-duplicate"]["object_id"] in ids
    labels = set(label_ids(folder.parent / "apogee"))
    assert (
        ids < labels
        and {rows[n]["object_id"] for n in ("missing-keyword", "wrong-length", "nan-flux", "zero-ivar")} < labels - ids
    )
    facts = json.loads((out / "provenance.json").read_text())
    assert (facts["rows_in"], facts["rows"], facts["quarantined"]) == (GOOD + len(said), GOOD, len(said))
    assert submit("validate", out)[0] == 0


def test_the_pipeline_counts_what_it_put_aside(tiny: Tiny) -> None:
    """The files of the tiny run hold two bad ones."""
    facts = json.loads((tiny.run / "catalog/apogee/provenance.json").read_text())
    assert (facts["rows_in"], facts["rows"], facts["quarantined"]) == (42, 40, 2)
    assert "42 rows in = 40 objects + 2 quarantined" in tiny.output
    assert re.search(r"ingest-apogee .*quarantined 2", tiny.output) and re.search(r"merge-apogee .*quarantined 2", tiny.output)


def test_the_same_object_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The books balance also after a kill between the quarantine file and the index, and nothing is put aside twice."""
    simulate(tmp_path, {"apogee": 3}, 3)
    source, shards = tmp_path / "apogee", tmp_path / "shards"
    first, *_ = files = sorted(source.glob("*.fits"))
    for i in range(4):
        shutil.copy(first, source / f"zz-{i}.fits")
    mib = 1.5 * first.stat().st_size / 2**20  # two files a shard
    monkeypatch.setattr(module, "MIB", 2**20 / 2**10)  # one file a unit

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", lambda path, content: killed() if path.name == INDEX else write_json(path, content))
    with pytest.raises(KeyboardInterrupt):
        ingest("apogee", source, shards, 2**10 * mib)
    assert len(quarantined_rows(shards)) == 4 and not (shards / INDEX).exists()
    monkeypatch.setattr(module, "write_json", write_json)
    for _ in range(2):
        counts = ingest("apogee", source, shards, 2**10 * mib)
        assert (counts.sources, counts.rows_in, counts.objects, counts.quarantined) == (7, 7, len(files), 4)
        rows = quarantined_rows(shards)
        assert sorted(Path(row["path"]).name for row in rows) == [f"zz-{i}.fits" for i in range(4)]
        assert {row["reason"] for row in rows} == {REPEATED} and len({row["object_id"] for row in rows}) == 1


def desi_only(tiny: Tiny, folder: Path) -> None:
    """The tiny configuration with one survey, `folder/one.yaml`."""
    config = yaml.safe_load(tiny.config.read_text())
    del config["surveys"]["apogee"]
    (folder / "one.yaml").write_text(yaml.safe_dump(config))


CONFIG, DESI = ["--config", "CONFIG"], ["--run", "RUN", "--survey", "desi"]
MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing folder": (["pipeline", *CONFIG, "--set", "surveys.desi.input=/no/such"], "folder /no/such of desi does not exist"),
    "missing folder catalog": (["catalog", *DESI, "--input", "/no/such"], "/no/such does not exist.*--input"),
    "unknown key": (["plan", *CONFIG, "--set", "training.stesp=3"], "training.stesp: unknown key, did you mean 'steps'"),
    "unknown section": (["plan", *CONFIG, "--set", "trainin.steps=3"], "trainin: unknown key, did you mean 'training'"),
    "unknown survey": (["catalog", "--run", "RUN", "--survey", "lamots"], "lamots.*lamost"),
    "unknown survey in config": (["plan", *CONFIG, "--set", "surveys.lamots={input: /tmp}"], "lamots.*known.*lamost"),
    "missing labels": (["pipeline", "--config", "ONE", "--labels", "none.csv"], "label table none.csv does not exist"),
    "missing labels in config": (["plan", *CONFIG, "--set", "surveys.desi.labels.path=no.csv"], "label table no.csv.*--labels"),
    "output below a file": (["catalog", *DESI, "--output", "FILE/out"], "can't write to .*--output"),
    "output is a file": (["catalog", *DESI, "--output", "FILE"], "can't write to .*--output"),
    "output in proc": (["catalog", *DESI, "--output", "/proc/x"], "can't write to /proc/x.*--output"),
    "run below a file": (["pipeline", *CONFIG, "--run", "FILE/run"], "can't write .*/file/run"),
    "run in proc": (["pipeline", *CONFIG, "--run", "/proc/run"], "can't write /proc/run"),
    "not a run": (["catalog", "--run", ".", "--survey", "desi"], "is not a run folder"),
    "status of no run": (["status", "."], "is not a run folder"),
    "pipeline of no run": (["pipeline", "--run", "nowhere"], "nowhere is not a run folder"),
    "neither": (["pipeline"], "give --config.*--survey.*--run"),
    "both": (["plan", *CONFIG, "--survey", "desi"], "give --config or --survey, not both"),
    "unknown survey alone": (["plan", "--survey", "lamots"], "lamots.*lamost"),
    "survey alone, no files": (["ingest", "--survey", "eros", "--set", "surveys.eros.input=null"], "where are the eros.*--input"),
    "no trained run": (["catalog", "--survey", "apogee"], "no trained run in runs.*--run"),
    "untrained run": (["catalog", "--run", "UNTRAINED", "--survey", "desi"], "is not trained: run pretrain"),
    "no equals": (["plan", *CONFIG, "--set", "nonsense"], "--set 'nonsense': write it as a.b=value"),
    "no key": (["plan", *CONFIG, "--set", "=3"], "write it as a.b=value"),
    "not YAML": (["plan", *CONFIG, "--set", "training.steps=[1"], "--set 'training.steps=\\[1'"),
    "wrong type": (["plan", *CONFIG, "--set", "training.steps=many"], "training.steps: .*integer.*'many'"),
    "out of range": (["plan", *CONFIG, "--set", "training.steps=-1"], "training.steps: .*greater"),
    "too deep": (["plan", *CONFIG, "--set", "training.steps.more=1"], "training.steps"),
    "section as number": (["plan", *CONFIG, "--set", "training=5"], "training: "),
    "survey as number": (["plan", *CONFIG, "--set", "surveys.desi=5"], "surveys.desi: "),
    "surveys as number": (["plan", *CONFIG, "--set", "surveys=5"], "surveys: "),
    "list of numbers": (["plan", *CONFIG, "--set", "surveys=[5]"], "5"),
    "base as number": (["plan", *CONFIG, "--set", "model={base: 5}"], "5"),
    "unknown model": (["plan", *CONFIG, "--set", "model=huge"], "'huge'.*nano"),
    "input for several": (["plan", *CONFIG, "--input", "."], "pipeline of one survey; this one has desi, apogee"),
    "no files": (["catalog", *DESI, "--input", "EMPTY", "--output", "out"], "holds no FITS files.*--input"),
    "config missing": (["plan", "--config", "no.yaml"], "can't read configuration no.yaml"),
    "config is a folder": (["plan", "--config", "."], "can't read configuration"),
    "config is text": (["plan", "--config", "TEXT"], "top level must be keys and values"),
    "config is binary": (["plan", "--config", "WEIGHTS"], "safetensors"),
    "unknown site": (["pipeline", *CONFIG, "--site", "moon", "--dry-run"], "'moon'.*default"),
    "bad run config": (["status", "BROKEN"], "config.yaml"),
}  # fmt: skip


@pytest.fixture(scope="module")
def spoiled(tiny: Tiny) -> Path:
    """A copy of the run in which nothing is done any more, and things beside it that are not what they should be."""
    folder = tiny.cwd / "spoiled"
    run = tiny.copy(folder / "run")
    (folder / "empty").mkdir()
    (folder / "file").write_text("just text\n")
    (folder / "untrained").mkdir()
    shutil.copy(run / "config.yaml", folder / "untrained")
    (folder / "broken").mkdir()
    (folder / "broken/config.yaml").write_text("surveys: {desi: {inputs: here}}\n")
    desi_only(tiny, folder)
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(tiny: Tiny, spoiled: Path, submit: Submit, name: str) -> None:
    arguments, said = MISTAKES[name]
    places = {"CONFIG": tiny.config, "RUN": spoiled / "run", "ONE": spoiled / "one.yaml", "FILE": spoiled / "file",
              "EMPTY": spoiled / "empty", "UNTRAINED": spoiled / "untrained", "TEXT": spoiled / "file",
              "WEIGHTS": spoiled / "run/model/weights.safetensors", "BROKEN": spoiled / "broken"}  # fmt: skip
    executor = ["--executor", "debug"] if arguments[0] in ("pipeline", "catalog") else []
    given = [re.sub("^[A-Z]{3,}", lambda m: str(places[m[0]]), a) for a in arguments]
    refused(submit(*given, *executor), said)


def test_no_slurm(tiny: Tiny, submit: Submit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(submit("pipeline", "--config", tiny.config, "--executor", "slurm"), "no sbatch here: use --executor local")
    monkeypatch.setenv("HPCSPEC_EXECUTOR", "cloud")
    refused(submit("pipeline", "--config", tiny.config), "HPCSPEC_EXECUTOR is 'cloud'.*slurm, local or debug")


@pytest.mark.parametrize("executor", ["debug", "local"])
def test_only_bad_files(bad: tuple[Path, dict[str, str]], tiny: Tiny, submit: Submit, tmp_path: Path, executor: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("empty", "text"):
        shutil.copy(bad[0] / f"{name}.fits", tmp_path / "in")
    run = tiny.copy(tmp_path / "run")
    for _ in range(2):
        outcome = submit(
            "catalog", "--run", run, "--survey", "apogee", "--input", "in", "--output", "out", "--executor", executor
        )
        refused(outcome, "no usable apogee object among 2 files: 2 objects quarantined, the first because: empty file")


LABELS = {
    "no identifier": (
        "object_id,class,teff,z\n1,STAR,5000,0\n",
        "no object has a label: no identifier in .*labels.csv.*labels.key",
    ),
    "no column": ("object_id,class,z\nID,STAR,0\n", "labels.csv has no column '?teff'?: "),
    "no key": ("name,class,teff,z\nID,STAR,5000,0\n", "labels.csv has no column 'object_id' \\(labels.key\\)"),
    "not numbers": ("object_id,class,teff,z\nID,STAR,hot,0\n", "labels.csv, column 'teff': .*hot"),
    "empty table": ("", "labels.csv"),
    "ragged": ("object_id,class,teff,z\nID,STAR\n", "can't read label table"),
    "too few": ("object_id,class,teff,z\nID,STAR,5000,0\n", "1 labelled objects are too few"),
}


@pytest.mark.parametrize(("name", "executor"), [*((n, "debug") for n in LABELS), ("no identifier", "local")])
def test_labels_that_do_not_fit(tiny: Tiny, submit: Submit, tmp_path: Path, name: str, executor: str) -> None:
    """Found out only when the heads are to be trained."""
    table, said = LABELS[name]
    run = tiny.copy(tmp_path / "run")
    (tmp_path / "labels.csv").write_text(table.replace("ID", label_ids(tiny.inputs / "desi")[0]))
    command = ["adapt", "--run", run, "--set", f"surveys.desi.labels.path={tmp_path / 'labels.csv'}", "--executor", executor]
    both = [
        *command,
        "--set",
        f"surveys.apogee.labels.path={tmp_path / 'labels.csv'}",
        "--set",
        "surveys.apogee.labels.object_class=class",
    ]
    refused(submit(*both), said)


@pytest.mark.parametrize(
    ("file", "executor"),
    [("model/weights.safetensors", "local"), ("model/weights.safetensors", "debug"), ("adapt/weights.safetensors", "debug")],
)
def test_corrupted_weights(
    tiny: Tiny, bad: tuple[Path, dict[str, str]], submit: Submit, tmp_path: Path, file: str, executor: str
) -> None:
    run = tiny.copy(tmp_path / "run")
    (run / file).write_bytes((run / file).read_bytes()[:1000])
    command = ["catalog", "--run", run, "--survey", "apogee", "--input", bad[0], "--output", "out", "--executor", executor]
    refused(submit(*command), f"can't read weights .*{file}")
