"""Data-parallel training over processes: who am I, on which device, and what do we all agree on.

The environment variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) say whether there are
several processes. Without them there is one, and every function here is free.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

JOIN_TIMEOUT = timedelta(minutes=30)
"""How long processes wait for each other, when they meet and in any exchange (chosen by us: for slow shared disks)."""

Computed = TypeVar("Computed")
COMPILED = "_orig_mod."
"""What ``torch.compile`` puts before the names of a network's buffers."""


@dataclass(frozen=True)
class DistributedContext:
    """This process among its fellows.

    Attributes:
        rank: 0 ... size - 1; rank 0 writes the run directory.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device
    _control: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set on any process; all get the same answer. Never touches the GPU."""
        if self._control is None:
            return flags
        tensor = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control)
        return tuple(bool(value) for value in tensor)

    def first_error(self, error: Exception | None) -> Exception | None:
        """Return the error of the lowest rank that has one, on every process: then all raise the same line.

        A process that raised alone would leave the others waiting in a collective, and its message would be lost.
        """
        (broken,) = self.any(error is not None)
        if not broken or self._control is None:
            return error
        errors: list[Exception | None] = [None] * self.size
        dist.all_gather_object(errors, error, group=self._control)
        return next(item for item in errors if item is not None)

    def raise_on_any_rank(self, error: Exception | None) -> None:
        """Raise the first error that any process has, on all of them; do nothing when there is none."""
        error = self.first_error(error)
        if error is not None:
            raise error

    def from_main(self, value: Any) -> Any:
        """Return what rank 0 gave, on every process."""
        if self._control is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Average numbers over the processes; all must give the same keys."""
        if self._control is None:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(tensor, group=self._control)
        return dict(zip(values, (tensor / self.size).tolist(), strict=True))

    def barrier(self) -> None:
        """Wait for everyone."""
        if self._control is not None:
            dist.barrier(group=self._control)


@contextlib.contextmanager
def join_world(device: str) -> Iterator[DistributedContext]:
    """Join the process group that the environment describes, if it describes one, and leave it at the end.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: when CUDA is asked for and there is none, or the first process's node has no address here.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = choose_device(device)
    if size == 1:
        yield DistributedContext(rank=0, size=1, device=chosen)
        return
    _check_address(os.environ.get("MASTER_ADDR", ""))
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=JOIN_TIMEOUT)
    try:
        control = dist.new_group(backend="gloo")
        yield DistributedContext(rank=dist.get_rank(), size=size, device=chosen, _control=control)
    finally:
        dist.destroy_process_group()


@torch.no_grad()
def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, rank after rank, the same on each; without gradients, free in a single process.

    Args:
        rows: (B, ...), as many on every process.

    Returns:
        (B * processes, ...).
    """
    rows = rows.detach().contiguous()
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows)
    return torch.cat(gathered)


def main_process_only(compute: Callable[[], Computed]) -> Computed:
    """Return what rank 0 computes, on every process; the others wait for it, ``JOIN_TIMEOUT`` at most.

    Args:
        compute: called on rank 0 alone. What it raises is raised on every process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return compute()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = compute()
        except Exception as error:  # whatever it is: the others must not wait in vain
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    return told[0]


def share_buffers(network: nn.Module) -> None:
    """Give every process rank 0's buffers, as its next forward pass would and as a checkpoint does.

    Between the two, running statistics differ where each process normalises by its own share of the batch.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def data_parallel(
    network: nn.Module, world: DistributedContext, *, uses_all_parameters: bool, replicated_buffers: Sequence[str] = ()
) -> DistributedDataParallel:
    """Return a network whose gradients are averaged over the processes.

    Args:
        network: on the world's device.
        world: of more than one process.
        uses_all_parameters: whether every parameter gets a gradient in every pass.
        replicated_buffers: buffers that every process changes alike by itself: they are not sent around.
    """
    on_gpu = world.device.type == "cuda"
    own = [name for name, _ in network.named_buffers() if name.removeprefix(COMPILED) in replicated_buffers]
    # It has no public way.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, own)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(
        network,
        device_ids=[world.device.index] if on_gpu else None,
        # Else PyTorch lays gradients out anew after the first step of every start. From three ranks on they are then
        # summed in another order, and a resumed run is no longer the same to the last bit.
        find_unused_parameters=not uses_all_parameters or not on_gpu,
    )


def _check_address(host: str) -> None:
    """Make sure that the first process can be found: a name that does not resolve would be tried for ever."""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR={host}: {socket.gethostname()} does not know this node's address ({error.strerror}): node"
            " names must resolve on every node"
        ) from None


def choose_device(device: str) -> torch.device:
    """Return this process's device.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: when CUDA is asked for and there is none.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "execution.device=cuda: this machine shows no GPU to PyTorch; use execution.device=cpu or auto"
        )
    # Slurm may bind one GPU to each task, which then sees it as number 0 whatever its local rank.
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
