"""Flash attention on CUDA devices as a library: flash-attn if it is installed, else torch's own.

Both are FlashAttention-2 (arXiv 2307.08691): bfloat16 or float16, heads up to 256 wide in steps of
8, compute capability 8.0 on, grouped queries without a copy, and windows given as the number of
keys to the left and to the right of the key that stands opposite the query. What differs is
narrow: flash-attn knows a softcap, and takes determinism by the call; torch has it as a mode.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

from ropewalk.kernels.rotary_attention.flash.library import Library, Shape, Share
from ropewalk.kernels.rotary_attention.problem import Problem


def library() -> Library:
    """flash-attn, or the attention inside torch."""
    return TorchFlash() if find_spec("flash_attn") is None else FlashAttn()


class _Flash(ABC):
    """What the two share: which problems they take, and the order of dimensions they want."""

    def unsupported(self, problem: Problem) -> str | None:
        query = problem.query
        if query.dtype not in (torch.bfloat16, torch.float16):
            return f"flash attention takes bfloat16 or float16, got {query.dtype}"
        if query.shape[-1] % 8 or query.shape[-1] > 256:
            return f"flash attention takes head_dim up to 256 in steps of 8, got {query.shape[-1]}"
        if query.is_cuda and torch.cuda.get_device_capability(query.device) < (8, 0):
            return "flash attention needs a device of compute capability 8.0 or later"
        return None

    def dtype(self, query: Tensor) -> torch.dtype:
        return query.dtype

    def attend(self, query: Tensor, key: Tensor, value: Tensor, shape: Shape) -> Iterator[Share]:
        output, logsumexp = self._forward(*_swapped(query, key, value), shape)
        _, groups, queries, _ = query.shape
        # Merged in float32, and rounded only then.
        output = output.transpose(1, 2).to(logsumexp.dtype)
        yield Share(slice(0, groups), slice(0, queries), output, logsumexp)

    def backward(
        self,
        tensors: tuple[Tensor, ...],
        results: tuple[Tensor, ...],
        gradients: tuple[Tensor, ...],
        shape: Shape,
    ) -> None:
        output, logsumexp, of_output = results
        # The kernels take the statistics as they lie in memory.
        parts = self._backward(
            *_swapped(*tensors), output.transpose(1, 2), logsumexp.contiguous(),
            of_output.transpose(1, 2), shape,
        )  # fmt: skip
        of_query, of_key, of_value = gradients
        of_query += parts[0].transpose(1, 2)
        of_key += parts[1].squeeze(2)
        of_value += parts[2].squeeze(2)

    @abstractmethod
    def _forward(
        self, query: Tensor, key: Tensor, value: Tensor, shape: Shape
    ) -> tuple[Tensor, Tensor]:
        """Output (rows, query, groups, dim) and logsumexp (rows, groups, query)."""

    @abstractmethod
    def _backward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        of_output: Tensor,
        shape: Shape,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value."""


class FlashAttn(_Flash):
    """The package flash-attn, 2.7 or later."""

    def _forward(
        self, query: Tensor, key: Tensor, value: Tensor, shape: Shape
    ) -> tuple[Tensor, Tensor]:
        from flash_attn.flash_attn_interface import (  # pyright: ignore[reportMissingImports]
            _flash_attn_forward,
        )

        output, logsumexp, *_ = _flash_attn_forward(
            query, key, value,
            dropout_p=0.0,
            softmax_scale=shape.scale,
            causal=shape.causal,
            window_size_left=_left(shape),
            window_size_right=_right(shape),
            softcap=shape.softcap or 0.0,
            alibi_slopes=None,
            return_softmax=False,
        )  # fmt: skip
        return output, logsumexp

    def _backward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        of_output: Tensor,
        shape: Shape,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from flash_attn.flash_attn_interface import (  # pyright: ignore[reportMissingImports]
            _flash_attn_backward,
        )

        gradients = query.new_empty(query.shape), key.new_empty(key.shape), key.new_empty(key.shape)
        _flash_attn_backward(
            of_output, query, key, value, output, logsumexp, *gradients,
            dropout_p=0.0,
            softmax_scale=shape.scale,
            causal=shape.causal,
            window_size_left=_left(shape),
            window_size_right=_right(shape),
            softcap=shape.softcap or 0.0,
            alibi_slopes=None,
            deterministic=shape.deterministic,
        )  # fmt: skip
        return gradients


class TorchFlash(_Flash):
    """The flash attention behind `F.scaled_dot_product_attention`, which hides its windows."""

    def unsupported(self, problem: Problem) -> str | None:
        if problem.softcap is not None:
            return "torch's flash attention knows no softcap; install flash-attn for it"
        if problem.deterministic and not torch.are_deterministic_algorithms_enabled():
            return (
                "torch's flash attention is deterministic only under "
                "torch.use_deterministic_algorithms(True)"
            )
        return super().unsupported(problem)

    def _forward(
        self, query: Tensor, key: Tensor, value: Tensor, shape: Shape
    ) -> tuple[Tensor, Tensor]:
        output, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, None, None, query.shape[1], key.shape[1], 0.0, shape.causal, False,
            scale=shape.scale, window_size_left=_left(shape), window_size_right=_right(shape),
        )  # fmt: skip
        return output, logsumexp

    def _backward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        logsumexp: Tensor,
        of_output: Tensor,
        shape: Shape,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # The state of dropout, which is off.
        state = torch.zeros(2, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._flash_attention_backward(
            of_output, query, key, value, output, logsumexp, None, None,
            query.shape[1], key.shape[1], 0.0, shape.causal, state, query.new_empty(0),
            scale=shape.scale, window_size_left=_left(shape), window_size_right=_right(shape),
        )  # fmt: skip


def _swapped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, sequence, heads, dim), with one key-value head in a row."""
    return query.transpose(1, 2), key.unsqueeze(2), value.unsqueeze(2)


def _left(shape: Shape) -> int:
    return -1 if shape.window is None else shape.window - 1


def _right(shape: Shape) -> int:
    return 0 if shape.causal else -1
