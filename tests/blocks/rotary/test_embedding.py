"""RotaryEmbedding: relative, exact at large positions in any dtype, and hard to damage."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.models.cohere import modeling_cohere as cohere
from transformers.models.gpt_neox import modeling_gpt_neox as gpt_neox
from transformers.models.llama import modeling_llama as llama

from ropewalk.blocks.rotary import (
    Default,
    DynamicNTK,
    LongRoPE,
    NTKAware,
    RotaryEmbedding,
    YaRN,
)
from ropewalk.kernels.rotary_attention.protocols import Rotary

LAYOUTS = ["half", "interleaved"]
SHAPES = [(8, 1.0), (10, 0.6), (64, 1.0), (2, 1.0), (80, 0.4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("head_dim", "fraction"), SHAPES)
@pytest.mark.parametrize("frequency", [Default(), NTKAware(4.0)], ids=repr)
def test_scores_depend_on_the_difference_only(layout, head_dim, fraction, frequency):
    if int(head_dim * fraction) < frequency.minimum_rotary_dim:
        pytest.skip("the rule needs two planes")
    rotary = RotaryEmbedding(head_dim, frequency=frequency, layout=layout, rotary_fraction=fraction)
    query, key = torch.randn(2, 1, 1, head_dim, dtype=torch.float64)

    def score(i: float, j: float) -> torch.Tensor:
        at = torch.tensor([[i], [j]], dtype=torch.float64)
        return (rotary.rotate(query, at[0]) * rotary.rotate(key, at[1])).sum()

    for i, j, shift in itertools.product((0, 7), (0, 3.5), (-9, 1000, 123456)):
        torch.testing.assert_close(score(i + shift, j + shift), score(i, j), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_are_kept_and_position_zero_is_the_identity(layout):
    rotary = RotaryEmbedding(12, layout=layout)
    x = torch.randn(2, 3, 6, 12, dtype=torch.float64)
    y = rotary.rotate(x, torch.arange(6))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert torch.equal(y[..., 0, :], x[..., 0, :])


def test_layouts_are_one_permutation_apart():
    x = torch.randn(1, 2, 5, 16)
    to_half = torch.cat((torch.arange(0, 16, 2), torch.arange(1, 16, 2)))
    half = RotaryEmbedding(16).rotate(x[..., to_half], torch.arange(5))
    interleaved = RotaryEmbedding(16, layout="interleaved").rotate(x, torch.arange(5))
    assert torch.equal(interleaved[..., to_half], half)


@given(first=st.integers(-10_000, 100_000))
def test_negative_and_large_positions_are_plain_angles(first):
    rotary = RotaryEmbedding(8)
    positions = torch.tensor([first, -first])
    cos, sin = rotary(positions)
    angles = positions.double()[:, None] * rotary.inverse_frequencies().double()
    # Float32 angles are off by half an ulp of the angle, which grows with the position.
    tolerance = 2e-7 * max(abs(first), 1) + 1e-6
    torch.testing.assert_close(cos.double(), angles.cos(), atol=tolerance, rtol=0)
    torch.testing.assert_close(sin.double(), angles.sin(), atol=tolerance, rtol=0)
    torch.testing.assert_close(cos[0], cos[1])
    torch.testing.assert_close(sin[0], -sin[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_casting_the_module_changes_nothing(dtype):
    rotary, cast = RotaryEmbedding(8), RotaryEmbedding(8).to(dtype)
    positions = torch.arange(250, 5000, 37)
    for expected, actual in zip(rotary(positions), cast(positions), strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)
    half = RotaryEmbedding(8).half().bfloat16()
    assert torch.equal(half.inverse_frequencies(), rotary.inverse_frequencies())


def test_positions_above_256_are_right_in_a_bfloat16_model():
    model = torch.nn.Sequential(RotaryEmbedding(64)).to(torch.bfloat16)
    rotary = model[0]
    assert isinstance(rotary, RotaryEmbedding)
    x = torch.ones(1, 1, 1, 64, dtype=torch.bfloat16)
    neighbours = [rotary.rotate(x, torch.tensor([n])) for n in (1024, 1025, 1027)]
    exact = [RotaryEmbedding(64).rotate(x.float(), torch.tensor([n])) for n in (1024, 1025, 1027)]
    for actual, expected in zip(neighbours, exact, strict=True):
        torch.testing.assert_close(actual.float(), expected, atol=1e-6, rtol=2**-8)
    assert not torch.equal(neighbours[0], neighbours[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool])
def test_positions_that_cannot_count_are_refused(dtype):
    with pytest.raises(TypeError, match=f"expected integers or float32/float64, got {dtype}"):
        RotaryEmbedding(8)(torch.zeros(3, dtype=dtype))


def test_autocast_does_not_touch_the_angles():
    rotary, positions = RotaryEmbedding(8), torch.arange(4000, 4010)
    x = torch.randn(1, 1, 10, 8)
    expected = rotary.rotate(x, positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(rotary.rotate(x, positions), expected)


def test_positions_of_each_sequence():
    rotary = RotaryEmbedding(8)
    x = torch.randn(3, 2, 5, 8)
    positions = torch.stack([torch.arange(5), torch.arange(5) - 2, torch.arange(5) * 100])
    together = rotary.rotate(x, positions)
    for row in range(3):
        assert torch.equal(together[row], rotary.rotate(x[row], positions[row]))


@pytest.mark.parametrize("seq", [0, 1])
def test_sizes_one_and_none(seq):
    rotary = RotaryEmbedding(8, frequency=DynamicNTK(2.0, 512))
    assert rotary.rotate(torch.randn(1, 1, seq, 8), torch.arange(seq)).shape == (1, 1, seq, 8)


def test_yarn_scales_cosines_so_that_logits_get_the_square():
    rotary = RotaryEmbedding(8, frequency=YaRN(4.0, 512))
    factor = rotary.attention_factor()
    assert factor > 1.1
    x = torch.randn(1, 1, 3, 8, dtype=torch.float64)
    y = rotary.rotate(x, torch.arange(3, dtype=torch.float64))
    torch.testing.assert_close(y.square().sum(-1), x.square().sum(-1) * factor**2)


@pytest.mark.parametrize(
    "rule", [DynamicNTK(2.0, 16), LongRoPE([1.0] * 4, [3.0] * 4, 16, 4.0)], ids=lambda r: r.name
)
def test_rules_that_depend_on_the_length_take_it_from_the_positions(rule):
    rotary = RotaryEmbedding(8, frequency=rule)
    for length in (16, 17, 40):
        implied = rotary(torch.arange(length))
        given_length = rotary(torch.arange(length), length=length)
        as_tensor = rotary(torch.arange(length), length=torch.tensor(length))
        for a, b, c in zip(implied, given_length, as_tensor, strict=True):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a, c)
    last = torch.tensor([39])
    assert not torch.equal(rotary(last, length=16)[0], rotary(last, length=40)[0])


def test_equals_transformers_llama():
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, max_position_embeddings=512)
    x, positions = torch.randn(2, 2, 300, 16), torch.arange(300)[None].expand(2, -1)
    cos, sin = llama.LlamaRotaryEmbedding(config)(x, positions)
    expected, _ = llama.apply_rotary_pos_emb(x, x, cos, sin)
    actual = RotaryEmbedding(16).rotate(x, positions)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def test_equals_transformers_gpt_neox_partial():
    config = GPTNeoXConfig(hidden_size=64, num_attention_heads=2, intermediate_size=8)
    config.rope_parameters = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    }
    x, positions = torch.randn(2, 2, 30, 32), torch.arange(30)[None].expand(2, -1)
    cos, sin = gpt_neox.GPTNeoXRotaryEmbedding(config)(x, positions)
    expected, _ = gpt_neox.apply_rotary_pos_emb(x, x, cos, sin)
    actual = RotaryEmbedding(32, rotary_fraction=0.25).rotate(x, positions)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def test_equals_transformers_cohere_interleaved():
    x, positions = torch.randn(1, 2, 30, 16), torch.arange(30)
    rotary = RotaryEmbedding(16, layout="interleaved")
    cos, sin = (table.repeat_interleave(2, -1)[None] for table in rotary(positions))
    expected, _ = cohere.apply_rotary_pos_emb(x, x, cos, sin)
    torch.testing.assert_close(rotary.rotate(x, positions), expected)


def test_protocol_and_representation():
    rotary = RotaryEmbedding(10, frequency=NTKAware(4.0), layout="interleaved", rotary_fraction=0.8)
    assert isinstance(rotary, Rotary)
    assert rotary.rotary_dim == 8
    assert "NTKAware(factor=4.0), rotary_dim=8, layout=interleaved" in repr(rotary)


def test_nothing_to_save_and_copies_are_independent():
    rotary = RotaryEmbedding(8)
    assert rotary.state_dict() == {}
    assert list(rotary.parameters()) == []
    copied = copy.deepcopy(rotary)
    copied.load_state_dict(rotary.state_dict())
    assert copied.inverse_frequencies().data_ptr() != rotary.inverse_frequencies().data_ptr()
    assert torch.equal(copied(torch.arange(3))[0], rotary(torch.arange(3))[0])


def test_meta_device_and_back():
    expected = RotaryEmbedding(8)(torch.arange(600))[0]
    with torch.device("meta"):
        built = torch.nn.Sequential(RotaryEmbedding(8), torch.nn.Linear(8, 8))
    rotary = built[0]
    assert isinstance(rotary, RotaryEmbedding)
    assert torch.equal(rotary(torch.arange(600))[0], expected)
    built.to("meta")
    # Weights that are loaded one by one never touch this module.
    assert torch.equal(rotary(torch.arange(600))[0], expected)
    assert rotary(torch.arange(600, device="meta"))[0].is_meta
    built.to_empty(device="cpu")
    assert rotary.inverse_frequencies().device.type == "cpu"
    assert torch.equal(rotary(torch.arange(600))[0], expected)


@pytest.mark.parametrize(
    "rule",
    [YaRN(4.0, 16), DynamicNTK(2.0, 16), LongRoPE([1.0] * 3, [3.0] * 3, 16, 4.0)],
    ids=lambda rule: rule.name,
)
def test_compiles_to_one_graph(rule):
    rotary = RotaryEmbedding(10, frequency=rule, rotary_fraction=0.6)
    torch.compiler.reset()  # the limit of recompilations is one for all tests
    compiled = torch.compile(rotary.rotate, fullgraph=True, backend="aot_eager", dynamic=True)
    for seq in (9, 33):
        x = torch.randn(1, 2, seq, 10)
        expected = rotary.rotate(x, torch.arange(seq))
        torch.testing.assert_close(compiled(x, torch.arange(seq)), expected)
        actual = compiled(x, torch.arange(seq), length=seq)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiles_with_the_default_backend():
    rotary = RotaryEmbedding(8, frequency=DynamicNTK(2.0, 16))
    x, positions = torch.randn(1, 2, 20, 8), torch.arange(20)
    torch.compiler.reset()  # the limit of recompilations is one for all tests
    compiled = torch.compile(rotary.rotate, fullgraph=True)
    torch.testing.assert_close(
        compiled(x, positions), rotary.rotate(x, positions), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((7,), {}, ValueError, "rotary_dim: expected an even integer ≥ 2 .* got 7"),
        ((10,), {"rotary_fraction": 0.5}, ValueError, "rotary_dim: .* got 5"),
        ((8,), {"rotary_fraction": 0.0}, ValueError, "expected 0 < fraction ≤ 1, got 0.0"),
        ((8,), {"rotary_fraction": 1.5}, ValueError, "expected 0 < fraction ≤ 1, got 1.5"),
        ((10,), {"rotary_fraction": "a"}, TypeError, "rotary_fraction: expected a number, got 'a'"),
        ((8,), {"layout": "neox"}, ValueError, "expected one of half, interleaved, got 'neox'"),
        ((8,), {"base": 0.0}, ValueError, "base: expected"),
        ((8,), {"frequency": "yarn"}, TypeError, "expected a frequency rule .* got 'yarn'"),
        ((0,), {}, ValueError, "head_dim: expected an integer ≥ 1, got 0"),
        ((8.0,), {}, TypeError, "head_dim: expected an integer ≥ 1, got 8.0"),
        (
            (8,),
            {"frequency": LongRoPE([1.0] * 3, [2.0] * 3, 16)},
            ValueError,
            "expected 4 factors",
        ),
    ],
)
def test_bad_input(arguments, options, error, message):
    with pytest.raises(error, match=message):
        RotaryEmbedding(*arguments, **options)


X = torch.zeros(2, 4, 5, 8)


@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        ([0, 1, 2, 3, 4], TypeError, "positions: expected a tensor, got list; build it with"),
        (torch.arange(4), ValueError, r"expected \(seq,\).*\(2, 4, 5, 8\), got \(4,\)"),
        (torch.tensor(3), ValueError, r"expected \(seq,\).* got \(\)"),
        (torch.zeros(3, 5).long(), ValueError, r"each sequence, \(2, 5\), got \(3, 5\)"),
        (torch.zeros(1, 2, 5).long(), ValueError, r"got \(1, 2, 5\)"),
        (torch.zeros(5).half(), TypeError, "got torch.float16"),
    ],
)
@pytest.mark.parametrize("frequency", [None, DynamicNTK(2.0, 512)])
def test_bad_positions(positions, error, message, frequency):
    with pytest.raises(error, match=message):
        RotaryEmbedding(8, frequency=frequency).rotate(X, positions)
    if error is TypeError:
        with pytest.raises(error, match=message):
            RotaryEmbedding(8, frequency=frequency)(positions)
