"""Who runs the stages: Slurm, this machine, or this process; all three through submitit."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import JobPaths
from submitit.slurm.slurm import _make_sbatch_string

from hpcspec.cluster.run import Run
from hpcspec.cluster.site import Site
from hpcspec.cluster.stages import run_stage
from hpcspec.config import Config
from hpcspec.errors import UserError


@dataclass(frozen=True)
class Step:
    """One job: a stage with its arguments, as an array of `tasks` where that is more than 0."""

    stage: str
    arguments: dict[str, Any] = field(default_factory=dict)
    tasks: int = 0

    @property
    def name(self) -> str:
        """The stage, and the survey where it has one."""
        return "-".join([self.stage, *filter(None, [self.arguments.get("survey")])])

    def label(self, task: int = 0) -> str:
        """The name of this job's (or array task's) log."""
        return f"{self.name}-{task}" if self.tasks else self.name


def slurm_parameters(step: Step, run: Run, site: Site, after: Sequence[str] = ()) -> dict[str, Any]:
    """sbatch's parameters for a step, in submitit's names."""
    need = site.resources(step.stage)
    srun = [*site.srun, f"--cpus-per-task={need.cpus_per_task}"]  # from 22.05 on srun doesn't take it from sbatch
    parameters: dict[str, Any] = {
        "job_name": f"hpcspec-{run.path.resolve().name}-{step.name}", "nodes": need.nodes, "ntasks_per_node": need.tasks_per_node,
        "cpus_per_task": need.cpus_per_task, "time": need.minutes, "stderr_to_stdout": True, "srun_args": srun,
        "array_parallelism": site.array_parallelism, "wckey": "",
    }  # fmt: skip
    optional = {"account": site.account, "partition": need.partition or site.partition, "qos": site.qos,
                "constraint": site.constraint, "mem": need.mem, "gpus_per_node": need.gpus_per_node or None,
                "setup": site.shell() or None}  # fmt: skip
    parameters |= {k: v for k, v in optional.items() if v}
    # singleton: the same command typed twice must not run the same stage of a run twice at the same time (the tasks of an
    # array share a name, and may)
    dependency = [*(["afterok:" + ":".join(after)] if after else []), *([] if step.tasks else ["singleton"])]
    additional: dict[str, Any] = {"kill-on-invalid-dep": "yes"}
    if dependency:
        additional["dependency"] = ",".join(dependency)
    return parameters | {"additional_parameters": additional}


def sbatch_text(step: Step, run: Run, site: Site, after: Sequence[str] = ()) -> str:
    """The exact script that sbatch is given for a step."""
    folder = submitit_folder(run, step)
    command = " ".join([shlex.quote(sys.executable), "-u -m submitit.core._submit", shlex.quote(str(folder))])
    count: dict[str, Any] = {"map_count": step.tasks} if step.tasks > 1 else {}
    return _make_sbatch_string(command=command, folder=folder, **slurm_parameters(step, run, site, after), **count)


def submitit_folder(run: Run, step: Step) -> Path:
    """Where submitit keeps a step's scripts, pickles and output."""
    return (run.logs / "jobs" / step.name).resolve()


def submit_slurm(steps: Sequence[Step], run: Run, site: Site) -> list[tuple[Step, str]]:
    """Submit the steps, each after the one before has ended well; returns their job ids."""
    after: list[str] = []
    out = []
    for step in steps:
        try:
            executor = submitit.SlurmExecutor(folder=submitit_folder(run, step))
            executor.update_parameters(**slurm_parameters(step, run, site, after))
            jobs = _submit(executor, step, run)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, RuntimeError, OSError) as error:
            raise UserError(f"sbatch refused {step.name}: {' '.join(str(error).split())[-300:]}") from error
        job_id = jobs[0].job_id.split("_")[0]
        out.append((step, job_id))
        after = [job_id]
    return out


def _submit(executor: Any, step: Step, run: Run) -> list[submitit.Job[None]]:
    folder = str(run.path.resolve())
    if not step.tasks:
        return [executor.submit(run_stage, step.stage, folder, **step.arguments)]
    with executor.batch():
        # The number of tasks goes along: the configuration may be another when they start.
        return [executor.submit(run_stage, step.stage, folder, t, tasks=step.tasks, **step.arguments) for t in range(step.tasks)]


def run_here(steps: Sequence[Step], run: Run, config: Config, kind: str) -> None:
    """Run the steps one after another on this machine, showing their logs; `debug` runs them in this process.

    Raises UserError for a mistake of the user's, JobFailed for anything else that ends a job.
    """
    for step in steps:
        for task in range(max(1, step.tasks)):
            run.error(step.label(task))
        print(f"── {step.name}", flush=True)
        began = time.monotonic()
        if kind == "debug":
            for task in range(max(1, step.tasks)):
                run_stage(step.stage, str(run.path.resolve()), task, **step.arguments)
        else:
            _run_locally(step, run, config)
        print(f"── {step.name} done in {time.monotonic() - began:.0f} s", flush=True)


class JobFailed(Exception):
    """A job ended badly; the message says where its log is."""


def _run_locally(step: Step, run: Run, config: Config) -> None:
    """One step through submitit's local executor; of an array, as many tasks at a time as there are CPUs for."""
    executor = submitit.LocalExecutor(folder=submitit_folder(run, step), max_num_timeout=0)
    ranks = {"pretrain": config.training.ranks, "adapt": config.adapt.ranks}.get(step.stage, 1)
    executor.update_parameters(timeout_min=60 * 24 * 7, tasks_per_node=ranks, stderr_to_stdout=True)
    waiting = list(range(max(1, step.tasks)))
    width = max(1, (os.cpu_count() or 1) // (config.catalog.threads if step.stage == "catalog" else 1))
    tails = {t: Tail(run.logs / f"{step.label(t)}.log") for t in waiting}
    active: dict[int, submitit.Job[None]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < width:
                task = waiting.pop(0)
                with _stderr_to(submitit_folder(run, step) / "controllers.log"):
                    active[task] = executor.submit(run_stage, step.stage, str(run.path.resolve()), task, **step.arguments)
            time.sleep(0.2)
            for task, job in list(active.items()):
                tails[task].show()
                if job.done():
                    tails[task].show()
                    del active[task]
                    _check(job, step, task, run, ranks)
    finally:
        for job in active.values():
            job.cancel()
        while not all(job.done() for job in active.values()):
            time.sleep(0.05)


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """What is started inside has this file as its standard error: submitit's controllers answer Ctrl-C with a traceback."""
    ours = os.dup(2)
    try:
        with open(path, "a") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def _check(job: submitit.Job[None], step: Step, task: int, run: Run, ranks: int) -> None:
    paths = [JobPaths(submitit_folder(run, step), job.job_id, rank) for rank in range(ranks)]
    bad = [p for p in paths if not p.result_pickle.is_file()]
    mistake = run.error(step.label(task))
    if mistake:
        raise UserError(mistake)
    if bad:
        raise JobFailed(f"{step.label(task)} was ended from outside before it finished; its output: {bad[0].stdout}. Run the "
                        "same command again to go on")  # fmt: skip
    for rank in range(ranks):
        error = job.task(rank).exception() if ranks > 1 else job.exception()
        if error is not None:
            last = str(error).strip().splitlines()[-1]
            raise JobFailed(f"{step.label(task)} failed: {last}; its output: {paths[rank].stdout}")


class Tail:
    """New lines of a growing log, shown as they come."""

    def __init__(self, path: Path):
        self.path, self.seen = path, path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        """Print what has been added."""
        if self.path.exists() and self.path.stat().st_size > self.seen:
            with open(self.path) as file:
                file.seek(self.seen)
                print(file.read(), end="", flush=True)
                self.seen = file.tell()
