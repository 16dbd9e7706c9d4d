"""Array tasks and merges that are killed at any moment and run again publish what an undisturbed run publishes."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcspec.atomic import file_hash
from hpcspec.catalog.merge import STAGE, SUMS
from hpcspec.cluster.run import Run
from hpcspec.cluster.stages import run_stage

from ..tiny import Tiny, contained

SURVEY, PIECES, ROOT = "desi", 16, Path(__file__).parents[2]
Moment = Callable[[Path], bool]


@dataclass(frozen=True)
class Bench:
    """A run, survey files, and the release that an undisturbed task and merge made of them."""

    run: Path
    source: Path
    out: Path

    def arguments(self, out: Path) -> dict[str, str]:
        """What the stages are told."""
        return {"survey": SURVEY, "source": str(self.source), "output": str(out)}

    def do(self, stage: str, out: Path, task: int = 0, tasks: int = 1) -> None:
        """A stage, undisturbed."""
        run_stage(stage, str(self.run), task, **self.arguments(out), **({"tasks": tasks} if stage == "catalog" else {}))

    def ingested(self, out: Path) -> Path:
        """A new catalogue folder of the same files, as it is before the array job."""
        if out.exists():
            shutil.rmtree(out)
        self.do("ingest", out)
        return out

    def killed(self, stage: str, out: Path, moment: Moment) -> None:
        """The program of a stage in a process of its own, killed when the moment has come."""
        paths = ["--run", self.run, "--survey", SURVEY, "--input", self.source, "--output", out]
        tasks = ["--task", 0, "--tasks", 1] if stage == "catalog" else []
        command = [sys.executable, ROOT / f"jobs/{stage}.py", *paths, *tasks]
        process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while not moment(out) and process.poll() is None:
                time.sleep(0.0005)
        finally:
            process.kill()
            _, stderr = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended before it could be killed: {stderr.decode()}"


def published(out: Path) -> dict[str, str]:
    """SHA-256 of every published file; `work/` is where the shards and parts are."""
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and p.relative_to(out).parts[0] != "work")
    return {p.relative_to(out).as_posix(): file_hash(p) for p in files}


def finished(count: int) -> Moment:
    """When so many parts are there."""
    return lambda out: len(list(out.glob("work/parts/*/part-*.parquet"))) >= count


def writing(count: int) -> Moment:
    """In the middle of writing a part, when so many are there."""
    return lambda out: finished(count)(out) and any(out.glob("work/parts/*/.part-*.tmp"))


def after(seconds: float) -> Moment:
    """So long after it was first asked."""
    asked: list[float] = []

    def moment(_: Path) -> bool:
        asked.append(time.monotonic())
        return asked[-1] - asked[0] >= seconds

    return moment


MOMENTS = [
    after(0.3),
    finished(1),
    writing(1),
    finished(3),
    writing(4),
    finished(6),
    writing(7),
    finished(9),
    writing(10),
    finished(12),
]
MERGE_MOMENTS: list[Moment] = [
    lambda out: (out / STAGE).exists(),
    lambda out: (out / STAGE / f"hpcspec-{SURVEY}.fits").exists(),
    lambda out: (out / STAGE / SUMS).exists(),
]


@pytest.fixture(scope="module")
def bench(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("killed")
    run = Run(tiny.copy(folder / "run"))
    config = run.config()
    run.create(config.model_copy(update={"catalog": config.catalog.model_copy(update={"pieces": PIECES})}))
    made = Bench(run.path, tiny.inputs / SURVEY, folder / "undisturbed")
    with contained():
        for stage in ("ingest", "catalog", "merge"):
            made.do(stage, made.out)
    assert len(list(made.out.glob("work/parts/*/*.parquet"))) == PIECES and SUMS in published(made.out)
    return made


def test_a_killed_task_run_again_leaves_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    with contained():
        outs = [bench.ingested(tmp_path / str(i)) for i in range(len(MOMENTS))]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(bench.killed, ["catalog"] * len(outs), outs, MOMENTS))
        left = [len(list(out.glob("work/parts/*/part-*.parquet"))) for out in outs]
        assert max(left) < PIECES and len(set(left)) > 5, f"the kills left {left} parts"
        for out in outs:
            bench.do("catalog", out)
            bench.do("merge", out)
            assert published(out) == published(bench.out)


def test_a_killed_merge_run_again_leaves_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    """The first one over nothing, the others over an older release."""
    with contained():
        out = bench.ingested(tmp_path / "out")
        bench.do("catalog", out)
        for moment in MERGE_MOMENTS:
            bench.killed("merge", out, moment)
            bench.do("merge", out)
            assert published(out) == published(bench.out)


@pytest.mark.parametrize("tasks", [3, 4])
def test_the_bytes_do_not_depend_on_the_number_of_tasks(bench: Bench, tmp_path: Path, tasks: int) -> None:
    with contained():
        out = bench.ingested(tmp_path / "out")
        for task in reversed(range(tasks)):
            bench.do("catalog", out, task, tasks)
        bench.do("merge", out)
    assert published(out) == published(bench.out)
