"""Distributed training: process group, device, and collectives that also work in a single process.

The environment variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) define the process group.
Without them there is a single process, and the collectives do nothing.
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

JOIN_TIMEOUT = timedelta(minutes=30)  # ours: long enough for slow shared disks
"""Timeout of the rendezvous and of every collective."""

Computed = TypeVar("Computed")
COMPILED = "_orig_mod."
"""Prefix of ``torch.compile`` to the names of a network's buffers."""


@dataclass(frozen=True)
class DistributedContext:
    """Rank, world size and device of this process.

    Attributes:
        rank: 0 ... size - 1; rank 0 writes the run directory.
        size: number of processes.
        device: device of this process.
    """

    rank: int
    size: int
    device: torch.device
    _control: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which writes the run directory."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return whether each flag is set on any process, without the GPU."""
        if self._control is None:
            return flags
        tensor = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._control)
        return tuple(bool(value) for value in tensor)

    def first_error(self, error: Exception | None) -> Exception | None:
        """Return the error of the lowest rank that has one.

        The result is the same on every process. If only one process raised, the others would wait in a collective until
        its timeout.
        """
        (broken,) = self.any(error is not None)
        if not broken or self._control is None:
            return error
        errors: list[Exception | None] = [None] * self.size
        dist.all_gather_object(errors, error, group=self._control)
        return next(item for item in errors if item is not None)

    def raise_on_any_rank(self, error: Exception | None) -> None:
        """Raise the error of the lowest rank that has one.

        Every process raises it.
        """
        error = self.first_error(error)
        if error is not None:
            raise error

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every process."""
        if self._control is None:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._control)
        return values[0]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Average numbers over the processes.

        The keys must be the same on all processes.
        """
        if self._control is None:
            return values
        tensor = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(tensor, group=self._control)
        return dict(zip(values, (tensor / self.size).tolist(), strict=True))

    def barrier(self) -> None:
        """Wait for all processes."""
        if self._control is not None:
            dist.barrier(group=self._control)


@contextlib.contextmanager
def join_world(device: str) -> Iterator[DistributedContext]:
    """Join torchrun's process group, if any; leave it at the end.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: if ``device`` is ``cuda`` without a GPU, or MASTER_ADDR cannot be resolved.
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
    """Return the rows of all processes in order of rank, without gradients.

    Args:
        rows: (B, ...), with the same B on every process.

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
    """Compute on rank 0 and return the result on every process.

    The other processes wait, ``JOIN_TIMEOUT`` at most.

    Args:
        compute: called only on rank 0. Every process raises its exceptions.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return compute()
    result: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            result[0] = compute()
        except Exception as error:  # of any kind: otherwise the others would wait until the timeout
            result[1] = error
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def share_buffers(network: nn.Module) -> None:
    """Broadcast rank 0's buffers to all processes.

    The next forward pass would do so, and a checkpoint has these buffers. Until then, running statistics differ if each
    process normalizes by its own share of the batch.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def data_parallel(
    network: nn.Module, world: DistributedContext, *, uses_all_parameters: bool, replicated_buffers: Sequence[str] = ()
) -> DistributedDataParallel:
    """Return a network whose gradients are averaged over the processes.

    Args:
        network: on the process's device.
        world: of more than one process.
        uses_all_parameters: whether every parameter gets a gradient in every pass.
        replicated_buffers: buffers to which every process applies the same update; they are not broadcast.
    """
    on_gpu = world.device.type == "cuda"
    own = [name for name, _ in network.named_buffers() if name.removeprefix(COMPILED) in replicated_buffers]
    # PyTorch has no public function for this.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, own)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(
        network,
        device_ids=[world.device.index] if on_gpu else None,
        # Otherwise PyTorch rebuilds its gradient buckets after the first step of every start. With three or more ranks
        # this changes the order of summation, and a resumed run is not bit-identical.
        find_unused_parameters=not uses_all_parameters or not on_gpu,
    )


def _check_address(host: str) -> None:
    """Check that MASTER_ADDR resolves.

    PyTorch would retry a wrong name until its timeout.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise ValueError(
            f"MASTER_ADDR={host}: {socket.gethostname()} cannot resolve this name ({error.strerror}): node"
            " names must resolve on every node"
        ) from None


def choose_device(device: str) -> torch.device:
    """Return this process's device.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: if ``device`` is ``cuda`` without a GPU.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "execution.device=cuda: this machine shows no GPU to PyTorch; use execution.device=cpu or auto"
        )
    # If Slurm binds one GPU to each task, its index is 0 whatever the local rank.
    index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
