"""The operator before torch's checks: schema, fake tensors, autograd, compilers, derivatives."""

import pytest
import torch

from ropewalk.blocks.rotary import DualChunk, LogN, ReRoPE, RotaryEmbedding
from ropewalk.kernels.rotary_attention import op, rotary_attention

ROTARY = RotaryEmbedding(8)


def operator_arguments(monkeypatch, call):
    """The arguments with which `call` reaches the operator."""
    import ropewalk.kernels.rotary_attention.attention as module

    seen = []

    def spy(*arguments):
        seen.append(arguments)
        return op.rotary_attention_op(*arguments)

    monkeypatch.setattr(module, "rotary_attention_op", spy)
    call()
    monkeypatch.undo()
    return seen[0]


EXTRAS = {
    "bare": {},
    "lengths": {"key_lengths": torch.tensor([9, 7])},
    "everything": {
        "sinks": torch.randn(4),
        "softcap": 3.0,
        "sliding_window": 6,
        "log_n": LogN(4),
        "key_lengths": torch.tensor([9, 7]),
        "attention_mask": torch.rand(2, 1, 5, 9) < 0.8,
    },
}


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "flash"])
@pytest.mark.parametrize("extras", EXTRAS)
def test_opcheck(inputs, rule, monkeypatch, extras, backend):
    if (extras, backend) == ("everything", "flash"):
        backend = "auto"  # a mask and a softcap are not for it
    tensors = inputs(dtype=torch.float32, queries=5, keys=9).make(grad=True)
    options = {
        name: x.clone().requires_grad_() if name == "sinks" else x
        for name, x in EXTRAS[extras].items()
    }
    arguments = operator_arguments(
        monkeypatch,
        lambda: rotary_attention(
            *tensors, rotary=ROTARY, distance=rule[0], backend=backend, **options
        ),
    )
    torch.library.opcheck(op.rotary_attention_op, arguments)


@pytest.mark.opcheck
@pytest.mark.parametrize("backend", ["reference", "flash"])
def test_opcheck_of_packed_sequences(inputs, rule, monkeypatch, backend):
    tensors = inputs(batch=1, dtype=torch.float32, queries=7, keys=9).make(grad=True)
    places = (torch.tensor(x, dtype=torch.int32) for x in ((0, 3, 3, 7), (0, 4, 6, 9)))
    arguments = operator_arguments(
        monkeypatch,
        lambda: rotary_attention(
            *tensors, rotary=ROTARY, distance=rule[0], backend=backend,
            **dict(zip(("cu_seqlens_query", "cu_seqlens_key"), places, strict=True)),
        ),
    )  # fmt: skip
    torch.library.opcheck(op.rotary_attention_op, arguments)


@pytest.mark.interpret
@pytest.mark.parametrize(
    ("distance", "extras"), [(ReRoPE(4), "bare"), (DualChunk(8, 3), "everything")], ids=str
)
def test_opcheck_of_triton(inputs, monkeypatch, distance, extras):
    """Few, because each takes the interpreter through forward and backward several times."""
    tensors = inputs(dtype=torch.float32, queries=5, keys=9).make(grad=True)
    arguments = operator_arguments(
        monkeypatch,
        lambda: rotary_attention(
            *tensors, rotary=ROTARY, distance=distance, backend="triton", **EXTRAS[extras]
        ),
    )
    torch.library.opcheck(op.rotary_attention_op, arguments)


@pytest.mark.opcheck
@pytest.mark.parametrize(
    "options",
    [
        {"softcap": 2.0, "backend": "reference"},
        {"backend": "reference"},
        {"backend": "flash"},
        {"backend": "flash", "return_logsumexp": False},
    ],
    ids=str,
)
def test_gradcheck(inputs, rule, options):
    sinks = torch.randn(2, dtype=torch.float64, requires_grad=True)
    tensors = inputs(batch=1, heads=2, kv_heads=1, queries=6, keys=8, head_dim=4).make(grad=True)

    def function(query, key, value, sinks):
        return rotary_attention(
            query, key, value, rotary=RotaryEmbedding(4), distance=rule[0], sinks=sinks,
            **{"return_logsumexp": True, **options},
        )  # fmt: skip

    torch.autograd.gradcheck(function, (*tensors, sinks))


@pytest.mark.opcheck
def test_gradcheck_of_packed_sequences(inputs, rule):
    tensors = inputs(batch=1, heads=2, kv_heads=1, queries=7, keys=9, head_dim=4).make(grad=True)
    places = {
        "cu_seqlens_query": torch.tensor([0, 3, 7]),
        "cu_seqlens_key": torch.tensor([0, 5, 9]),
    }

    def function(*tensors):
        return rotary_attention(*tensors, rotary=RotaryEmbedding(4), distance=rule[0], **places)

    torch.autograd.gradcheck(function, tensors)
