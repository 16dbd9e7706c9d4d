"""A folder as a person has it who works on the cluster: the templates, a configuration, a site, and the commands typed there."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

REPO = Path(__file__).parents[2]
TINY = """\
name: tiny
surveys:
  apogee: {labels: {key: object_id, parameters: {teff: teff, logg: logg}}}
simulate: {apogee: 80}
ingest: {shard_mib: 1}
model: {patch: 128, width: 32, layers: 1, decoder_layers: 1, heads: 2, frequencies: 8}
training: {steps: 16, warmup: 2, tokens_per_batch: 512, lanes: 8, block: 2, shuffle_blocks: 2, save_every: 4, log_every: 1}
adapt: {steps: 20, tokens_per_batch: 512, calibration: 0.2, baseline: none, threads: 1}
catalog: {tasks: 4, pieces: 5}
"""


def scripts(printed: str) -> dict[str, str]:
    """The scripts of a dry run by the name of their step."""
    return dict(re.findall(r"^# ([\w-]+)\n(#!/bin/bash\n.*?)(?=^# [\w-]+\n#!|\Z)", printed, re.DOTALL | re.MULTILINE))


class Project:
    """`slurm/` and `jobs/` as in the repository, `tiny.yaml`, and `site.yaml` with the variables every job shall have."""

    def __init__(self, folder: Path, slurm: dict[str, str], job_variables: dict[str, str], pretrain: dict[str, int]) -> None:
        self.folder = folder
        for name in ("slurm", "jobs"):
            (folder / name).symlink_to(REPO / name)
        (folder / "tiny.yaml").write_text(TINY)
        site = {"environment": job_variables, "stages": {"ingest": {"tasks_per_node": 2}, "pretrain": pretrain}}
        (folder / "site.yaml").write_text(yaml.safe_dump(site))
        ours = {"HPCSPEC_CONFIG": "tiny.yaml", "HPCSPEC_SITE": str(folder / "site.yaml"), "HPCSPEC_PYTHON": sys.executable}
        self.env = {k: v for k, v in slurm.items() if not k.startswith("HPCSPEC_")} | ours

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints, typed in the folder."""
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def hpcspec(self, *arguments: str) -> str:
        """`python -m hpcspec.submit …`, which must end well."""
        return self.run(sys.executable, "-m", "hpcspec.submit", *arguments)

    def sbatch(self, script: str) -> str:
        """Submit a script as typed; its job id."""
        return self.run("sbatch", script).split()[-1]

    def job(self, job: str, task: int | None = None) -> dict[str, str]:
        """What Slurm knows of a job, or of one task of an array."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job if task is None else f"{job}_{task}")
        return dict(re.findall(r"(\S+?)=(\S*)", shown.splitlines()[0]))

    def dependencies(self) -> dict[str, str]:
        """What each job in the queue waits for."""
        rows = self.run("squeue", "--noheader", "--array", "--format=%i|%E").splitlines()
        return dict(row.split("|") for row in rows)

    def until(self, job: str, condition: Callable[[], object], timeout_s: float = 180) -> None:
        """Wait for the condition, as long as the job lives."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.alive(job), self.logs()
            assert time.monotonic() < deadline, f"still not so after {timeout_s} s\n{self.logs()}"
            time.sleep(0.05)

    def wait(self, job: str, timeout_s: float = 300) -> None:
        """Until the job has left the queue, whatever its end."""
        deadline = time.monotonic() + timeout_s
        while self.alive(job):
            assert time.monotonic() < deadline, f"job {job} still runs after {timeout_s} s\n{self.logs()}"
            time.sleep(0.2)

    def alive(self, job: str) -> bool:
        """Whether the job waits, runs or ends just now."""
        return bool(self.run("squeue", "--noheader", f"--jobs={job}", "--states=PD,R,CG,CF,S,RQ", check=False).strip())

    def logs(self) -> str:
        """The ends of all logs."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("runs/*/logs/**/*.out")]
        return "\n".join(f"── {p.relative_to(self.folder)}\n{p.read_text(errors='replace')[-2000:]}" for p in sorted(paths))
