"""One process or many: data-parallel (DDP) or sharded (FSDP2) training under torchrun.

Every rank draws the whole batch from the step's own generator and keeps its part, so the ranks
together see what a single process would, and a run may continue on another number of them.
Checkpoints hold whole tensors, gathered from their shards, and so fit any number of ranks too.

Sources: PyTorch's DistributedDataParallel; `fully_shard` (FSDP2, arXiv 2304.11277). On a CPU both
run over gloo.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ropewalk.evals.errors import InputError

Sharding = Literal["ddp", "fsdp"]
SHARDINGS: tuple[Sharding, ...] = ("ddp", "fsdp")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model.

    Attributes:
        rank: its number.
        count: how many there are.
        device: where this one computes.
        sharding: how they share the work; None for a single process.
    """

    rank: int
    count: int
    device: torch.device
    sharding: Sharding | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module, layers: nn.ModuleList) -> nn.Module:
        """What the training step calls: the model, its replica, or the model made of shards.

        Args:
            model: whole, on this rank's device; the same on all of them.
            layers: parts that are gathered one at a time when sharded.
        """
        if self.sharding == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(model)
        if self.sharding == "fsdp":
            from torch.distributed.fsdp import fully_shard

            for layer in layers:
                fully_shard(layer)
            fully_shard(model)
        return model

    def part(self, count: int) -> slice:
        """This rank's part of a batch of so many, which the ranks must divide."""
        each = count // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean(self, value: Tensor) -> float:
        """The mean of a number over the ranks."""
        if self.count > 1:
            import torch.distributed as dist

            dist.all_reduce(value)  # gloo has no mean
            value /= self.count
        return value.item()

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


def own_rank() -> int:
    """This process's number, as torchrun says; 0 without it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_ranks(sharding: Sharding | None, batch_size: int) -> None:
    """Checks that the processes there are can do what is asked for.

    Raises:
        InputError: sharding without several processes, or a batch that they do not divide.
    """
    count = world_size()
    if count == 1 and sharding is not None:
        raise InputError(
            f"--sharding {sharding} needs several processes: "
            "torchrun --nproc-per-node N --no-python ropewalk denoise …"
        )
    if batch_size % count:
        raise InputError(
            f"--batch-size {batch_size} is no multiple of the {count} processes; try "
            f"{max(1, round(batch_size / count)) * count}"
        )


@contextmanager
def started(sharding: Sharding | None, device: torch.device) -> Iterator[Ranks]:
    """The ranks of this run: those that torchrun started, or this process alone.

    Args:
        sharding: how ranks share the work, "ddp" if None.
        device: of a single process; of several on cuda each takes its own.
    """
    count = world_size()
    if count == 1:
        yield Ranks(0, 1, device)
        return
    import torch.distributed as dist

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    # A group that is there already belongs to whoever made it.
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # FSDP2 warns of what would follow if a block's output were written to in place.
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            yield Ranks(dist.get_rank(), count, device, sharding or "ddp")
    finally:
        if own:
            dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards, on the CPU; every rank must ask for it."""
    from torch.distributed.tensor import DTensor

    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().to("cpu", copy=True).contiguous()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, cut into shards as that is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    value = value.to(like.device, like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements)
    return value
