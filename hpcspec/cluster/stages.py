"""The stages of the main job, as they run inside an allocation: each finds what it needs in the run folder, does what is
missing, and leaves a marker. Run again, a finished stage returns at once."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit

from hpcspec.atomic import file_hash
from hpcspec.cluster.run import Release, Run, digest, files_key, release, versions
from hpcspec.comm import on_root, world
from hpcspec.config import Config, Survey
from hpcspec.config_files import named_file, read_yaml, validated
from hpcspec.errors import Stopped, UserError
from hpcspec.shards.format import shard_paths
from hpcspec.shards.ingest import ingest, ingest_units
from hpcspec.shards.variability import VERSION
from hpcspec.surveys import discover

log = logging.getLogger(__name__)
FAREWELL = 5.0  # seconds in which ranks that fail together do


def task_rank() -> tuple[int, int]:
    """(rank, number) of this process among the tasks of its job, without MPI."""
    try:
        job = submitit.JobEnvironment()
        return job.global_rank, job.num_tasks
    except RuntimeError:
        return 0, 1


def rank_here() -> int:
    """Rank of this process among the tasks of its job, with MPI or without."""
    comm = world()
    return comm.rank if comm is not None else task_rank()[0]


def start_log(run: Run, stage: str, rank: int) -> None:
    """Log to stdout, and on rank 0 to `logs/<stage>.log`, appending."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if rank == 0:
        run.logs.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(run.logs / f"{stage}.log"))
    ours = logging.getLogger("hpcspec")
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.handlers = handlers
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))


def simulate_key(config: Config) -> str:
    """What simulated files depend on."""
    return digest(config.simulate, config.seed)


def ingest_key(config: Config, work: Release) -> str:
    """What an ingest depends on: the files' names, sizes and times, and how they are cut into shards."""
    try:
        paths = sorted({p for s in discover(work.survey, work.source) if not work.made(s.paths[0]) for p in s.paths})
    except UserError:  # nothing there (yet)
        paths = []
    need = config.ingest
    return digest(VERSION, str(work.source), files_key(paths), need.shard_mib, need.compression, need.samples,
                  survey_settings(config, work.survey).epochs)  # fmt: skip


def survey_settings(config: Config, survey: str) -> Survey:
    """A survey's settings: the run's, or those of its name in configs/surveys where the run was trained without it."""
    if survey in config.surveys:
        return config.surveys[survey]
    try:
        path = named_file("surveys", survey)
    except UserError:  # a reader of an installed package
        return Survey()
    return validated(Survey, read_yaml(path), str(path))


def ingested(run: Run, config: Config, work: Release) -> bool:
    """Whether the shards of these files, as they are now, are there."""
    marker = run.done(work.marker("ingest"), ingest_key(config, work))
    return marker is not None and len(shard_paths(work.shards)) == marker["shards"]


def pretrain_key(run: Run, config: Config) -> str:
    """What pretraining depends on."""
    data = {s: (run.done(f"ingest-{s}") or {}).get("fingerprint") for s in config.surveys}
    return digest(data, config.model.model_dump(), config.training.says(), config.seed, config.adapt.held_out)


def adapt_key(run: Run, config: Config) -> str:
    """What the head depends on."""
    data = {s: (run.done(f"ingest-{s}") or {}).get("fingerprint") for s in config.surveys}
    tables = [file_hash(Path(s.labels.path)) for s in config.surveys.values() if s.labels.path]
    labels = {n: s.labels.model_dump(exclude={"path"}) for n, s in config.surveys.items()}
    how = config.adapt.model_dump(exclude={"ranks", "threads"})
    return digest((run.done("pretrain") or {}).get("weights"), data, labels, tables, how, config.seed)


def has_head(run: Run) -> bool:
    """Whether the run has a head for its pretrained weights."""
    head, trained = run.done("adapt"), run.done("pretrain")
    return head is not None and trained is not None and head["encoder"] == trained["weights"]


def merge_key(run: Run, config: Config, work: Release) -> str:
    """What a catalogue depends on; not on how many tasks share the work."""
    made = [(run.done(stage) or {}).get("key") for stage in ("adapt", work.marker("ingest"))]
    return digest(made, config.catalog.model_dump(exclude={"tasks"}))


def simulate_stage(run: Run, config: Config, **_: Any) -> None:
    """Write the simulated survey files that the configuration asks for."""
    from hpcspec.simulate import simulate

    began, key = time.time(), simulate_key(config)
    if rank_here() > 0 or run.done("simulate", key):
        return
    folder = run.path / "simulated"
    if folder.exists():
        shutil.rmtree(folder)
    shown = {"at": time.monotonic()}

    def progress(survey: str, done: int, total: int) -> None:
        if done == total or time.monotonic() - shown["at"] > 5:
            shown["at"] = time.monotonic()
            log.info("simulate %s: %d of %d objects", survey, done, total)

    simulate(folder, config.simulate, config.seed, progress)
    run.mark("simulate", key, began, objects=sum(config.simulate.values()))


def read_stage(run: Run, config: Config, survey: str, task: int = 0, tasks: int | None = None, source: str | None = None,
               output: str | None = None, **_: Any) -> None:  # fmt: skip
    """Array task `task` of `tasks` (ingest.array if not given) of the reading of a survey's files."""
    began, work = time.time(), release(run, config, survey, source, output)
    if ingested(run, config, work):
        return
    key, epochs = ingest_key(config, work), survey_settings(config, survey).epochs
    ingest_units(survey, work.source, work.shards, task, tasks or config.ingest.array or 1, epochs,
                 config.ingest.samples == "in_place", work.made)  # fmt: skip
    run.mark(f"{work.marker('read')}-{task}", key, began)


def ingest_stage(run: Run, config: Config, survey: str, source: str | None = None, output: str | None = None, **_: Any) -> None:
    """Survey files to shards; under MPI the ranks share the work, otherwise worker processes do."""
    comm = world()
    if comm is None and task_rank()[0] > 0:
        return
    work = release(run, config, survey, source, output)
    began, stage = time.time(), work.marker("ingest")
    key, done = on_root(comm, lambda: (ingest_key(config, work), ingested(run, config, work)))
    if done:
        return
    need = config.ingest
    epochs = survey_settings(config, survey).epochs
    counts = ingest(survey, work.source, work.shards, need.shard_mib, need.compression, comm, need.tasks, epochs,
                    need.samples == "in_place", need.keep_units, work.made)  # fmt: skip
    if comm is None or comm.rank == 0:
        from hpcspec.stream.index import open_index

        shards = shard_paths(work.shards)
        run.mark(stage, key, began, fingerprint=open_index(shards).fingerprint, shards=len(shards), **vars(counts))


def pretrain_stage(run: Run, config: Config, **_: Any) -> None:
    """Train on every rank of this job; goes on from the newest checkpoint."""
    from hpcspec.training.pretrain import pretrain

    began, key = time.time(), pretrain_key(run, config)
    if config.pretrained or (run.done("pretrain", key) and run.weights.is_file()):
        return
    shards = [p for s in config.surveys for p in shard_paths(run.shards(s))]
    last = pretrain(config, shards, run.checkpoints, run.metrics, run.weights)
    if int(os.environ["RANK"]) == 0:
        last.pop("seconds", None)  # of the last interval
        run.mark("pretrain", key, began, weights=file_hash(run.weights), **last)


def adapt_stage(run: Run, config: Config, **_: Any) -> None:
    """Train and measure the heads, on every rank of this job."""
    from hpcspec.adapt.train import adapt

    began, key = time.time(), adapt_key(run, config)
    if run.done("adapt", key):
        return
    if not run.weights.is_file():
        raise UserError(f"{run.path} has no pretrained weights: run pretrain first")
    task = adapt(config, [p for s in config.surveys for p in shard_paths(run.shards(s))], run.weights, run.adapted)
    if task is not None:
        learned = {"classes": list(task.classes), "parameters": list(task.parameters)}
        run.mark("adapt", key, began, encoder=file_hash(run.weights), **learned)


def catalog_stage(run: Run, config: Config, survey: str, task: int = 0, tasks: int | None = None, source: str | None = None,
                  output: str | None = None, **_: Any) -> None:  # fmt: skip
    """Array task `task` of `tasks` (catalog.tasks if not given) of the catalogue."""
    from hpcspec.catalog.task import Predictor, catalog_task

    began, work = time.time(), release(run, config, survey, source, output)
    predictor = Predictor(config, run.weights, run.adapted)
    objects = catalog_task(config, shard_paths(work.shards), predictor, work.parts, task, tasks or config.catalog.tasks)
    if objects or not run.done(f"{work.marker('catalog')}-{task}"):
        run.mark(f"{work.marker('catalog')}-{task}", predictor.hash, began, objects=objects)


def merge_stage(run: Run, config: Config, survey: str, source: str | None = None, output: str | None = None, **_: Any) -> None:
    """Parts to published files, validated."""
    from hpcspec.catalog.merge import merge
    from hpcspec.catalog.task import Predictor, plan
    from hpcspec.catalog.validate import validate
    from hpcspec.stream.index import open_index

    work = release(run, config, survey, source, output)
    began, stage, key = time.time(), work.marker("merge"), merge_key(run, config, work)
    predictor = Predictor(config, run.weights, run.adapted)
    index = open_index(shard_paths(work.shards))
    counts = run.done(work.marker("ingest")) or {}
    config_hash = digest(config.model_dump(exclude={"ingest": {"tasks"}, "catalog": {"tasks"}}))
    provenance = {"model_hash": predictor.hash, "data_fingerprint": index.fingerprint, "config_hash": config_hash,
                  "seed": config.seed, "versions": versions(), "rows_in": counts.get("rows_in"),
                  "accuracy_on_held_out_objects": predictor.task.report}  # fmt: skip
    paths = [work.parts / f"{piece.name}.parquet" for piece in plan(index, config, predictor.model.vocabulary)]
    report = merge(paths, work.out, survey, predictor.columns, provenance, len(index), work.shards / "quarantine")
    failed = [c for c in validate(work.out, survey) if not c.ok]
    if failed:
        raise UserError(f"the catalogue in {work.out} is not valid: {failed[0].name}: {failed[0].detail}")
    log.info("merge: %d rows, %d quarantined, in %s; valid", report.rows, report.quarantined, work.out)
    run.mark(stage, key, began, rows=report.rows, quarantined=report.quarantined, out=str(work.out))


STAGES: dict[str, Callable[..., None]] = {
    "simulate": simulate_stage, "read": read_stage, "ingest": ingest_stage, "pretrain": pretrain_stage, "adapt": adapt_stage,
    "catalog": catalog_stage, "merge": merge_stage,
}  # fmt: skip


def run_stage(stage: str, folder: str, task: int = 0, **arguments: Any) -> None:
    """Run one stage of the run in `folder`: what submitit calls, and the programs in jobs/."""
    run = Run(Path(folder))
    comm, rank = world(), rank_here()
    _farewell()
    label = "-".join([stage, *filter(None, [arguments.get("survey")])]) + (f"-{task}" if stage in ("read", "catalog") else "")
    start_log(run, label, rank)
    if rank == 0:
        run.error(label)  # of an earlier try
    try:
        STAGES[stage](run, run.config(), task=task, **arguments)
    except UserError as error:
        run.error(label, str(error))  # whichever rank is first: it may end the others
        log.error("error: %s", error)
        _end_all_ranks(comm, 2)
        raise
    except Stopped:
        raise  # all ranks agreed on it
    except BaseException:
        if comm is not None:
            log.exception("rank %d failed", rank)
            _end_all_ranks(comm, 1)
        raise


def job(stage: str, folder: str, **arguments: Any) -> int:
    """What the programs in jobs/ do: run the stage; the exit code is 0, 2 for a mistake of the user's, 75 if it was stopped
    after saving and should be submitted again."""
    try:
        run_stage(stage, folder, **arguments)
    except UserError:
        return 2
    except Stopped as stopped:
        log.warning("%s", stopped)
        return 75
    return 0


def _end_all_ranks(comm: Any, code: int) -> None:
    """Ranks that fail together end by themselves; one that fails alone must not leave the others waiting for it."""
    if comm is not None:
        logging.shutdown()
        together, until = _farewell().Ibarrier(), time.monotonic() + FAREWELL
        while not together.Test():
            if time.monotonic() > until:
                comm.Abort(code)
            time.sleep(0.01)


@functools.cache
def _farewell() -> Any:
    """A communicator of all ranks for nothing but their end; the first call is collective."""
    comm = world()
    return comm and comm.Dup()
