"""Ingest by several processes, by MPI ranks, and by processes that are killed: always the same bytes."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpcspec.shards.format import Shard, shard_paths, write_shard
from hpcspec.shards.ingest import ingest
from hpcspec.simulate import simulate
from hpcspec.surveys import reader
from hpcspec.surveys.base import Source
from tests.cluster.conftest import unavailable
from tests.making import stored

MIB = 0.3  # about two files a shard
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


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """What one process that nothing disturbs makes."""
    folder = tmp_path_factory.mktemp("whole")
    counts = ingest("apogee", files, folder, MIB)
    assert (counts.rows_in, counts.objects, counts.quarantined) == (OBJECTS + 4, OBJECTS, 4)
    assert len(shard_paths(folder)) > 6
    return contents(folder)


def test_two_workers_give_the_same_bytes(files: Path, whole: Contents, tmp_path: Path) -> None:
    ingest("apogee", files, tmp_path, MIB, workers=2)
    assert contents(tmp_path) == whole


RANK = """
import sys
from pathlib import Path
from hpcspec.comm import world
from hpcspec.shards.ingest import ingest
comm = world()
counts = ingest("apogee", Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), comm=comm)
print(f"{comm.size} ranks {counts.objects} objects\\n", end="")
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_number_of_ranks_doesn_t_change_the_bytes(files: Path, whole: Contents, tmp_path: Path, ranks: int) -> None:
    if not (mpirun := shutil.which("mpirun")):
        unavailable("mpirun is not installed")
    command = [mpirun, "-n", str(ranks), "--oversubscribe", "--allow-run-as-root", sys.executable, "-c", RANK]
    done = subprocess.run([*command, files, tmp_path, str(MIB)], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count(f"{ranks} ranks {OBJECTS} objects") == ranks
    assert contents(tmp_path) == whole


def test_killed_at_any_moment_it_is_completed_without_loss(files: Path, whole: Contents, tmp_path: Path) -> None:
    """Each ingest is killed after a random time and another goes on, until one comes to its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpcspec.shards.ingest", "hpcspec.surveys.apogee"])
    rng = random.Random(11)
    kills = 0
    for attempt in range(200):
        process = context.Process(target=ingest, args=("apogee", files, tmp_path, MIB))
        process.start()
        process.join(rng.uniform(0.1, 0.5) if attempt else 5 * rng.random())
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        if process.exitcode == 0 and kills > 2:
            break
        if process.exitcode == 0:  # it was faster than the kill: begin again
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
    assert kills > 2 and process.exitcode == 0
    assert contents(tmp_path) == whole
    objects = [s.object_id for path in shard_paths(tmp_path) for s, _, _ in stored(path)]
    assert len(objects) == len(set(objects)) == OBJECTS


def test_killed_while_it_settles_duplicates_nothing_is_counted_twice(files: Path, whole: Contents, tmp_path: Path) -> None:
    """The moment between the quarantine file with the new lines and the shard without the objects, by hand."""
    out = tmp_path / "out"
    ingest("apogee", files, out, MIB)
    last = shard_paths(out)[-1]
    with Shard(last) as opened:
        inputs, sources, there = opened.inputs, opened.sources()[0], list(opened.spectra())
    copies = [(one, number, 0) for number, path in enumerate(sources) if Path(path).name.startswith("z")
              for one in reader("apogee").read(Source(path, (Path(path),)))]  # fmt: skip
    assert copies
    write_shard(last, [*there, *copies], sources, "apogee", inputs)
    ingest("apogee", files, out, MIB)
    assert contents(out) == whole
