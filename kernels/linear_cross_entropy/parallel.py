"""The loss where each rank of a process group holds a slice of the vocabulary's rows.

Each rank computes the statistics of its slice; two all-reduces of a few numbers a token make those
of the whole vocabulary (Shoeybi et al., Megatron-LM, arXiv 1909.08053, §3); the backward needs one
more, of the gradient of the hidden states, to which every slice contributes. Logits are neither
gathered nor held.

Every rank computes the same loss from the same hidden states and has its gradient, so the backward
of the merged statistics stays on its rank.
"""

from typing import Any, TypedDict, Unpack

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from ropewalk.kernels.backends import Backend
from ropewalk.kernels.linear_cross_entropy.assemble import Loss, VocabularySlice, assemble
from ropewalk.kernels.linear_cross_entropy.problem import IGNORED, Statistics
from ropewalk.kernels.linear_cross_entropy.reduction import Reduction


class LossOptions(TypedDict, total=False):
    """The options of `linear_cross_entropy`; see there."""

    bias: Tensor | None
    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
    logit_scale: float
    weight_per_class: Tensor | None
    reduction: Reduction
    return_logsumexp: bool
    shift: bool
    exact: bool
    backend: Backend


def vocabulary_parallel_linear_cross_entropy(
    hidden: Float[Tensor, "*batch dim"],
    weight: Float[Tensor, "columns dim"],
    targets: Int[Tensor, "*batch"],
    *,
    group: dist.ProcessGroup | None = None,
    vocabulary_start: int | None = None,
    vocabulary: int | None = None,
    **options: Unpack[LossOptions],
) -> Loss | tuple[Loss, Float[Tensor, "*batch"]]:
    """`linear_cross_entropy` with each rank's slice of the weights: the same loss on every rank.

    Every rank of the group calls it, with the same hidden states, targets and options, and runs the
    backward. The gradient of `hidden` is the whole one on each rank, that of `weight` and `bias`
    is the slice's own.

    Args:
        hidden: the same on every rank.
        weight: this rank's rows of the output embedding.
        targets: indices into the whole vocabulary, the same on every rank.
        group: the ranks; None for all.
        vocabulary_start: the token of this rank's first row. By default the slices follow each
            other in the order of the ranks, which tell each other their sizes; that waits for a
            GPU and cannot be compiled, so give it where steps are many or compiled.
        vocabulary: the number of rows on all ranks, given if and only if `vocabulary_start` is.
        options: of `linear_cross_entropy`; `bias` is this rank's slice, `weight_per_class` is that
            of the whole vocabulary.

    Returns:
        As `linear_cross_entropy` for all of the weights.

    Raises:
        ValueError: as `linear_cross_entropy`; a slice that does not fit into the vocabulary.
        RuntimeError: no process group has been initialised; slices that leave out rows or hold some
            twice (on a CUDA device a device-side assertion).
        TypeError: an option that does not exist.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "expected an initialised process group, got none; call "
            "torch.distributed.init_process_group first, or use linear_cross_entropy"
        )
    unknown = options.keys() - LossOptions.__annotations__.keys()
    if unknown:
        raise TypeError(
            f"expected options of linear_cross_entropy, {', '.join(LossOptions.__annotations__)}, "
            f"got {', '.join(sorted(unknown))}"
        )
    start, total = _place(weight, group, vocabulary_start, vocabulary)
    part = VocabularySlice(
        start,
        total,
        share_hidden=lambda x: _ShareHidden.apply(x, group),
        merge=lambda statistics, codes: _merge(statistics, codes, weight.shape[0], total, group),
    )
    return assemble(hidden, weight, targets, part, **options)


def _place(
    weight: Tensor, group: dist.ProcessGroup | None, start: int | None, vocabulary: int | None
) -> tuple[int, int]:
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight: expected this rank's rows, (columns, dim), got {shape}")
    columns = weight.shape[0]
    if start is None and vocabulary is None:
        sizes = weight.new_zeros(dist.get_world_size(group), dtype=torch.int64)
        sizes[dist.get_rank(group)] = columns
        dist.all_reduce(sizes, group=group)
        return int(sizes[: dist.get_rank(group)].sum()), int(sizes.sum())
    if start is None or vocabulary is None:
        raise ValueError(
            "vocabulary_start and vocabulary: expected both or neither, got one; without them "
            "the ranks tell each other how many rows they hold"
        )
    for name, number in (("vocabulary_start", start), ("vocabulary", vocabulary)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name}: expected an int, got {type(number).__name__}")
    if not 0 <= start <= vocabulary - columns:
        raise ValueError(
            f"vocabulary_start: expected 0 to {vocabulary - columns}, because {columns} of "
            f"{vocabulary} rows are here, got {start}"
        )
    return start, vocabulary


def _merge(
    statistics: Statistics,
    codes: Tensor,
    columns: int,
    vocabulary: int,
    group: dist.ProcessGroup | None,
) -> Statistics:
    """Statistics of the whole vocabulary from those of the slices."""
    logit_sum = statistics.logit_sum
    merged = _MergeStatistics.apply(
        statistics.logsumexp, statistics.target_logit, logit_sum, codes, columns, vocabulary, group
    )
    return Statistics(merged[0], merged[1], None if logit_sum is None else merged[2], None)


class _ShareHidden(torch.autograd.Function):
    """The same hidden states; backward, the sum of their gradients over the ranks."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        # Summed in float32: with half precision each rank's part has been rounded once already.
        wide = torch.promote_types(upstream[0].dtype, torch.float32)
        total = upstream[0].to(wide, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total.to(upstream[0].dtype), None


class _MergeStatistics(torch.autograd.Function):
    """logsumexp of the slices' logsumexp, and the sums of what only one slice has or all add to."""

    @staticmethod
    def forward(
        ctx: Any,
        logsumexp: Tensor,
        target_logit: Tensor,
        logit_sum: Tensor | None,
        codes: Tensor,
        columns: int,
        vocabulary: int,
        group: dist.ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        greatest = logsumexp.clone()
        dist.all_reduce(greatest, dist.ReduceOp.MAX, group=group)
        summed = logsumexp.new_zeros(()).expand_as(logsumexp) if logit_sum is None else logit_sum
        held = (codes >= 0).to(logsumexp.dtype)
        size = torch.full_like(logsumexp, columns)
        rows = torch.stack(((logsumexp - greatest).exp(), target_logit, summed, held, size))
        dist.all_reduce(rows, group=group)
        mass, target_logit, summed, holders, sizes = rows.unbind(0)
        counted = codes != IGNORED
        _check_slices(torch.where(counted, holders, 1.0), sizes, vocabulary)
        merged = torch.where(counted, greatest + mass.log(), 0.0)
        ctx.save_for_backward((logsumexp - merged).exp())
        ctx.has_sum = logit_sum is not None
        return merged, target_logit.clone(), summed.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (share,) = ctx.saved_tensors
        logsumexp_grad, target_logit_grad, logit_sum_grad = upstream
        summed = logit_sum_grad if ctx.has_sum else None
        return logsumexp_grad * share, target_logit_grad, summed, None, None, None, None


def _check_slices(holders: Tensor, sizes: Tensor, vocabulary: int) -> None:
    """Each target lies in the slice of exactly one rank, and all slices together are the whole."""
    torch.ops.aten._assert_async.msg(
        ((holders == 1) & (sizes == vocabulary)).all(),
        "vocabulary_start: expected slices that make up the vocabulary, each row in exactly one "
        "rank's, got rows in none or in several; leave vocabulary_start and vocabulary out to have "
        "them found",
    )
