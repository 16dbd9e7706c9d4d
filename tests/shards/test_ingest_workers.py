"""Ingest by several processes, by MPI ranks, by array tasks, and by processes that are killed: always the same bytes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcspec.shards import ingest as module
from hpcspec.shards.format import shard_paths
from hpcspec.shards.ingest import ingest, ingest_units, plan
from hpcspec.simulate import simulate
from hpcspec.surveys import discover
from tests.cluster.conftest import unavailable
from tests.making import stored

ROOT = Path(__file__).parents[2]
FACTOR = 2**7  # units are this much smaller than they are outside of tests, so that there are some
MIB = 0.2 * FACTOR  # 0.2 MiB: about six shards
OBJECTS = 24
Contents = dict[str, bytes]


def contents(folder: Path) -> Contents:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".tmp"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """APOGEE files: some good, one empty, three of them copies of others."""
    folder = tmp_path_factory.mktemp("files")
    simulate(folder, {"apogee": OBJECTS}, seed=5)
    good = sorted((folder / "apogee").glob("*.fits"))
    for number, path in enumerate(good[5::8]):
        shutil.copy(path, path.with_name(f"z{number}.fits"))
    (folder / "apogee" / "empty.fits").write_bytes(b"")
    return folder / "apogee"


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIB", 2**20 / FACTOR)


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """What one process that nothing disturbs makes."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIB", 2**20 / FACTOR)
        assert len(plan(discover("apogee", files), "apogee")) > 8
        counts = ingest("apogee", files, folder, MIB)
    assert (counts.rows_in, counts.objects, counts.quarantined) == (OBJECTS + 4, OBJECTS, 4)
    assert len(shard_paths(folder)) > 4
    return contents(folder)


def test_two_workers_give_the_same_bytes(files: Path, whole: Contents, tmp_path: Path) -> None:
    ingest("apogee", files, tmp_path, MIB, workers=2)
    assert contents(tmp_path) == whole


RANK = f"""
import resource, sys
from pathlib import Path
from hpcspec.comm import world
from hpcspec.errors import UserError
from hpcspec.shards import ingest as module
comm, files, folder = world(), Path(sys.argv[1]), Path(sys.argv[2])
module.MIB = 2**20 / {FACTOR}

def tried(name, place="failing"):
    try:
        said = module.ingest("apogee", files, folder / place, {MIB}, comm=comm).objects
    except UserError as error:
        said = error
    print(f"{{comm.rank}}: {{name}} {{said}}\\n", end="", flush=True)

def limited(limit):  # a full disk on rank 1
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit if comm.rank == 1 else hard, hard))

tried("alone", "alone")
limited(20_000)
tried("unit")
limited(-1)
write = module.write_planned

def full(*given, **more):
    limited(20_000)
    write(*given, **more)

module.write_planned = full
tried("shard")
module.write_planned = write
limited(-1)
unit = sorted((folder / "failing/units").glob("*.h5"))[0]
comm.Barrier()
if comm.rank == 0:
    original = unit.read_bytes()
    unit.write_bytes(b"")
tried("damage")
if comm.rank == 0:
    unit.write_bytes(original)
tried("done")
"""


def ranks(number: int, files: Path, folder: Path) -> list[str]:
    """What the ranks of a real MPI job say; it fails if the job hangs."""
    if not (mpirun := shutil.which("mpirun")):
        unavailable("mpirun is not installed")
    command = [mpirun, "-n", str(number), "--oversubscribe", "--allow-run-as-root", sys.executable, "-c", RANK]
    done = subprocess.run([*command, files, folder], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return sorted(done.stdout.splitlines())


def test_ranks_give_the_same_bytes_and_what_fails_on_one_fails_on_all(files: Path, whole: Contents, tmp_path: Path) -> None:
    """None is left waiting, and where the reason is gone the next attempt goes on."""
    said = ranks(3, files, tmp_path)
    assert len(said) == 15
    for rank in range(3):
        told = {line.split(" ")[1]: line.split(" ", 2)[2] for line in said if line.startswith(f"{rank}: ")}
        elsewhere = "" if rank == 1 else "rank 1: "
        assert told["alone"] == told["done"] == str(OBJECTS)
        assert told["unit"].startswith(f"{elsewhere}can't write {tmp_path}/failing/units/apogee-")
        assert told["shard"].startswith(f"{elsewhere}can't write {tmp_path}/failing/apogee-")
        assert told["damage"].startswith(f"can't read shard {tmp_path}/failing/units/apogee-")
    for name in ("alone", "failing"):
        assert contents(tmp_path / name) == whole


CALL = f"""
from pathlib import Path
from hpcspec.shards import ingest as module
module.MIB = 2**20 / {FACTOR}
module.{{}}("apogee", Path({{!r}}), Path({{!r}}), *{{}})
"""


Call = tuple[str, Path, Path, tuple[float, ...]]


def killed_until_done(calls: Iterator[Call], rng: random.Random, begin_again: Callable[[], None]) -> None:
    """Kill a process after a random time and start another, until one comes to its end; they are given ever more time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpcspec.shards.ingest", "hpcspec.surveys.apogee"])
    started = context.Process(target=print)
    started.start()
    started.join()  # what is preloaded takes its time
    kills = 0
    for attempt, (name, files, folder, rest) in enumerate(calls):
        process = context.Process(target=exec, args=(CALL.format(name, str(files), str(folder), rest),))
        process.start()
        process.join(rng.uniform(0.02, 0.2 + 0.05 * attempt))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        elif kills > 2:
            assert process.exitcode == 0
            return
        else:  # it was faster than the kill
            begin_again()


def test_killed_at_any_moment_it_is_completed_without_loss(files: Path, whole: Contents, tmp_path: Path) -> None:
    def begin_again() -> None:
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()

    killed_until_done(itertools.repeat(("ingest", files, tmp_path, (MIB,))), random.Random(11), begin_again)
    assert contents(tmp_path) == whole
    objects = [s.object_id for path in shard_paths(tmp_path) for s, _, _ in stored(path)]
    assert len(objects) == len(set(objects)) == OBJECTS
    ingest("apogee", files, tmp_path, MIB)
    assert contents(tmp_path) == whole


def test_killed_array_tasks_are_completed_by_their_successors(files: Path, whole: Contents, tmp_path: Path) -> None:
    """Nothing is in the folder that counts before the last of them is through."""
    tasks = (("ingest_units", files, tmp_path, (i % 2, 2)) for i in itertools.count())
    killed_until_done(tasks, random.Random(5), lambda: shutil.rmtree(tmp_path / "units"))
    assert shard_paths(tmp_path) == []
    for task in range(2):
        ingest_units("apogee", files, tmp_path, task, 2)
    ingest("apogee", files, tmp_path, MIB)
    assert contents(tmp_path) == whole


def workers_of(process: int) -> list[int]:
    """The processes that this one has started, and theirs."""
    try:
        children = [int(p) for p in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return [c for child in children for c in (child, *workers_of(child))]


def test_workers_end_with_their_parent(files: Path, tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from hpcspec.shards import ingest as m\n"
            "if __name__ == '__main__':\n"
            f"    m.MIB = 2**20 / {FACTOR}\n"
            f"    m.ingest('apogee', Path(sys.argv[1]), Path(sys.argv[2]), {MIB}, workers=2)\n")  # fmt: skip
    (tmp_path / "run.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "run.py", files, tmp_path / "out"], env=environment) as parent:
        began = time.monotonic()
        while not any((tmp_path / "out/units").glob("*.json")):
            assert parent.poll() is None and time.monotonic() < began + 60
            time.sleep(0.02)
        workers = workers_of(parent.pid)
        parent.send_signal(signal.SIGKILL)
    assert len(workers) >= 2
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < began + 90, "workers are left"
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
