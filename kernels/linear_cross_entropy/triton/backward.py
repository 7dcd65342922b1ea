"""Launches of the backward: the gradient of a chunk of logits, then its products, chunk by chunk.

Chunks of columns are the outer loop and chunks of tokens the inner one, so that the gradient of the
weights is complete, rounded and out of the way after each chunk of columns. The gradient of the
hidden states is summed in float32 over all of them. Held beside the results: the chunk's gradient,
`WORKSPACE` bytes at most; that sum, where the hidden states are half precision; and the same of one
chunk of columns of the weights where there are several chunks of tokens or the dtype is float16.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.launching import run
from ropewalk.kernels.linear_cross_entropy.chunks import spans
from ropewalk.kernels.linear_cross_entropy.filter import FILTER_COLUMNS, FILTER_TOKENS
from ropewalk.kernels.linear_cross_entropy.problem import Needs, Problem, Upstream
from ropewalk.kernels.linear_cross_entropy.triton.gradient import gradient_kernel
from ropewalk.kernels.linear_cross_entropy.triton.layout import matrix
from ropewalk.kernels.linear_cross_entropy.triton.live import live_lists
from ropewalk.kernels.linear_cross_entropy.triton.logits import (
    logits_arguments,
    logits_configuration,
    programs,
)
from ropewalk.kernels.linear_cross_entropy.triton.products import Live, product
from ropewalk.kernels.linear_cross_entropy.triton.scale import gradient_scale
from ropewalk.kernels.linear_cross_entropy.triton.sizes import gradient_chunks, round_up
from ropewalk.kernels.sizes import ceil_divide

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def gradients(
    problem: Problem, logsumexp: Tensor, live: Tensor | None, upstream: Upstream, needs: Needs
) -> Gradients:
    """Of hidden, weight and bias, each in its dtype; none where it is not needed.

    Args:
        problem: what `statistics` was asked.
        logsumexp: of `statistics`.
        live: of `statistics`; tiles that it does not mark are skipped.
        upstream: gradients of the loss with respect to the statistics.
        needs: which gradients are wanted.
    """
    p = problem
    if p.tokens == 0:
        wanted = zip((p.hidden, p.weight, p.bias), needs, strict=True)
        hidden, weight, bias = (
            None if x is None or not needed else x.new_zeros(x.shape) for x, needed in wanted
        )
        return hidden, weight, bias
    return _Backward(p, logsumexp, live, upstream, needs).gradients()


class _Backward:
    """What all chunks of one backward pass share, and the sums they add to."""

    def __init__(
        self,
        problem: Problem,
        logsumexp: Tensor,
        live: Tensor | None,
        upstream: Upstream,
        needs: Needs,
    ) -> None:
        p = self.problem = problem
        self.logsumexp = logsumexp.contiguous()
        self.live = None if live is None else live.contiguous()
        logsumexp_grad, target_grad, sum_grad = upstream
        self.upstream = Upstream(
            logsumexp_grad.contiguous(),
            target_grad.contiguous(),
            None if sum_grad is None else sum_grad.contiguous(),
        )
        self.hidden, self.weight = matrix(p.hidden), matrix(p.weight)
        self.scale = gradient_scale(p, upstream)
        self.how = logits_configuration("gradient", self.hidden, self.weight)
        sizes = gradient_chunks(p.tokens, p.vocabulary, p.hidden.dtype.itemsize)
        self.token_chunks = spans(p.tokens, sizes.tokens)
        self.column_chunks = spans(p.vocabulary, sizes.columns)
        if live is not None:
            self.live_columns = live_lists(live, sizes.columns // FILTER_COLUMNS)
            self.live_tokens = live_lists(live.T, sizes.tokens // FILTER_TOKENS)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=p.hidden.device)

        self.hidden_sum = zeros(p.tokens, p.dim) if needs.hidden else None
        self.bias_sum = zeros(p.vocabulary) if needs.bias and p.bias is not None else None
        self.weight_grad = p.weight.new_empty(p.weight.shape) if needs.weight else None
        self.buffer = None
        if needs.hidden or needs.weight:
            self.buffer = p.hidden.new_empty(min(sizes.tokens, p.tokens), sizes.columns)

    def gradients(self) -> Gradients:
        p = self.problem
        for column_chunk in range(len(self.column_chunks)):
            self._columns(column_chunk)
        self.buffer = None  # its memory may become the results
        hidden, bias = self.hidden_sum, self.bias_sum
        if self.scale is not None:
            for total in (hidden, bias):
                if total is not None:
                    total.mul_(self.scale.factor)
        if hidden is not None:
            hidden = hidden.to(p.hidden.dtype)
        if bias is not None and p.bias is not None:
            bias = bias.to(p.bias.dtype)
        return hidden, self.weight_grad, bias

    def _columns(self, column_chunk: int) -> None:
        """All that a chunk of columns gives to the gradients."""
        start, end = self.column_chunks[column_chunk]
        weight_grad = None if self.weight_grad is None else self.weight_grad[start:end]
        weight_sum = weight_grad
        # One product writes the gradient itself; a sum of several, or a scaled one, is float32.
        summed = len(self.token_chunks) > 1 or self.scale is not None
        if weight_grad is not None and summed and weight_grad.dtype != torch.float32:
            weight_sum = weight_grad.new_empty(weight_grad.shape, dtype=torch.float32)
        for token_chunk, (first, last) in enumerate(self.token_chunks):
            gradient = self._gradient(first, last, start, end)
            if gradient is None:
                continue
            if self.hidden_sum is not None:
                product(
                    gradient,
                    self.weight.rows(start, end),
                    self.hidden_sum[first:last],
                    add=True,
                    live=self._live_columns(column_chunk, first, last),
                )
            if weight_sum is not None:
                product(
                    gradient.T,
                    self.hidden.rows(first, last),
                    weight_sum,
                    add=token_chunk > 0,
                    live=self._live_tokens(token_chunk, start, end),
                )
        if weight_grad is None or weight_sum is None or weight_sum is weight_grad:
            return
        if self.scale is None:
            weight_grad.copy_(weight_sum)
        else:
            torch.mul(weight_sum, self.scale.factor, out=weight_grad)

    def _gradient(self, first: int, last: int, start: int, end: int) -> Tensor | None:
        """dL/d logits of a chunk, in the buffer, if there is one; adds its sums over tokens."""
        p, how = self.problem, self.how
        gradient = None if self.buffer is None else self.buffer[: last - first, : end - start]
        bias_parts, live = None, self.live
        if self.bias_sum is not None:
            # Nobody writes the sums of tiles that are skipped.
            empty = self.bias_sum.new_empty if live is None else self.bias_sum.new_zeros
            bias_parts = empty((ceil_divide(last - first, how.rows), end - start))
        arguments = logits_arguments(
            p,
            self.hidden.rows(first, last),
            self.weight.rows(start, end),
            p.targets[first:last].contiguous(),
            None if p.bias is None else p.bias[start:end],
            None if p.sum_weights is None else p.sum_weights[start:end],
            how,
        )
        columns = end - start if live is None else round_up(end - start, FILTER_COLUMNS)
        names = ("logsumexp_grad", "target_grad", "sum_grad")
        upstream: dict[str, Any] = {
            name: None if x is None else x[first:last]
            for name, x in zip(names, self.upstream, strict=True)
        }
        run(
            gradient_kernel,
            programs(how, last - first, columns),
            p.hidden,
            **arguments | {"SUM": p.sum_weights is not None and upstream["sum_grad"] is not None},
            **upstream,
            logsumexp=self.logsumexp[first:last],
            scale=None if self.scale is None else self.scale.inverse,
            live=None if live is None else live[first // FILTER_TOKENS :],
            gradient=gradient,
            bias_parts=bias_parts,
            columns_start=start,
            gradient_stride=0 if gradient is None else gradient.stride(0),
            map_tiles=0 if live is None else live.shape[1],
            SCALED=self.scale is not None,
            SKIP=live is not None,
            WRITE=gradient is not None,
            BIAS_GRADIENT=bias_parts is not None,
            PARTS=how.parts,
            FILTER_TOKENS=FILTER_TOKENS,
            FILTER_COLUMNS=FILTER_COLUMNS,
        )
        if self.bias_sum is not None and bias_parts is not None:
            self.bias_sum[start:end] += bias_parts.sum(0)
        return gradient

    def _live_columns(self, column_chunk: int, first: int, last: int) -> Live | None:
        if self.live is None:
            return None
        tiles, counts = (x[column_chunk] for x in self.live_columns)
        here = slice(first // FILTER_TOKENS, ceil_divide(last, FILTER_TOKENS))
        return Live(tiles[here], counts[here], FILTER_TOKENS, FILTER_COLUMNS)

    def _live_tokens(self, token_chunk: int, start: int, end: int) -> Live | None:
        if self.live is None:
            return None
        tiles, counts = (x[token_chunk] for x in self.live_tokens)
        here = slice(start // FILTER_COLUMNS, ceil_divide(end, FILTER_COLUMNS))
        return Live(tiles[here], counts[here], FILTER_COLUMNS, FILTER_TOKENS)
