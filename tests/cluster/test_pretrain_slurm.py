"""The main job on the real Slurm: pretraining that is killed and stopped and goes on, the array catalogue, the whole pipeline."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from astropy.table import Table

from tests.cluster.project import Project, scripts

STEPS = 16
FILES = ("hpcspec-apogee.fits", "hpcspec-apogee-embeddings.parquet", "hats/hats.properties", "datamodel.html", "qa/index.html",
         "provenance.json", "SHA256SUMS")  # fmt: skip


@pytest.fixture(scope="module")
def job_variables(slurm: dict[str, str], mpi_env: dict[str, str]) -> dict[str, str]:
    """What a site's environment says where h5py has MPI."""
    return {key: value for key, value in mpi_env.items() if slurm.get(key) != value}


@dataclass
class History:
    """A pretraining that was submitted three times: the jobs, what each logged, and the newest checkpoint each left."""

    project: Project
    jobs: list[str] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.project.folder / "runs/pretrain"

    def steps(self) -> list[int]:
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("\n")]

    def submit(self) -> str:
        self.jobs.append(self.project.sbatch("slurm/pretrain.sbatch"))
        return self.jobs[-1]

    def ended(self) -> None:
        self.project.wait(self.jobs[-1])
        self.logs.append((self.project.folder / f"hpcspec-pretrain-{self.jobs[-1]}.log").read_text())
        self.saved.append(max(int(p.parent.name.removeprefix("step")) for p in self.run.glob("checkpoints/step*/complete.json")))


@pytest.fixture(scope="module")
def history(slurm: dict[str, str], job_variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> History:
    """sbatch slurm/pretrain.sbatch, killed after the first checkpoint; again, stopped by SIGUSR2; again, to the end."""
    project = Project(tmp_path_factory.mktemp("project"), slurm, job_variables, {"nodes": 2, "tasks_per_node": 2})
    history = History(project)
    job = history.submit()
    project.until(job, lambda: list(history.run.glob("checkpoints/step*/complete.json")))
    project.run("scancel", "--signal=KILL", f"{job}.1")  # the step that trains: no rank gets a chance to save
    history.ended()
    job = history.submit()
    project.until(job, lambda: history.steps()[-1] > history.saved[0])
    project.run("scancel", "--signal=USR2", job)
    history.ended()
    history.submit()
    history.ended()
    return history


def test_four_ranks_on_two_nodes_read_through_mpi_io(history: History) -> None:
    for log in history.logs:
        said = re.findall(r"rank (\d) of (\d) on (\w+) reads shards through (.*)", log)
        nodes = ["node1", "node1", "node2", "node2"]
        assert sorted(said) == [(str(rank), "4", node, "MPI-IO") for rank, node in enumerate(nodes)], log
        assert "4 ranks on cpu, ZeRO-3" in log
    assert "(rank 0 of 4)" in history.logs[0], "the ranks share the ingest"
    assert len(list(history.run.glob("checkpoints/*/*_mp_rank_00_optim_states.pt"))) % 4 == 0


def test_a_killed_job_goes_on_from_its_checkpoint(history: History) -> None:
    assert history.project.job(history.jobs[0])["JobState"] == "FAILED"
    assert "Killed" in history.logs[0] and "caught" not in history.logs[0]
    assert "starting at step 0 of" in history.logs[0] and f"checkpoint saved at step {history.saved[0]}" in history.logs[0]
    assert 0 < history.saved[0] < STEPS
    assert f"going on at step {history.saved[0]} of {STEPS}" in history.logs[1]


def test_a_signal_makes_it_save_and_stop_with_exit_code_75(history: History) -> None:
    assert history.project.job(history.jobs[1])["ExitCode"] == "75:0"
    assert history.logs[1].count("caught SIGUSR2") == 4
    assert history.saved[0] < history.saved[1] < STEPS
    assert f"stopped at step {history.saved[1]} of {STEPS} after saving: submit the same job again" in history.logs[1]
    assert f"going on at step {history.saved[1]} of {STEPS}" in history.logs[2]


def test_the_run_ends_with_weights_and_every_step_once(history: History) -> None:
    assert history.project.job(history.jobs[2])["JobState"] == "COMPLETED"
    assert history.steps() == list(range(1, STEPS + 1))
    assert (history.run / "model/weights.safetensors").is_file()
    assert json.loads((history.run / "state/pretrain.json").read_text())["step"] == STEPS


def check_published(project: Project, folder: str, rows: int) -> None:
    assert all((project.folder / folder / name).is_file() for name in FILES)
    assert ", 0 failed" in project.hpcspec("validate", folder)
    assert len(Table.read(project.folder / folder / "hpcspec-apogee.fits", unit_parse_strict="silent")) == rows


def test_the_catalogue_is_an_array_and_a_merge_after_it(history: History) -> None:
    project = history.project
    promised = scripts(project.hpcspec("catalog", "--survey", "apogee", "--dry-run"))
    said = project.hpcspec("catalog", "--survey", "apogee")
    waiting = project.dependencies()
    assert "taking the newest trained run: runs/pretrain" in said
    jobs = dict(re.findall(r"submitted (\S+) as job (\d+)", said))
    assert list(jobs) == list(promised) == ["adapt", "catalog-apogee", "merge-apogee"]
    adapt, array, merge = jobs.values()
    assert "(4 array tasks)" in said
    assert {waiting[f"{array}_{task}"] for task in range(4)} == {f"afterok:{adapt}(unfulfilled)"}
    assert waiting[merge] == f"afterok:{array}_*(unfulfilled)"
    for name, text in promised.items():
        expected = text.replace("JOB_BEFORE", {"catalog-apogee": adapt, "merge-apogee": array}.get(name, ""))
        given = (history.run / "logs/jobs" / name / f"{jobs[name]}_submission.sh").read_text()
        assert given.strip() == expected.strip(), name
        assert project.run("scontrol", "write", "batch_script", jobs[name], "-").strip() == expected.strip(), name
    project.wait(merge)
    for task in range(4):
        shown = project.job(array, task)
        assert (shown["ArrayJobId"], shown["JobState"]) == (array, "COMPLETED"), project.logs()
    assert project.job(merge)["JobState"] == "COMPLETED", project.logs()
    check_published(project, "runs/pretrain/catalog", 80)
    assert "everything is done already" in project.hpcspec("catalog", "--survey", "apogee")


def test_the_whole_pipeline(slurm: dict[str, str], job_variables: dict[str, str], tmp_path: Path) -> None:
    project = Project(tmp_path, slurm, job_variables, {"nodes": 2, "tasks_per_node": 1})
    said = project.hpcspec("pipeline", "--config", "tiny.yaml", "--executor", "slurm")
    jobs = dict(re.findall(r"submitted (\S+) as job (\d+)", said))
    assert list(jobs) == ["simulate", "ingest-apogee", "pretrain", "adapt", "catalog-apogee", "merge-apogee"]
    project.wait(jobs["merge-apogee"])
    assert {name: project.job(job)["JobState"] for name, job in jobs.items()} == dict.fromkeys(jobs, "COMPLETED"), project.logs()
    log = (tmp_path / "runs/tiny/logs/pretrain.log").read_text()
    assert "2 ranks on cpu, ZeRO-2" in log and "rank 0 of 2 on node1 reads shards through MPI-IO" in log
    assert project.job(jobs["pretrain"])["NodeList"] == "node[1-2]"
    check_published(project, "runs/tiny/catalog", 80)
    assert "everything is done already" in project.hpcspec("pipeline", "--config", "tiny.yaml", "--executor", "slurm")
