"""Two processes that are the ranks of one job, as torchrun would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def launch(module: str, *arguments: str | Path) -> list[subprocess.Popen[str]]:
    """`python -m module arguments` twice, on gloo or NCCL through a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    outer = ("SLURM", "PMI", "OMPI_", "SUBMITIT")
    base = {k: v for k, v in os.environ.items() if not k.startswith(outer)}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return [
        subprocess.Popen(command, cwd=Path(__file__).parents[1], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip


def finish(ranks: list[subprocess.Popen[str]]) -> str:
    """What the first rank said, once both have ended well."""
    said = [rank.communicate(timeout=200)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    return said[0]
