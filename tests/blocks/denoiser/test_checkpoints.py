"""Weights of the published DiT and of diffusers give equal outputs."""

import pytest
import torch

from ropewalk.blocks.denoiser import DiffusionTransformer, from_diffusers, from_dit

STEPS = torch.tensor([0, 5, 999, 500, 321])
TIMES = (STEPS + 1) / 1000


def diffusers_model(**changes):
    diffusers = pytest.importorskip("diffusers")
    options = {
        "num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 3, "out_channels": 6,
        "num_layers": 3, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 9,
    }  # fmt: skip
    model = diffusers.DiTTransformer2DModel(**(options | changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def test_published_weights_give_the_published_outputs(published):
    published.pos_embed.data = (
        published.pos_embed * 0 + type(published)(8, 2, 3, 48, 1, 4, 7).pos_embed
    )
    ours = from_dit(published.state_dict(), heads=4)
    x, y = torch.randn(5, 3, 8, 8), torch.tensor([0, 6, 7, 2, 1])
    expected = published(x, STEPS, y)
    torch.testing.assert_close(ours(x, TIMES, y), expected, rtol=1e-5, atol=1e-5)
    assert not ours.training
    assert ours.null_condition == 7
    torch.testing.assert_close(ours(x[2:3], TIMES[2:3]), expected[2:3], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_weights_are_copied(published):
    published.pos_embed.data = type(published)(8, 2, 3, 48, 1, 4, 7).pos_embed.data
    state = published.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    ours = from_dit(state, heads=4)
    for parameter in ours.parameters():
        parameter.zero_()
    assert all(torch.equal(state[name], before[name]) for name in before)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"activation_fn": "gelu"}, {"out_channels": None}])
def test_diffusers_model_gives_equal_outputs(changes):
    """Each of its blocks has an embedding of its own here, as random weights have it."""
    theirs = diffusers_model(**changes)
    ours = from_diffusers(theirs)
    x, y = torch.randn(5, 3, 8, 8), torch.tensor([0, 8, 9, 2, 1])
    torch.testing.assert_close(ours(x, TIMES, y), theirs(x, STEPS, y).sample, rtol=1e-5, atol=1e-5)
    assert len(ours.conditioning) == 3


@torch.no_grad()
def test_blocks_that_embed_alike_share_one_embedding():
    theirs = diffusers_model()
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    ours = from_diffusers(theirs)
    assert len(ours.conditioning) == 1
    x, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 8])
    expected = theirs(x, STEPS[1:3], y).sample
    torch.testing.assert_close(ours(x, TIMES[1:3], y), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_times_between_trained_steps_stay_between(published):
    published.pos_embed.data = type(published)(8, 2, 3, 48, 1, 4, 7).pos_embed.data
    ours = from_dit(published.state_dict(), heads=4)
    x, y = torch.randn(1, 3, 8, 8), torch.tensor([0])
    halfway = ours(x, torch.tensor([0.5005]), y)
    expected = published(x, torch.tensor([499.5]), y)
    torch.testing.assert_close(halfway, expected, rtol=1e-4, atol=1e-4)


def test_a_width_without_known_heads_is_refused(published):
    with pytest.raises(ValueError, match="heads: expected the number of attention heads"):
        from_dit(published.state_dict())


def test_other_positions_are_refused(published):
    with pytest.raises(ValueError, match="pos_embed: expected DiT's fixed sines"):
        from_dit(published.state_dict(), heads=4)  # random ones
    with pytest.raises(ValueError, match=r"pos_embed: expected \(1, tokens, dim\), got \(16, 48\)"):
        from_dit(published.state_dict() | {"pos_embed": torch.zeros(16, 48)}, heads=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.proj.bias"), "got none for .'blocks.1.mixer.output.bias'"),
        (lambda s: s.update(extra=torch.zeros(1)), "did not expect .'extra'"),
        (lambda s: s.pop("x_embedder.proj.weight"), "expected the published DiT's names"),
        (
            lambda s: s.update({"blocks.2.mlp.fc1.weight": torch.zeros(5, 48)}),
            r"expected \(192, 48\) for blocks.2.feed_forward.input.weight, got \(5, 48\)",
        ),
        (lambda s: s.update({"blocks.last.x": torch.zeros(1)}), r"expected blocks 0 … n − 1, got"),
        (
            lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(12)}),
            r"did not expect .'blocks.0.attn.q_norm.weight'",
        ),
    ],
    ids=["missing", "unknown", "foreign", "shape", "number", "norm"],
)
def test_checkpoints_of_another_model_are_refused(published, change, message):
    state = {name: tensor for name, tensor in published.state_dict().items() if name != "pos_embed"}
    change(state)
    with pytest.raises(ValueError, match=message):
        from_dit(state, heads=4, input_size=8)


def test_a_size_that_nothing_tells_is_asked_for(published):
    state = {name: tensor for name, tensor in published.state_dict().items() if name != "pos_embed"}
    with pytest.raises(ValueError, match="input_size: expected the height"):
        from_dit(state, heads=4)
    assert isinstance(from_dit(state, heads=4, input_size=8), DiffusionTransformer)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match="DiTTransformer2DModel, got Linear"):
        from_diffusers(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="expected names and tensors, got Linear"):
        from_dit(torch.nn.Linear(1, 1))
    nested = {"ema": {"x_embedder.proj.weight": torch.zeros(1)}}
    with pytest.raises(TypeError, match="got dict for 'ema'; of a checkpoint with several"):
        from_dit(nested)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="expected a GELU feed-forward"):
        from_diffusers(diffusers_model(activation_fn="geglu"))
