"""Survey files to shards to samples on the ranks of a real cluster: through MPI-IO and plain reads, when one rank can't read,
and as an array of jobs that is killed."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcspec.cluster.run import Run
from hpcspec.comm import agreed, world
from hpcspec.config import Config
from hpcspec.errors import UserError
from hpcspec.shards.format import shard_paths
from hpcspec.shards.ingest import Unit, ingest, plan
from hpcspec.simulate import simulate
from hpcspec.stream import index as stream_index
from hpcspec.stream.batches import packs
from hpcspec.stream.packing import Packed
from hpcspec.stream.patches import coordinates_at
from hpcspec.stream.stream import Stream
from hpcspec.stream.vocabulary import Vocabulary
from hpcspec.surveys import discover
from hpcspec.surveys.observation import Observation, make_curve
from tests.cluster.project import REPO, Project
from tests.making import packed, shard, spectrum

MODULE = "tests.cluster.test_stream_slurm"
SEED, SHARE, BUDGET, MIB = 3, 0.3, 200, 0.25
WORDS = Vocabulary(16, 4, bands=("V mag",))
RANKS = {"mpi": 8, "plain": 2}  # through which h5py, and how many
LAME = {"mpi": 5, "plain": 1}  # the rank whose disk fails it
# A reader of an installed package: APOGEE files, each with a companion that makes it large, and a place where reading waits.
PACKAGE = {
    "slow.py": """
import time
from dataclasses import replace
from hpcspec.surveys import apogee
from hpcspec.surveys.apogee import LABELS

def discover(folder):
    return [replace(source, paths=(*source.paths, folder / "companion")) for source in apogee.discover(folder)]

def read(source):
    folder = source.paths[1].parent
    with open(folder / "read", "a") as file:
        file.write(f"{source.key} ")
    while (folder / f"{source.key}.wait").exists():
        (folder / "waiting").touch()
        time.sleep(0.05)
    yield from apogee.read(replace(source, paths=source.paths[:1]))
""",
    "slow-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: slow\nVersion: 1\n",
    "slow-1.dist-info/entry_points.txt": "[hpcspec.surveys]\nslow = slow\n",
}
CONFIG = """\
name: array
surveys: {slow: {}}
ingest: {shard_mib: 0.25, array: 3}
"""


def made(number: int) -> Observation:
    """An object with one to three arms on grids of different kinds and, each third one, a light curve; some have no position."""
    rng = np.random.default_rng([number, 7])
    times = np.sort(rng.uniform(0, 900, 20 + number % 7))
    curve = make_curve("V", times, rng.normal(12, 1, len(times)), np.full(len(times), 0.02))
    grids = (("log10", "linear", "table") * 2)[number % 3 : number % 3 + 1 + number % 4 % 3]
    nowhere = {"ra": np.nan, "dec": np.nan} if number % 11 == 0 else {}
    return spectrum(number, grids, 90 + number % 5, curves=(curve,) if number % 3 == 0 else (), **nowhere)


def digests(pack: Packed) -> list[tuple[int, int, str]]:
    """(epoch, number, hash) of each object of a pack; the hash is of its samples, where they lie, and its scalars."""
    lengths = pack.segments.diff()
    segment = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    coordinates = coordinates_at(pack, segment, torch.arange(len(segment)) - pack.segments[segment]).numpy()
    out = []
    for i, (epoch, number) in enumerate(zip(pack.epochs.tolist(), pack.numbers.tolist(), strict=True)):
        own = torch.nonzero(pack.owner == i)[:, 0]
        a, b = int(pack.segments[own[0]]), int(pack.segments[own[-1] + 1])
        content = (pack.samples.numpy()[:, a:b], coordinates[a:b], pack.amplitude.numpy()[i], pack.sn_median.numpy()[i])
        out.append((epoch, number, hashlib.sha256(b"".join(np.ascontiguousarray(x).tobytes() for x in content)).hexdigest()))
    return out


def first_epoch(stream: Stream) -> list[tuple[int, int, str]]:
    """What the stream delivers until all of its lanes are in the second epoch."""
    delivered = []
    for pack in packs(stream, BUDGET):
        delivered += digests(pack)
        if pack.state and all(epoch > 0 for epoch, _, _ in pack.state["positions"].values()):
            return [one for one in delivered if one[0] == 0]
    raise AssertionError("the stream is endless")


def cut_on_the_way(stream: Stream, lame: bool) -> None:
    """Read on and on; after the first pack the lame rank's shards are cut to half. The other ranks read two epochs; what the
    lame one has read ahead may be more."""
    cut = False
    for pack in packs(stream, BUDGET):
        if lame and not cut:
            for path in Path("own").glob("*.h5"):
                os.truncate(path, path.stat().st_size // 2)
            cut = True
        if min(epoch for epoch, _, _ in (pack.state or {})["positions"].values()) > (100 if lame else 1):
            return


def one_rank(folder: Path, how: str) -> None:
    """What each rank does in the job; it leaves what it saw in `<how>-<rank>.json`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    comm = world()
    seen: dict[str, Any] = {"counts": None, "described": []}
    if how == "mpi":
        files = (folder / "files").resolve()
        seen["counts"] = vars(ingest("slow", files, folder / "by-ranks", MIB, comm=comm))
        if comm.rank == 0:
            ingest("slow", files, folder / "by-one", MIB)
    describe = stream_index.describe
    stream_index.describe = lambda path: (seen["described"].append(str(path)), describe(path))[1]

    def opened(paths: list[Path]) -> Stream:
        return Stream(stream_index.open_index(paths, comm), SEED, 16, 2, 2, vocabulary=WORDS, share=SHARE,
                      rank=comm.rank, size=comm.size, comm=comm)  # fmt: skip

    for compression in ("none", "blosc"):
        stream = opened(shard_paths(folder / compression))
        seen[compression] = first_epoch(stream)
        stream.close()
    os.chdir(folder / how / str(comm.rank))  # as where every node has a copy of the shards on a disk of its own
    for name, work in (("shorter", first_epoch), ("own", functools.partial(cut_on_the_way, lame=comm.rank == LAME[how]))):
        stream = opened(shard_paths(Path(name)))
        try:
            agreed(comm, functools.partial(work, stream))
        except UserError as error:
            seen[name] = str(error)
        stream.close()
    (folder / f"{how}-{comm.rank}.json").write_text(json.dumps(seen))


@dataclass(frozen=True)
class Job:
    """What was made for it, what the ranks saw, through MPI-IO ("mpi") and plainly, and what they printed."""

    folder: Path
    objects: list[Observation]
    seen: dict[str, list[dict[str, Any]]]
    printed: dict[str, str]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the reader `slow`, as pip would install it."""
    site = tmp_path_factory.mktemp("site")
    for name, text in PACKAGE.items():
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(text)
    return site


@pytest.fixture(scope="module")
def files(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated survey files, and in `serial` beside them the shards of a serial ingest."""
    folder = tmp_path_factory.mktemp("survey") / "files"
    simulate(folder.parent / "simulated", {"apogee": 40}, SEED)
    (folder.parent / "simulated/apogee").rename(folder)
    with open(folder / "companion", "wb") as file:
        file.truncate(3 << 20)
    (folder / "broken.fits").write_bytes(b"no FITS")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        ingest("slow", folder, folder.parent / "serial", MIB)
        assert len(units(folder)) > 8, "each rank has something to read"
    return folder


def units(folder: Path) -> list[Unit]:
    return plan(discover("slow", folder), "slow")


@pytest.fixture(scope="module")
def job(mpi_env: dict[str, str], package: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """One allocation of four nodes: eight ranks at work with the h5py that has MPI, then two with the one that has not."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "files").symlink_to(files)
    objects = [made(number) for number in range(150)]
    for compression in ("none", "blosc"):
        for k in range(6):
            shard(folder / compression / f"sdss-{k}.h5", objects[25 * k : 25 * (k + 1)], compression)
    for how, size in RANKS.items():
        for rank in range(size):
            place = folder / how / str(rank)
            shutil.copytree(folder / "none", place / "shorter")
            shard(place / "own/sdss-0.h5", objects)
        with open(folder / how / str(LAME[how]) / "shorter/sdss-3.h5", "r+b") as file:
            file.truncate(20_000)
    found = f"{REPO}{os.pathsep}{package}"
    paths = {"mpi": f"{mpi_env['PYTHONPATH']}{os.pathsep}{found}", "plain": found}
    launch = "PYTHONPATH={0} srun --mpi=pmix -n{1} --nodes={2} {3} -m {4} {5} {6} > {5}/{6}.log 2>&1"
    lines = [launch.format(paths[how], size, min(size, 4), sys.executable, MODULE, folder, how) for how, size in RANKS.items()]
    (folder / "job.sh").write_text("\n".join(["#!/bin/bash", "set -e", f"cd {REPO}", *lines]) + "\n")
    done = subprocess.run(["sbatch", "--wait", "--nodes=4", "--ntasks-per-node=2", "--time=5", f"--output={folder}/job.log",
                           str(folder / "job.sh")], env=mpi_env, capture_output=True, text=True, timeout=290)  # fmt: skip
    printed = {how: path.read_text() if (path := folder / f"{how}.log").exists() else "" for how in RANKS}
    assert done.returncode == 0, done.stderr + "\n".join(printed.values())[-6000:]
    seen = {how: [json.loads((folder / f"{how}-{rank}.json").read_text()) for rank in range(size)]
            for how, size in RANKS.items()}
    return Job(folder, objects, seen, printed)


def test_eight_ranks_make_the_shards_of_a_serial_ingest(job: Job, files: Path) -> None:
    assert content(job.folder / "by-ranks") == content(job.folder / "by-one")
    one, other = (stream_index.open_index(shard_paths(f)) for f in (job.folder / "by-one", files.parent / "serial"))
    assert one.fingerprint == other.fingerprint, "another HDF5 writes other bytes, but the same objects"
    assert all(seen["counts"] == {"sources": 41, "rows_in": 41, "objects": 40, "quarantined": 1} for seen in job.seen["mpi"])


def content(folder: Path) -> dict[str, bytes]:
    """Everything in a folder of shards."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_one_rank_reads_the_index_for_all(job: Job) -> None:
    for how, seen in job.seen.items():
        assert len(seen[0]["described"]) == 6 + 6 + 6 + 1, how
        assert not any(one["described"] for one in seen[1:]), how


@pytest.mark.parametrize("compression", ["none", "blosc"])
@pytest.mark.parametrize("how", ["mpi", "plain"])
def test_every_training_object_comes_once_and_as_it_was_made(job: Job, how: str, compression: str) -> None:
    index = stream_index.open_index(shard_paths(job.folder / compression))
    training = np.flatnonzero(index.lowest_fraction(SEED) >= SHARE).tolist()
    assert 80 < len(training) < len(job.objects)
    delivered = [tuple(one) for seen in job.seen[how] for one in seen[compression]]
    expected = {number: one for _, number, one in digests(packed(job.objects))}
    assert sorted(delivered) == [(0, number, expected[number]) for number in training]
    assert min(len(seen[compression]) for seen in job.seen[how]) > 0


def test_the_log_says_how_each_rank_reads(job: Job) -> None:
    for how, through in (("mpi", "MPI-IO"), ("plain", "a plain handle: this h5py has no MPI")):
        said = Counter(re.findall(r"^rank (\d of \d) on node(\d) reads shards through (.*)$", job.printed[how], re.MULTILINE))
        size, each = RANKS[how], -(-RANKS[how] // 4)
        streams = 4  # each says it once
        assert said == {(f"{r} of {size}", str(1 + r // each), through): streams for r in range(size)}, job.printed[how]


@pytest.mark.parametrize("how", ["mpi", "plain"])
@pytest.mark.parametrize(("case", "text"), [
    ("shorter", r"shard shorter/sdss-3.h5 has 20000 bytes, it had \d+: it was changed; start again"),
    ("own", r"shard own/sdss-0.h5 is cut short in \w+/\w+: ingest again"),
])  # fmt: skip
def test_what_one_rank_cannot_read_ends_all(job: Job, how: str, case: str, text: str) -> None:
    for rank, seen in enumerate(job.seen[how]):
        assert re.fullmatch(("" if rank == LAME[how] else f"rank {LAME[how]}: ") + text, seen[case]), (rank, seen[case])


TRAINING = {
    "name": "halves", "surveys": {"sdss": {}}, "model": {"patch": 16, "width": 16, "layers": 1, "decoder_layers": 1, "heads": 2,
    "frequencies": 8}, "training": {"steps": 500, "tokens_per_batch": 256, "lanes": 4, "block": 2, "shuffle_blocks": 2},
}  # fmt: skip


def trained(slurm: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Pretraining by two ranks, each of which finds the run folder in a folder of its own."""
    env = slurm | {"PYTHONPATH": str(REPO)}
    command = f"cd {folder}/$SLURM_PROCID && exec {sys.executable} {REPO}/jobs/pretrain.py --run run"
    return subprocess.run(["srun", "--mpi=pmix", "-N2", "-n2", "--time=3", "bash", "-c", command], env=env, capture_output=True,
                          text=True, timeout=150)  # fmt: skip


def test_training_ends_on_all_ranks_where_one_cannot_read(slurm: dict[str, str], tmp_path: Path) -> None:
    for rank in range(2):
        run = Run(tmp_path / str(rank) / "run")
        run.create(Config.model_validate(TRAINING))
        for k in range(4):
            shard(run.shards("sdss") / f"sdss-{k}.h5", [made(number) for number in range(25 * k, 25 * (k + 1))])
    os.truncate(tmp_path / "1/run/shards/sdss/sdss-2.h5", 20_000)
    done = trained(slurm, tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    said = re.findall(r"^\S+ error: (.*)$", done.stdout, re.MULTILINE)
    assert len(said) == 2 and len(set(said)) == 1, done.stdout + done.stderr
    assert said[0].startswith("rank 1 has no data: shard run/shards/sdss/sdss-2.h5 has 20000 bytes"), said
    assert (tmp_path / "0/run/state/pretrain.error").read_text() == said[0]
    assert "MPI_ABORT" not in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_rank_that_fails_alone_ends_the_others(slurm: dict[str, str], tmp_path: Path) -> None:
    run = Run(tmp_path / "0/run")
    run.create(Config.model_validate(TRAINING))
    shard(run.shards("sdss") / "sdss-0.h5", [made(number) for number in range(40)])
    (tmp_path / "1/run").mkdir(parents=True)
    done = trained(slurm, tmp_path)
    assert done.returncode != 0 and "error: run is not a run folder" in done.stdout
    assert "with errorcode 2" in done.stdout + done.stderr


def test_an_array_reads_and_a_job_after_it_makes_the_shards(
    slurm: dict[str, str], package: Path, files: Path, tmp_path: Path
) -> None:
    """Its second task is killed in the middle of its second unit; the same command goes on."""
    variables = {"PYTHONPATH": f"{REPO}:{package}"}
    project = Project(tmp_path, slurm | variables, variables, {})
    (tmp_path / "array.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        first, second = units(files)[1:5:3]
    gate = files / f"{second.sources[-1].key}.wait"
    gate.touch()
    (files / "read").unlink(missing_ok=True)
    command = ("ingest", "--config", "array.yaml", "--input", str(files), "--executor", "slurm")
    jobs = submitted(project.hpcspec(*command))
    assert list(jobs) == ["read-slow", "ingest-slow"]
    array, after = jobs.values()
    assert project.dependencies()[after] == f"afterok:{array}_*(unfulfilled)"
    project.until(array, (files / "waiting").exists)
    shown = " ".join(project.hpcspec("status", "runs/array").split())
    assert re.search(r"read-slow │ to do │ \d+ units read, \d of 3 tasks done", shown), shown
    project.run("scancel", "--signal=KILL", f"{array}_1")
    project.wait(array)
    project.wait(after)
    assert [project.job(array, task)["JobState"] for task in range(3)] == ["COMPLETED", "CANCELLED", "COMPLETED"], project.logs()
    assert project.job(after)["JobState"] == "CANCELLED"
    gate.unlink()
    jobs = submitted(project.hpcspec(*command))
    project.wait(jobs["ingest-slow"])
    assert project.job(jobs["ingest-slow"])["JobState"] == "COMPLETED", project.logs()
    assert content(tmp_path / "runs/array/shards/slow") == content(files.parent / "serial")
    times = Counter((files / "read").read_text().split())
    assert {times[s.key] for s in second.sources} == {2} and {times[s.key] for s in first.sources} == {1}


def submitted(said: str) -> dict[str, str]:
    """Job ids by the name of their step, from what the command printed."""
    return dict(re.findall(r"submitted (\S+) as job (\d+)", said))


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]), sys.argv[2])
