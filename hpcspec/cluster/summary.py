"""What a person wants to see at the end of a pipeline, and while it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hpcspec.cluster.run import Run, release
from hpcspec.config import Config


def _seconds(run: Run, config: Config) -> list[tuple[str, dict[str, Any] | None]]:
    reading = ("read", "ingest") if config.ingest.array else ("ingest",)
    names = [*(["simulate"] if config.simulate else []), *(f"{stage}-{s}" for s in config.surveys for stage in reading),
             "pretrain", "adapt", *(f"{stage}-{s}" for s in config.surveys for stage in ("catalog", "merge"))]  # fmt: skip
    return [(name, _together(run, name, _array_tasks(name, config))) for name in names]


def _array_tasks(name: str, config: Config) -> int:
    """How many tasks a stage's array has; 0 where it is none."""
    return {"read": config.ingest.array, "catalog": config.catalog.tasks}.get(name.partition("-")[0], 0)


def _together(run: Run, name: str, tasks: int) -> dict[str, Any] | None:
    """A finished stage's marker; of an array seconds and objects summed, once all tasks are done."""
    if not tasks:
        return run.done(name)
    done = [t for t in (run.done(f"{name}-{task}") for task in range(tasks)) if t]
    return {k: sum(t[k] for t in done) for k in ("seconds", "objects") if k in done[0]} if len(done) == tasks else None


def show_summary(run: Run, config: Config, wall: float) -> None:
    """Files written, accuracy on held-out objects beside the baseline's, time per stage; also written to summary.txt."""
    with open(run.path / "summary.txt", "w") as file:
        for console in (Console(width=None if sys.stdout.isatty() else 140), Console(file=file, width=140)):
            _print_summary(console, run, config, wall)


def _print_summary(console: Console, run: Run, config: Config, wall: float) -> None:
    from hpcspec.adapt.heads import Task  # torch: seconds that the other verbs need not wait
    from hpcspec.adapt.report import table

    report = Task.load(run.adapted / "task.json").report
    if "parameters" in report:
        header, *rows = table(dict(report))
        shown = Table(*header, title="Accuracy on held-out objects (nothing was trained on them)")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    times = Table("stage", "seconds", "", title="Stages")
    for name, marker in _seconds(run, config):
        if marker:
            keys = ("rows_in", "objects", "quarantined", "rows", "step", "loss", "spectra_s")
            times.add_row(name, f"{marker['seconds']:.0f}", ", ".join(f"{k} {_number(marker[k])}" for k in keys if k in marker))
    console.print(times)
    for survey in config.surveys:
        work = release(run, config, survey)
        for path in sorted(p for p in work.out.glob("*") if p.name != "work"):
            size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
            console.print(f"{path}{'/' if path.is_dir() else ''}  {size / 2**20:.2f} MiB", highlight=False, soft_wrap=True)
    console.print(f"run folder {run.path}; this command took {wall:.0f} s", highlight=False, soft_wrap=True)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def show_status(run: Run, config: Config) -> None:
    """How far each stage is."""
    console = Console()
    shown = Table("stage", "state", "", title=str(run.path))
    for name, marker in _seconds(run, config):
        tasks = _array_tasks(name, config)
        labels = [f"{name}-{task}" for task in range(tasks)] or [name]
        errors = [path.read_text() for label in labels if (path := run.path / "state" / f"{label}.error").is_file()]
        if marker:
            shown.add_row(name, "done", f"{marker['seconds']:.0f} s")
        elif errors:
            shown.add_row(name, "failed", errors[0])
        elif name == "pretrain" and (last := run.last_metrics()):
            shown.add_row(name, "under way", f"step {last['step']} of {config.training.steps}, loss {last['loss']:.3f}")
        elif name.startswith("read-"):
            units = len(list((run.shards(name.partition("-")[2]) / "units").glob("*.json")))
            done = sum(run.done(label) is not None for label in labels)
            shown.add_row(name, "to do", f"{units} units read, {done} of {tasks} tasks done")
        elif name.startswith("catalog-"):
            parts = len(list(release(run, config, name.partition("-")[2]).parts.glob("*.parquet")))
            shown.add_row(name, "to do", f"{parts} of at most {config.catalog.pieces} parts written")
        else:
            shown.add_row(name, "to do", _log(run.logs / f"{name}.log"))
    console.print(shown)


def _log(path: Path) -> str:
    lines = path.read_text().splitlines() if path.is_file() else []
    return lines[-1] if lines else ""
