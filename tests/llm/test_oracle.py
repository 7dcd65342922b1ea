"""A plugged layer against attention written out pair by pair, and training under a plug."""

import pytest
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

from ropewalk.blocks.rotary import (
    DualChunk,
    LeakyReRoPE,
    LogN,
    NTKMixed,
    ReRoPE,
    SelfExtend,
)
from ropewalk.llm import plug

DISTANCES = [
    ReRoPE(window=4),
    LeakyReRoPE(window=4, factor=6.0),
    LeakyReRoPE.inverse(expansion=4, train_length=16),
    SelfExtend(group=3, window=5),
    DualChunk(chunk=8, local=3),
]


def attention_by_pairs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    relative: torch.Tensor,
    frequencies: torch.Tensor,
    query_factor: torch.Tensor,
) -> torch.Tensor:
    """Every pair's key is rotated back by the relative position that the pair sees; half layout."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    hidden = relative.isnan()
    angle = relative.nan_to_num(0.0)[..., None] * frequencies
    a, b = key.chunk(2, dim=-1)
    a, b, (qa, qb) = a[:, :, None], b[:, :, None], query.chunk(2, dim=-1)
    turned_a = a * angle.cos() + b * angle.sin()
    turned_b = b * angle.cos() - a * angle.sin()
    score = torch.einsum("bhid,bhijd->bhij", qa, turned_a) + torch.einsum(
        "bhid,bhijd->bhij", qb, turned_b
    )
    score = score * query_factor[:, None] / query.shape[-1] ** 0.5
    return score.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ value


def one_layer_by_hand(
    model: LlamaForCausalLM, tokens: torch.Tensor, **attention: torch.Tensor
) -> torch.Tensor:
    """The logits of a Llama of one layer, in the dtype of its weights."""
    layer, config = model.model.layers[0], model.config
    x = model.model.embed_tokens(tokens)
    normed = layer.input_layernorm(x)
    q, k, v = (
        projection(normed).unflatten(-1, (-1, config.head_dim)).transpose(1, 2)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    )
    x = x + layer.self_attn.o_proj(
        attention_by_pairs(q, k, v, **attention).transpose(1, 2).flatten(2)
    )
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))


@pytest.mark.parametrize("distance", DISTANCES, ids=str)
@pytest.mark.parametrize("log_n", [None, LogN(6), LogN(6, clamp=False)], ids=str)
@pytest.mark.parametrize("frequency", [None, NTKMixed(factor=4.0)], ids=["native", "mixed"])
def test_logits_and_gradients_equal_the_oracle(make_model, tokens, distance, log_n, frequency):
    model = make_model(num_hidden_layers=1)
    twin = make_model(num_hidden_layers=1).double()
    length = tokens.shape[1]
    frequencies = (
        model.model.rotary_emb.inv_freq
        if frequency is None
        else frequency.inverse_frequencies(8, 10000.0)
    )
    positions = torch.arange(length, dtype=torch.float64)
    expected = one_layer_by_hand(
        twin,
        tokens,
        relative=distance.relative_positions(length, length),
        frequencies=frequencies.double(),
        query_factor=torch.ones_like(positions) if log_n is None else log_n(positions),
    )
    model.train()
    with plug(model, distance=distance, frequency=frequency, log_n_length=log_n):
        got = model(tokens).logits
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)

    for logits in (got, expected):
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad.double(), theirs.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_training_under_inverse_leaky_lowers_the_loss(architecture, make_model, checkpointing):
    model = make_model(architecture, attention_dropout=0.0).train()
    if checkpointing:
        if not model.supports_gradient_checkpointing:
            pytest.skip("no gradient checkpointing")
        model.gradient_checkpointing_enable({"use_reentrant": False})
    text = torch.arange(2, 20).repeat(2, 2)[:, :30]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with plug(model, distance=LeakyReRoPE.inverse(expansion=4, train_length=16), log_n_length=16):
        losses = []
        for _ in range(5):
            loss = model(text, labels=text, use_cache=False).loss
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_recomputed_layers_give_the_same_gradients_after_another_forward(make_model, tokens):
    # Recomputation reads nothing that a later forward has overwritten.
    model = make_model(attention_dropout=0.0).train()
    mask = torch.ones_like(tokens)
    mask[0, :6] = 0

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model.zero_grad()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        first = model(tokens, attention_mask=mask, use_cache=False).logits
        second = model(tokens[:, :7], use_cache=False).logits
        (first.square().mean() + second.square().mean()).backward()
        return [p.grad.clone() for p in model.parameters()]

    with plug(model, distance=ReRoPE(window=4)):
        for kept, recomputed in zip(gradients(False), gradients(True), strict=True):
            torch.testing.assert_close(recomputed, kept)
