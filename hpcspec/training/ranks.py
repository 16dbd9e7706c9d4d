"""This process among the ranks of a training job: who it is, which device it has, and what all ranks agree on."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hpcspec.comm import world

TORCH_ENVIRONMENT = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """rank of size, and the device of this rank. One that is alone needs no process group."""

    rank: int
    size: int
    device: torch.device

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        if self.size == 1:
            return list(flags)
        tensor = torch.tensor([float(f) for f in flags], device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return [bool(x) for x in tensor.tolist()]

    def sums(self, values: list[float]) -> list[float]:
        """The values summed over the ranks."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64 if self.device.type == "cpu" else torch.float32, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum_tensors(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each tensor summed over the ranks, in one message."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([t.detach().flatten() for t in tensors]).to(self.device)  # NCCL sums nothing that isn't on its GPU
        dist.all_reduce(flat)
        parts = flat.split([t.numel() for t in tensors])
        return [part.view_as(t).to(t.device) for part, t in zip(parts, tensors, strict=True)]

    def gather(self, item: Any) -> list[Any]:
        """The items of all ranks, on every rank."""
        if self.size == 1:
            return [item]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, item)
        return out


def _rendezvous() -> None:
    """Fill in the environment that `env://` wants from whoever launched us: torchrun, submitit, srun, mpirun or nobody."""
    from submitit.helpers import TorchDistributedEnvironment

    if all(name in os.environ for name in TORCH_ENVIRONMENT):
        return
    comm = world()
    try:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if int(os.environ["WORLD_SIZE"]) > 1 or comm is None:
            return
    except RuntimeError:  # not in a job
        pass
    rank, size, host = (0, 1, "127.0.0.1") if comm is None else (comm.rank, comm.size, socket.gethostname())
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    if comm is not None:
        host, port = comm.bcast((host, port), root=0)
    local = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") or os.environ.get("MPI_LOCALRANKID") or str(rank)
    values = (host, str(port), str(rank), str(size), local)
    os.environ.update(zip(TORCH_ENVIRONMENT, values, strict=True))


def start(threads: int) -> Ranks:
    """Join the process group: NCCL with a GPU, gloo without."""
    _rendezvous()
    gpu = torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(threads)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if gpu else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)
