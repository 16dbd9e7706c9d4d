"""The scripts that sbatch is given: golden files hold them, and every file in configs/ makes some.

HPCSPEC_UPDATE_GOLDEN=1 writes the golden files anew; look at the difference before you commit it.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from hpcspec.cluster.executors import Step, sbatch_text
from hpcspec.cluster.run import Run
from hpcspec.cluster.site import Resources, Site
from hpcspec.config_files import load
from hpcspec.submit import main
from hpcspec.surveys import SURVEYS
from tests.cluster.project import scripts

REPO = Path(__file__).parents[2]
CONFIGS = REPO / "configs"
GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("HPCSPEC_UPDATE_GOLDEN") == "1"
STEPS = ["ingest-lamost", "pretrain", "adapt", "catalog-lamost", "merge-lamost"]
WITH_ARRAY = ["read-lamost", *STEPS]


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


@pytest.fixture
def dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # noqa: ANN201
    """`pipeline --dry-run` of a pipeline configuration: its scripts, in a folder to which nothing may be written."""
    for name in [n for n in os.environ if n.startswith("HPCSPEC_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    (tmp_path / "labels.csv").touch()
    before = sorted(tmp_path.rglob("*"))

    def call(pipeline: str, *options: str) -> dict[str, str]:
        path = CONFIGS / "pipelines" / f"{pipeline}.yaml"
        config, given = load(path), []
        if not config.simulate:
            (labels,) = (survey.labels for survey in config.surveys.values())
            columns = filter(None, [labels.key, labels.object_class, *labels.parameters.values()])
            (tmp_path / "labels.csv").write_text(",".join(dict.fromkeys(columns)) + "\n")
            given = ["--input", "files", "--labels", "labels.csv"]
        capsys.readouterr()
        code = main(["pipeline", "--config", str(path), *given, "--dry-run", *options])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert sorted(tmp_path.rglob("*")) == before
        return scripts(out)

    return call


@pytest.mark.parametrize("site", ["default", "gpu-cluster"])
def test_the_scripts_are_the_golden_ones(dry_run, tmp_path: Path, site: str) -> None:  # noqa: ANN001
    made = dry_run("lamost", "--site", site, "--set", "ingest.array=200")
    assert list(made) == WITH_ARRAY
    for name, text in made.items():
        text = text.replace(str(tmp_path), "{FOLDER}").replace(sys.executable, "{PYTHON}")
        path = GOLDEN / site / f"{name}.sbatch"
        if UPDATE:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs: if that is meant, HPCSPEC_UPDATE_GOLDEN=1 writes it anew"


def test_there_are_no_other_golden_files() -> None:
    assert {p.relative_to(GOLDEN).as_posix() for p in GOLDEN.rglob("*.sbatch")} == {
        f"{site}/{step}.sbatch" for site in ("default", "gpu-cluster") for step in WITH_ARRAY
    }


@pytest.mark.parametrize("pipeline", names("pipelines"))
def test_every_pipeline_is_dry_run(dry_run, pipeline: str) -> None:  # noqa: ANN001
    made = dry_run(pipeline)
    assert [n.split("-")[0] for n in made][-1] == "merge" and "pretrain" in made
    for text in made.values():
        assert "srun" in text and "--mpi=pmix" in text
    arrays = [text for name, text in made.items() if name.startswith("catalog-")]
    assert arrays and all(re.search(r"^#SBATCH --array=0-\d+%\d+$", text, re.MULTILINE) for text in arrays)
    assert [("--dependency=afterok:JOB_BEFORE" in text) for text in made.values()] == [False, *[True] * (len(made) - 1)]


@pytest.mark.parametrize("site", names("sites"))
def test_every_site_is_dry_run(dry_run, site: str) -> None:  # noqa: ANN001
    assert list(dry_run("lamost", "--site", site)) == STEPS


@pytest.mark.parametrize("key", [*(f"model={n}" for n in names("models")), *(f"training={n}" for n in names("training"))])
def test_every_model_and_training_is_dry_run(dry_run, key: str) -> None:  # noqa: ANN001
    assert list(dry_run("lamost", "--set", key)) == STEPS


@pytest.mark.parametrize("survey", names("surveys"))
def test_every_survey_is_dry_run(
    survey: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text(f"surveys: [{survey}]\n")
    assert main(["ingest", "--config", "one.yaml", "--input", ".", "--dry-run"]) == 0
    assert list(scripts(capsys.readouterr().out)) == [f"ingest-{survey}"]


def test_every_reader_has_a_configuration() -> None:
    assert set(names("surveys")) == set(SURVEYS) and set(names("pipelines")) - {"demo"} <= set(SURVEYS)


def test_what_a_site_says_reaches_the_script(tmp_path: Path) -> None:
    stages = {"pretrain": Resources(nodes=3, tasks_per_node=4, gpus_per_node=4, mem="9GB", partition="big")}
    site = Site(account="me", qos="long", constraint="a100", modules=["hdf5"], environment={"A": "it's"}, setup=["ulimit -n 9"],
                stages=stages)  # fmt: skip
    lines = sbatch_text(Step("pretrain"), Run(tmp_path), site, ["7", "8"]).splitlines()
    wanted = {"account=me", "qos=long", "constraint=a100", "nodes=3", "ntasks-per-node=4", "gpus-per-node=4", "mem=9GB",
              "partition=big", "dependency=afterok:7:8,singleton", "kill-on-invalid-dep=yes"}  # fmt: skip
    assert {f"#SBATCH --{w}" for w in wanted} <= set(lines)
    setup = lines.index("module load hdf5")
    assert lines[setup : setup + 3] == ["module load hdf5", "export A='it'\\''s'", "ulimit -n 9"]


def test_an_array_of_one_task_is_a_plain_job_as_submitit_submits_it(tmp_path: Path) -> None:
    assert "--array" not in sbatch_text(Step("catalog", {"survey": "sdss"}, 1), Run(tmp_path), Site())
    assert "#SBATCH --array=0-1%2" in sbatch_text(Step("catalog", {"survey": "sdss"}, 2), Run(tmp_path), Site())
