"""Targets as codes: a row of the weights, `ELSEWHERE` or `IGNORED`. An operator of its own.

Whether targets lie in the vocabulary is a question about their values, so it is asked where the
operator runs and not while a compiler traces it. On a CPU a wrong one raises before any work is
done. On a CUDA device the answer is not waited for: as in torch's own losses, a device-side
assertion surfaces at the next synchronisation.
"""

import torch
from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.problem import ELSEWHERE, IGNORED


@torch.library.custom_op("ropewalk::vocabulary_targets", mutates_args=())
def encode_targets(
    targets: Tensor, ignore_index: int, vocabulary: int, start: int, columns: int
) -> Tensor:
    """Codes of targets, int64 of their shape.

    Args:
        targets: integer, of any shape.
        ignore_index: the target that means none; it may lie in the vocabulary.
        vocabulary: targets are less than this.
        start: the first token of the slice of the vocabulary that is here.
        columns: how many there are.

    Raises:
        ValueError: on a CPU, a target outside of the vocabulary that is not `ignore_index`.
    """
    wide = targets.to(torch.int64)
    ignored = wide == ignore_index
    inside = (wide >= 0) & (wide < vocabulary) | ignored
    if targets.device.type == "cuda":
        torch.ops.aten._assert_async.msg(
            inside.all(), f"targets: expected 0 to {vocabulary - 1} or {ignore_index}"
        )
    elif not inside.all():
        first = wide[~inside][0].item()
        raise ValueError(
            f"targets: expected indices from 0 to {vocabulary - 1} or ignore_index = "
            f"{ignore_index}, got {first} ({int((~inside).sum())} such); mark tokens without a "
            "target with ignore_index"
        )
    here = wide - start
    codes = torch.where((here >= 0) & (here < columns), here, ELSEWHERE)
    return torch.where(ignored, IGNORED, codes)


@encode_targets.register_fake
def _(targets: Tensor, *_: int) -> Tensor:
    return targets.new_empty(targets.shape, dtype=torch.int64)
