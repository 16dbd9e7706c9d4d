"""The testbed is a cluster: four nodes, MPI across them, parallel reads, arrays, dependencies, requeues, accounts."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.cluster.conftest import unavailable
from tests.cluster.daemon import Daemon
from tests.cluster.slurm_conf import CPUS_PER_NODE, GPUS_PER_NODE, NODES
from tests.cluster.testbed import Testbed

COLLECTIVE_READ = """
import sys
import h5py, hdf5plugin, numpy
from mpi4py import MPI

path, out = sys.argv[1:]
comm = MPI.COMM_WORLD
with h5py.File(path, "r", driver="mpio", comm=comm) as file:
    flux = file["flux"]
    begin, end = (len(flux) * r // comm.size for r in (comm.rank, comm.rank + 1))
    with flux.collective:
        mine = flux[begin:end]
mine.tofile(f"{out}/{comm.rank}.bin")
total = numpy.zeros(1)
comm.Allreduce(mine.sum(keepdims=True), total)
print("RANK", comm.rank, comm.size, MPI.Get_processor_name(), int(total[0]), flush=True)
"""


def run(env: dict[str, str], *command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def sbatch(env: dict[str, str], cwd: Path, body: str, *options: str) -> str:
    return run(env, "sbatch", "--parsable", *options, f"--wrap={body}", cwd=cwd).strip()


def until(condition: Callable[[], object], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout_s} s"
        time.sleep(0.1)


def wait(env: dict[str, str], job: str) -> None:
    """Until the job has left the queue, whatever its end."""
    until(lambda: not run(env, "squeue", "-h", "-j", job, "-t", "PD,R,CG,CF,S,RQ").strip())


def test_four_nodes_are_idle_with_their_cpus_and_gpus(slurm: dict[str, str]) -> None:
    lines = run(slurm, "sinfo", "-h", "-N", "-p", "main", "-o", "%N %t %c %G").splitlines()
    assert lines == [f"{node} idle {CPUS_PER_NODE} gpu:{GPUS_PER_NODE}" for node in NODES]


def test_each_node_has_its_name_and_knows_the_others(slurm: dict[str, str]) -> None:
    assert sorted(run(slurm, "srun", "-N4", "-n4", "hostname").split()) == list(NODES)
    names = run(slurm, "srun", "-N1", "getent", "hosts", *NODES).split()
    assert set(names) == {"127.0.0.1", *NODES}


def test_gpus_are_handed_out(slurm: dict[str, str]) -> None:
    assert run(slurm, "srun", "-N1", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES").strip() == "0,1"


def test_mpi_ranks_on_two_nodes_read_one_file_together(mpi_env: dict[str, str], tmp_path: Path) -> None:
    flux = np.random.default_rng(1).integers(0, 1000, 100_003).astype(np.float64)
    with h5py.File(tmp_path / "flux.h5", "w") as file:
        file.create_dataset("flux", data=flux, chunks=(4096,), compression="gzip")
    (tmp_path / "read.py").write_text(COLLECTIVE_READ)
    launch = ("srun", "--mpi=pmix", "-N2", "-n4", "--ntasks-per-node=2", "--time=1")
    printed = run(mpi_env, *launch, sys.executable, tmp_path / "read.py", tmp_path / "flux.h5", tmp_path)
    said = sorted(re.findall(r"RANK (\d) (\d) (\w+) (\d+)", printed))
    first, second = said[0][2], said[-1][2]  # any two nodes: one may still be busy with ending the job before
    assert first != second
    assert said == [(str(rank), "4", (first, second)[rank // 2], str(int(flux.sum()))) for rank in range(4)]
    assert b"".join((tmp_path / f"{rank}.bin").read_bytes() for rank in range(4)) == flux.tobytes()


def test_an_array_keeps_its_limit_and_what_depends_on_it_waits(slurm: dict[str, str], tmp_path: Path) -> None:
    task = "date +%s.%N > $SLURM_ARRAY_TASK_ID.begin; sleep 0.5; date +%s.%N > $SLURM_ARRAY_TASK_ID.end"
    array = sbatch(slurm, tmp_path, task, "--array=0-4%2")
    after = sbatch(slurm, tmp_path, "date +%s.%N > after", f"--dependency=afterok:{array}")
    wait(slurm, after)
    begins, ends = ([float((tmp_path / f"{i}.{what}").read_text()) for i in range(5)] for what in ("begin", "end"))
    assert max(sum(b <= t < e for b, e in zip(begins, ends, strict=True)) for t in begins) <= 2
    assert float((tmp_path / "after").read_text()) >= max(ends)


def test_what_depends_on_a_failed_job_never_runs(slurm: dict[str, str], tmp_path: Path) -> None:
    failing = sbatch(slurm, tmp_path, "exit 3")
    after = sbatch(slurm, tmp_path, "touch ran", f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes")
    wait(slurm, after)
    assert not (tmp_path / "ran").exists()


def test_a_requeued_job_starts_again_within_seconds(slurm: dict[str, str], tmp_path: Path) -> None:
    begun = time.monotonic()
    body = 'touch "run${SLURM_RESTART_COUNT:-0}"; [ "$SLURM_RESTART_COUNT" = 1 ] || sleep 60'
    job = sbatch(slurm, tmp_path, body, "--requeue")
    until((tmp_path / "run0").exists)
    run(slurm, "scontrol", "requeue", job)
    wait(slurm, job)
    assert (tmp_path / "run1").exists()
    assert time.monotonic() - begun < 30


def test_accounting_remembers_how_jobs_ended(testbed: Testbed, slurm: dict[str, str], tmp_path: Path) -> None:
    if not testbed.accounting:
        unavailable("the testbed runs without accounting: slurmdbd or MariaDB is not installed")
    jobs = [sbatch(slurm, tmp_path, body) for body in ("true", "exit 3")]

    def accounts() -> list[str]:
        return run(slurm, "sacct", "-X", "-n", "-P", "-j", ",".join(jobs), "-o", "jobid,state,exitcode").split()

    until(lambda: accounts() == [f"{jobs[0]}|COMPLETED|0:0", f"{jobs[1]}|FAILED|3:0"])


def test_nothing_is_left_of_a_testbed(testbed: Testbed, tmp_path: Path) -> None:
    """A second cluster beside the first; its last job leaves a process that no longer belongs to it."""
    hosts = Path("/etc/hosts").read_bytes()
    bed = Testbed(tmp_path / "second", accounting=False)
    env = bed.up() | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    try:
        sbatch(env, tmp_path, "setsid sleep 600 & echo $! > stray")
        sbatch(env, tmp_path, "sleep 600")
        until(lambda: (tmp_path / "stray").exists() and (tmp_path / "stray").read_text().strip())
        pids = [pid for daemon in bed.daemons.values() if (pid := daemon.pid) is not None]
        assert len(pids) == 2 + len(NODES)  # munged and slurmctld too
        pids.append(int((tmp_path / "stray").read_text()))
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    finally:
        bed.down(wipe=True)
    until(lambda: not any(_runs(pid) for pid in pids), timeout_s=5)
    assert not bed.root.exists()
    assert Path("/etc/hosts").read_bytes() == hosts
    assert all(daemon.pid for daemon in testbed.daemons.values()), "the first cluster lost a daemon"


def test_a_pid_file_never_names_another_process(tmp_path: Path) -> None:
    for folder in ("pid", "log"):
        (tmp_path / folder).mkdir()
    daemon = Daemon("sleep", tmp_path)
    daemon.start(["sleep", "60"], lambda: True, {"PATH": "/usr/bin:/bin"})
    pid = daemon.pid
    assert pid is not None and Daemon("sleep", tmp_path).pid == pid
    daemon.pid_file.write_text(f"{pid} 1")  # the same pid, started at another time
    stranger = Daemon("sleep", tmp_path)
    assert stranger.pid is None
    stranger.stop()
    assert _runs(pid)
    daemon.pid_file.write_text(f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}")
    daemon.stop()
    assert not _runs(pid)


def test_a_daemon_that_dies_says_why(tmp_path: Path) -> None:
    for folder in ("pid", "log"):
        (tmp_path / folder).mkdir()
    with pytest.raises(RuntimeError, match="(?s)ended at once.*no such key"):
        Daemon("bad", tmp_path).start(["sh", "-c", "echo no such key; exit 1"], lambda: False, {"PATH": "/usr/bin:/bin"})


def _runs(pid: int) -> bool:
    """Whether the process exists and is more than an exit status to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
