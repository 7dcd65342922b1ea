"""The public function, answered by the decoding kernels alone, against the float64 twin."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ropewalk.blocks.rotary import ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import rotary_attention

Rule = tuple[Any, Callable[[Tensor, Tensor], Tensor]]


@dataclasses.dataclass
class Decoder:
    """The public function on the kernel's device, answered by `decode` alone.

    Attributes:
        device: where the tensors go.
        splits: how many programs share a row's keys.
        change: applied to the problem before the kernel sees it.
    """

    device: torch.device
    splits: int = 2
    change: Callable[[Any], Any] = lambda problem: problem

    def __call__(self, *tensors: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        def there(x: Any) -> Any:
            return x.to(self.device) if isinstance(x, Tensor) else x

        options = {name: there(x) for name, x in options.items()}
        query, key, value = map(there, tensors)
        output, lse = rotary_attention(
            query, key, value, backend="triton", return_logsumexp=True, **options
        )
        assert output.dtype == query.dtype
        assert lse.dtype == torch.float32
        return output, lse


@pytest.fixture
def decode(
    monkeypatch: pytest.MonkeyPatch, uninitialised: None, kernel_device: torch.device
) -> Decoder:
    kernels = pytest.importorskip("ropewalk.kernels.rotary_attention.triton")
    from ropewalk.kernels.rotary_attention.triton import decode as module

    decoder = Decoder(kernel_device)

    def forward(problem: Any) -> tuple[Tensor, Tensor]:
        assert module.suits(problem)
        return module.decode(decoder.change(problem))

    monkeypatch.setattr(kernels, "forward", forward)
    monkeypatch.setattr(module, "count_splits", lambda *_: decoder.splits)
    return decoder


@pytest.fixture
def check(decode: Decoder, oracle: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., None]:
    """`check(tensors, rule, **options)`: output and logsumexp of the kernel and of the twin."""

    def compare(tensors: tuple[Tensor, ...], rule: Rule, **options: Any) -> None:
        if "rotary" not in options:
            options["rotary"] = RotaryEmbedding(tensors[0].shape[-1])
        output, lse = decode(*tensors, distance=rule[0], **options)
        if "key_lengths" in options:
            options["key_lengths"] = options["key_lengths"].clamp(max=tensors[1].shape[2])
        expected, expected_lse = oracle(*tensors, relative=rule[1], **options)
        torch.testing.assert_close(output.double().cpu(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(lse.double().cpu(), expected_lse, rtol=0, atol=1e-5)

    return compare


@pytest.fixture(scope="session")
def rerope() -> Callable[[int], Rule]:
    """`rerope(window)`: the library's rule and its definition."""
    return lambda window: (ReRoPE(window=window), lambda i, j: (i - j).clamp(max=window))


@pytest.fixture
def cache(inputs: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Three queries against 70 keys, if not said otherwise: tiles of 16, the last one ragged."""

    def make(**sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
        usual = {"batch": 1, "queries": 3, "keys": 70, "head_dim": 16, "dtype": torch.float32}
        return inputs(**usual | sizes).make()

    return make
