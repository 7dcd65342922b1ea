"""Tensors that go with a parameter that may be sharded (a DTensor, as FSDP2 makes them)."""

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def like_parameter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """`tensor` as it is, or replicated over the ranks of a sharded `parameter`, the first's values.

    Only then can the two meet in one operation, and only then do ranks agree on random values.
    """
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    assert isinstance(parameter, DTensor)
    mesh = parameter.device_mesh
    return distribute_tensor(tensor, mesh, [Replicate()] * mesh.ndim)
