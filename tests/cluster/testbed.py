"""A real four-node Slurm on one machine, in one private folder.

    python -m tests.cluster.testbed up DIR            # start it (as root); a second time starts what has stopped
    eval "$(python -m tests.cluster.testbed env DIR)" # sbatch, srun, sinfo, sacct now mean this cluster
    python -m tests.cluster.testbed down DIR          # stop it; --wipe removes the folder too

Its configuration, ports, keys, sockets, database and logs are its own: neither a Slurm that the machine already has nor
any file under /etc is touched. Each node is a slurmd with its own host name and its own view of /etc/hosts.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cluster import slurm_conf
from tests.cluster.daemon import Daemon, TestbedError

_PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "scontrol", "sbatch", "srun", "squeue", "scancel", "unshare", "mount")
_ACCOUNTING_PROGRAMS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb", "mariadb-install-db")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_NODE = 'hostname "$0" && mount --bind "$1" /etc/hosts && exec slurmd -D -N "$0"'


def missing(programs: tuple[str, ...] = _PROGRAMS) -> list[str]:
    """Why the testbed cannot run here, one reason a line; empty when it can."""
    reasons = [f"{name} is not installed" for name in programs if shutil.which(name, path=_PATH) is None]
    if os.geteuid() != 0:
        reasons.append("it needs root")
    elif not reasons:
        trial = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, env={"PATH": _PATH})
        if trial.returncode:
            reasons.append("the kernel allows no UTS and mount namespaces")
    return reasons


class Testbed:
    """The cluster in the folder `root`, an absolute path short enough for Unix sockets (under about 80 characters).

    `accounting` adds slurmdbd and MariaDB, so that sacct works; None adds them where they are installed.
    """

    __test__ = False

    def __init__(self, root: Path, accounting: bool | None = None) -> None:
        self.root = root.resolve()
        if accounting is None:
            accounting = (root / "etc/slurmdbd.conf").exists() if self._configured() else not missing(_ACCOUNTING_PROGRAMS)
        self.accounting = accounting
        database = ("mariadbd", "slurmdbd") if accounting else ()
        self.daemons = {name: Daemon(name, self.root) for name in ("munged", *database, "slurmctld", *slurm_conf.NODES)}

    @property
    def env(self) -> dict[str, str]:
        """The variables that make a Slurm command talk to this cluster."""
        return {
            "SLURM_CONF": str(self.root / "etc/slurm.conf"),
            # Open MPI leaves out the loopback between hosts, and on this cluster it is the network
            "OMPI_MCA_btl_tcp_if_include": "lo",
            # more ranks than cores: those that wait must not spin
            "OMPI_MCA_mpi_yield_when_idle": "1",
        }

    def up(self) -> dict[str, str]:
        """Start whatever is not running and wait until all nodes are ready; returns `env`.

        Raises TestbedError, after stopping everything again, when a daemon does not come up.
        """
        if reasons := missing():
            raise TestbedError("the Slurm testbed cannot run here: " + "; ".join(reasons))
        try:
            self._prepare()
            for name in self.daemons:
                self.start(name)
            self._wait_for_nodes()
        except BaseException:
            self.down()
            raise
        return self.env

    def down(self, wipe: bool = False) -> None:
        """Cancel all jobs, stop all daemons and whatever a job left behind; `wipe` removes the folder."""
        if self.daemons["slurmctld"].pid is not None:
            with contextlib.suppress(TestbedError, subprocess.TimeoutExpired):
                self._cancel_jobs()
        for node in slurm_conf.NODES:
            if (pid := self.daemons[node].pid) is not None:
                os.kill(pid, signal.SIGTERM)  # all at once: each takes a moment
        for daemon in reversed(self.daemons.values()):
            daemon.stop()
        deadline = time.monotonic() + 5
        while (strays := list(self._node_processes())) and time.monotonic() < deadline:
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        if wipe and self._configured():
            shutil.rmtree(self.root)

    def start(self, name: str) -> None:
        """Start one daemon (munged, mariadbd, slurmdbd, slurmctld, node1, …) unless it runs, and wait until it answers."""
        if name == "slurmctld" and self.accounting:
            if slurm_conf.CLUSTER not in self.run("sacctmgr", "--noheader", "list", "cluster", "format=cluster").split():
                self.run("sacctmgr", "--immediate", "add", "cluster", slurm_conf.CLUSTER)
        command, ready = self._recipe(name)
        env = clean_environment() | {"SLURM_CONF": self.env["SLURM_CONF"], "MYSQL_UNIX_PORT": f"{self.root}/mysql/socket"}
        self.daemons[name].start(command, ready, env)

    def _recipe(self, name: str) -> tuple[list[str], Callable[[], bool]]:
        """The foreground command of a daemon, and the question whether it answers."""
        munge, mysql = self.root / "munge", self.root / "mysql"
        if name == "munged":
            command = ["munged", "--foreground", "--force", f"--log-file={self.root}/log/munged.log"]
            command += [f"--socket={munge}/socket", *(f"--{what}-file={munge}/{what}" for what in ("key", "seed", "pid"))]
            return command, lambda: self._succeeds("munge", "--no-input", f"--socket={munge}/socket")
        if name == "mariadbd":
            command = ["mariadbd", "--no-defaults", "--user=root", "--skip-networking", f"--datadir={mysql}/data"]
            command += [f"--socket={mysql}/socket", f"--pid-file={mysql}/pid", "--innodb-buffer-pool-size=64M"]
            command += ["--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"]
            return command, lambda: _connects(mysql / "socket")
        if name == "slurmdbd":
            return ["slurmdbd", "-D"], lambda: self._succeeds("sacctmgr", "--noheader", "list", "cluster")
        if name == "slurmctld":
            return ["slurmctld", "-D"], lambda: "is UP" in self.run("scontrol", "ping", check=False)
        # a node; its host name is its own: MPI takes processes on equally named hosts for neighbours in memory
        return ["unshare", "--uts", "--mount", "sh", "-c", _NODE, name, f"{self.root}/etc/hosts"], lambda: True

    def stop(self, name: str) -> None:
        """Stop one daemon, as a test of an outage does; `start` brings it back."""
        self.daemons[name].stop()

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a Slurm command on this cluster. TestbedError with its message when it fails and `check` is set."""
        done = subprocess.run(command, env={**clean_environment(), **self.env}, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise TestbedError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def _succeeds(self, *command: str) -> bool:
        return subprocess.run(command, env={**clean_environment(), **self.env}, capture_output=True, timeout=60).returncode == 0

    def _configured(self) -> bool:
        return (self.root / "etc/slurm.conf").exists()

    def _prepare(self) -> None:
        """Make folders, keys, device files, database and, where there is none yet, the configuration."""
        per_node = [f"{kind}/{node}" for kind in ("spool", "tmp") for node in slurm_conf.NODES]
        for folder in ["log", "pid", "state", "dev", "munge", *per_node]:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        if not self._configured():
            slurm_conf.write(self.root, self.accounting)
        key = self.root / "munge/key"
        if not key.exists():
            key.touch(mode=0o600)
            key.write_bytes(secrets.token_bytes(128))
        for gpu in range(slurm_conf.GPUS_PER_NODE):
            device = self.root / f"dev/gpu{gpu}"
            if not device.exists():
                device.symlink_to("/dev/null")
        if self.accounting and not (self.root / "mysql/data/mysql").exists():
            (self.root / "mysql").mkdir(exist_ok=True)
            self.run(
                *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={self.root}/mysql/data"),
                *("--auth-root-authentication-method=socket", "--auth-root-socket-user=root", "--skip-test-db"),
            )

    def _wait_for_nodes(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        ready = {"idle", "mix", "alloc", "comp"}
        while not set(states := self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%t").split()) <= ready:
            if time.monotonic() > deadline:
                tails = "".join(self.daemons[name].tail() for name in ("slurmctld", *slurm_conf.NODES))
                raise TestbedError(f"the nodes are {states} after {timeout_s} s{tails}")
            for node in slurm_conf.NODES:
                if self.daemons[node].pid is None:
                    raise TestbedError(f"{node} ended at once{self.daemons[node].tail()}")
            time.sleep(0.1)

    def _cancel_jobs(self, timeout_s: float = 8) -> None:
        jobs = self.run("squeue", "-h", "-o", "%A").split()
        if jobs:
            self.run("scancel", *sorted(set(jobs)), check=False)
        deadline = time.monotonic() + timeout_s
        while self.run("squeue", "-h", "-o", "%A").split() and time.monotonic() < deadline:
            time.sleep(0.1)

    def _node_processes(self) -> Iterator[int]:
        """All processes that see a node's /etc/hosts: the slurmds and everything they ever started."""
        hosts = self.root / "etc/hosts"
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.path.samefile(entry / "root/etc/hosts", hosts):
                        yield int(entry.name)


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def clean_environment() -> dict[str, str]:
    """This process's variables less those of a batch job or MPI launch it may itself be part of."""
    foreign = ("SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SACCT_", "SQUEUE_", "SINFO_", "PMI", "OMPI_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | {"PATH": _PATH}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.testbed", description="a real four-node Slurm on this machine")
    parser.add_argument("verb", choices=("up", "down", "env"))
    parser.add_argument("dir", type=Path, help="the folder that holds all of it")
    parser.add_argument("--wipe", action="store_true", help="with down: remove the folder")
    options = parser.parse_args()
    testbed = Testbed(options.dir)
    try:
        if options.verb == "up":
            testbed.up()
            print(testbed.run("sinfo"), end="")
        elif options.verb == "down":
            testbed.down(wipe=options.wipe)
    except TestbedError as error:
        sys.exit(f"testbed: {error}")
    if options.verb != "down":
        print("".join(f"export {key}='{value}'\n" for key, value in testbed.env.items()), end="")


if __name__ == "__main__":
    main()
