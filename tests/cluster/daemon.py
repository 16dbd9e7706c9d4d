"""One background program with a pid file that cannot be mistaken for another's."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class TestbedError(RuntimeError):
    """The test cluster did not come up; the message ends with what the daemon itself said."""

    __test__ = False


class Daemon:
    """A program that stays in the foreground, run in a session of its own.

    `pid/NAME` holds its pid and kernel start time, so any later process can end it, and never one that got its pid.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.pid_file = root / "pid" / name
        self.log = root / "log" / f"{name}.log"
        self.output = root / "log" / f"{name}.out"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], ready: Callable[[], bool], env: Mapping[str, str], timeout_s: float = 30) -> None:
        """Start it unless it runs, and wait until `ready()`. TestbedError if it ends or the time is up first."""
        if self.pid is None:
            with self.output.open("wb") as output:
                self._process = subprocess.Popen(
                    command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            self.pid_file.write_text(f"{self._process.pid} {_start_time(self._process.pid)}")
        deadline = time.monotonic() + timeout_s
        while not ready():
            if self.pid is None:
                raise TestbedError(f"{self.name} ended at once{self.tail()}")
            if time.monotonic() > deadline:
                raise TestbedError(f"{self.name} was not ready after {timeout_s} s{self.tail()}")
            time.sleep(0.05)

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        try:
            pid, started = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def stop(self, timeout_s: float = 10) -> None:
        """Ask it to end, and kill it when it has not after `timeout_s`."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if (pid := self.pid) is None:
                break
            os.kill(pid, number)
            deadline = time.monotonic() + timeout_s
            while self.pid is not None and time.monotonic() < deadline:
                time.sleep(0.02)
        if self._process is not None:
            self._process.wait()
            self._process = None
        self.pid_file.unlink(missing_ok=True)

    def tail(self, lines: int = 12) -> str:
        """The last lines it printed or logged."""
        text = ""
        for file in (self.output, self.log):
            if file.exists():
                last = file.read_text(errors="replace").splitlines()[-lines:]
                text += "".join(f"\n  {file.name}: {line}" for line in last)
        return text


def _start_time(pid: int) -> str:
    """Clock tick since boot at which `pid` started; "" when it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
