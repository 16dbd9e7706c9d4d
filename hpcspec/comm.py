"""Who else works on this: an MPI communicator where the job was launched under MPI, else None, which means alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from hpcspec.errors import UserError

LAUNCHED_BY_MPI = ("OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK")
T = TypeVar("T")


def world() -> Any:
    """MPI.COMM_WORLD if this process was launched by mpirun or `srun --mpi=…` with more than one rank, else None."""
    if not any(name in os.environ for name in LAUNCHED_BY_MPI):
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None


def rank_and_size(comm: Any) -> tuple[int, int]:
    """(rank, size); (0, 1) without a communicator."""
    return (0, 1) if comm is None else (comm.rank, comm.size)


def agreed(comm: Any, work: Callable[[], T]) -> T:
    """Do `work` on every rank; if it fails on any, it fails on all, so that none is left waiting in a collective call."""
    error: Exception | None = None
    result: Any = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    if comm is None:
        if error:
            raise error
        return result
    failed = {rank: e for rank, e in enumerate(comm.allgather(error and _portable(error))) if e is not None}
    if error:
        raise error
    for rank, first in failed.items():
        raise type(first)(f"rank {rank}: {first}")
    return result


def _portable(error: Exception) -> Exception:
    """The error as one that another rank is sure to be able to receive."""
    return UserError(str(error)) if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {error}")


def on_root(comm: Any, work: Callable[[], T]) -> T:
    """Do `work` on rank 0 only and give every rank its result, or its error."""
    if comm is None:
        return work()
    result: Any = None
    own: Exception | None = None
    if comm.rank == 0:
        try:
            result = work()
        except Exception as caught:
            own = caught
    result, error = comm.bcast((result, own and _portable(own)), root=0)
    if error is not None:
        raise own or error
    return result
