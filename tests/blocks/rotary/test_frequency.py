"""Frequency rules give the numbers of transformers where it has the rule."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ropewalk.blocks.rotary import (
    FREQUENCY_RULES,
    Default,
    DynamicNTK,
    FrequencyRule,
    Linear,
    Llama3,
    LongRoPE,
    NTKAware,
    NTKFixed,
    NTKMixed,
    YaRN,
)

TRAINED = 4096


def config_of(rule: FrequencyRule, *, rotary_dim: int, base: float, maximum: int) -> LlamaConfig:
    parameters = rule.to_rope_parameters(base=base, rotary_dim=rotary_dim)
    return LlamaConfig(
        hidden_size=rotary_dim * 2,
        num_attention_heads=2,
        head_dim=rotary_dim,
        max_position_embeddings=maximum,
        rope_parameters=parameters,
    )


def assert_equals_transformers(
    rule: FrequencyRule, *, rotary_dim: int, base: float, length: int | None = None
) -> None:
    maximum = TRAINED if isinstance(rule, DynamicNTK) else 4 * TRAINED
    config = config_of(rule, rotary_dim=rotary_dim, base=base, maximum=maximum)
    parameters: dict = dict(config.rope_parameters or {})
    rope_type = parameters["rope_type"]
    if rope_type == "default":
        expected, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[rope_type](config, seq_len=length)
    actual = rule.inverse_frequencies(rotary_dim, parameters["rope_theta"])
    if rope_type != "default":
        actual = rule.inverse_frequencies(rotary_dim, base, length)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
    assert actual.dtype == torch.float32
    assert rule.attention_factor(length) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("rotary_dim", [2, 18, 64, 80, 128])
@pytest.mark.parametrize("base", [100.0, 10000.0, 500000.0, 1e6])
def test_default_and_linear(rotary_dim, base):
    assert_equals_transformers(Default(), rotary_dim=rotary_dim, base=base)
    for factor in (1.0, 2, 3.7, 32.0):
        assert_equals_transformers(Linear(factor), rotary_dim=rotary_dim, base=base)


@pytest.mark.parametrize("rotary_dim", [4, 18, 64, 128])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("factor", [1.0, 2.0, 7.3])
@pytest.mark.parametrize("length", [None, 1, TRAINED, TRAINED + 1, 3 * TRAINED + 5])
def test_dynamic_ntk(rotary_dim, base, factor, length):
    rule = DynamicNTK(factor, TRAINED)
    assert_equals_transformers(rule, rotary_dim=rotary_dim, base=base, length=length)


@pytest.mark.parametrize(("rotary_dim", "base"), [(64, 10000.0), (80, 150000.0), (128, 1e6)])
@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncate": False},
        {"beta_fast": 16.0, "beta_slow": 2.0},
        {"beta_fast": 8.0, "beta_slow": 8.0, "truncate": False},
        {"attention_scaling": 1.25},
        {"mscale": 1.0, "mscale_all_dim": 0.8},
        {"mscale": 0.707},
        {"mscale": 0.707, "mscale_all_dim": 0.707, "attention_scaling": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("original", [TRAINED, 128, 32768])
def test_yarn(rotary_dim, base, factor, options, original):
    rule = YaRN(factor, original, **options)
    assert_equals_transformers(rule, rotary_dim=rotary_dim, base=base)


@pytest.mark.parametrize(("rotary_dim", "base"), [(64, 10000.0), (96, 500000.0)])
@pytest.mark.parametrize(
    "options", [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (2.5, 0.5, 32.0, 512)]
)
def test_llama3(rotary_dim, base, options):
    assert_equals_transformers(Llama3(*options), rotary_dim=rotary_dim, base=base)


@pytest.mark.parametrize("rotary_dim", [2, 18, 96])
@pytest.mark.parametrize("options", [{}, {"factor": 32.0}, {"attention_scaling": 1.19}], ids=str)
@pytest.mark.parametrize("length", [None, 10, TRAINED, TRAINED + 1])
def test_longrope(rotary_dim, options, length):
    short = torch.linspace(1, 1.5, rotary_dim // 2).tolist()
    long = torch.linspace(1, 40, rotary_dim // 2).tolist()
    rule = LongRoPE(short, long, TRAINED, **options)
    assert_equals_transformers(rule, rotary_dim=rotary_dim, base=10000.0, length=length)


@pytest.mark.parametrize("rule", [NTKFixed(8.0), NTKMixed(8.0), NTKMixed(3.0, 0.2)], ids=repr)
@pytest.mark.parametrize("rotary_dim", [2, 18, 64])
def test_rules_that_transformers_lacks_run_there_as_longrope(rule, rotary_dim):
    for length in (None, TRAINED, 20 * TRAINED):
        assert_equals_transformers(rule, rotary_dim=rotary_dim, base=10000.0, length=length)


def every_rule(rotary_dim: int) -> list[FrequencyRule]:
    pairs = rotary_dim // 2
    return [
        Default(),
        Linear(4.0),
        NTKAware(4.0),
        NTKFixed(4.0),
        NTKMixed(4.0),
        DynamicNTK(4.0, 512),
        YaRN(4.0, 512),
        Llama3(4.0, 1.0, 4.0, 512),
        LongRoPE([1.0] * pairs, [4.0] * pairs, 512, 4.0),
    ]


def test_the_list_of_rules_is_complete():
    assert {type(rule).name for rule in every_rule(8)} == set(FREQUENCY_RULES)
    for name, rule in FREQUENCY_RULES.items():
        assert rule.name == name
        assert rule.paper


@pytest.mark.parametrize("rule", every_rule(32), ids=lambda rule: rule.name)
@pytest.mark.parametrize("length", [100, 512, 513, 5000])
def test_a_traced_length_gives_what_an_integer_gives(rule, length):
    by_integer = rule.inverse_frequencies(32, 10000.0, length)
    by_tensor = rule.inverse_frequencies(32, 10000.0, torch.tensor(length))
    torch.testing.assert_close(by_tensor, by_integer, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", every_rule(32), ids=lambda rule: rule.name)
def test_dependence_on_length_is_declared(rule):
    within, beyond = (rule.inverse_frequencies(32, 10000.0, n) for n in (512, 4096))
    assert torch.equal(within, beyond) != rule.depends_on_length
    assert torch.equal(rule.inverse_frequencies(32, 10000.0), within)


@pytest.mark.parametrize("rule", every_rule(32), ids=lambda rule: rule.name)
def test_no_rule_is_faster_than_default_or_slower_than_linear(rule):
    default = Default().inverse_frequencies(32, 10000.0)
    frequencies = rule.inverse_frequencies(32, 10000.0, 600)
    assert (frequencies <= default * (1 + 1e-6)).all()
    assert (frequencies >= default / 4 * (1 - 1e-6)).all()
    assert (frequencies.diff() < 0).all()


@pytest.mark.parametrize("rule", every_rule(32), ids=lambda rule: rule.name)
def test_rules_are_values(rule):
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule == dataclasses.replace(rule)
    assert len({rule, again}) == 1


def test_frequencies_do_not_land_on_the_meta_device():
    with torch.device("meta"):
        for rule in every_rule(8):
            assert rule.inverse_frequencies(8, 10000.0).device.type == "cpu"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0.0), "Linear.factor: expected a finite number > 0, got 0.0"),
        (lambda: NTKAware(-1.0), "NTKAware.factor: expected a finite number > 0, got -1.0"),
        (lambda: NTKFixed(float("nan")), "NTKFixed.factor: .* got nan"),
        (lambda: NTKMixed(float("inf")), "NTKMixed.factor: .* got inf"),
        (lambda: NTKMixed(2.0, -0.5), "NTKMixed.exponent: .* got -0.5"),
        (lambda: DynamicNTK(2.0, 0), "DynamicNTK.original_length: expected an integer ≥ 1, got 0"),
        (lambda: YaRN(-2.0, 512), "YaRN.factor"),
        (lambda: YaRN(2.0, 512, beta_fast=1.0, beta_slow=2.0), "expected beta_fast ≥ beta_slow"),
        (lambda: YaRN(2.0, 512, attention_scaling=-1.0), "YaRN.attention_scaling"),
        (lambda: Llama3(2.0, 4.0, 4.0, 512), "expected high_freq_factor > low_freq_factor"),
        (lambda: LongRoPE([1.0], [1.0, 2.0], 512), "equal length, got 1 and 2 numbers"),
        (lambda: LongRoPE([1.0, 0.0], [1.0, 2.0], 512), r"short_factor\[1\]: .* got 0.0"),
        (lambda: LongRoPE([1.0], [2.0]), "original_length: expected the trained length"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("rule", "arguments", "message"),
    [
        (Linear, ("8",), "Linear.factor: expected a number > 0, got '8'"),
        (Linear, (True,), "got True"),
        (DynamicNTK, (2.0, 512.5), r"original_length: .* ≥ 1, got 512.5; convert it with int\("),
        (Linear, (np.float32(2),), r"expected a number > 0, got .*2.0.*convert it with float\("),
        (Linear, (torch.tensor(2.0),), r"convert it with float\("),
        (NTKMixed, (2.0, "a"), "NTKMixed.exponent: expected a number ≥ 0, got 'a'"),
        (
            DynamicNTK,
            (2.0, np.int64(8)),
            r"expected an integer ≥ 1, got .*8.*convert it with int\(",
        ),
        (LongRoPE, ([], [], 512), r"short_factor: expected a list of numbers.* got \[\]"),
        (LongRoPE, ("12", "12", 512), "short_factor: expected a list of numbers"),
    ],
)
def test_bad_types(rule, arguments, message):
    with pytest.raises(TypeError, match=message):
        rule(*arguments)


@pytest.mark.parametrize("rule", every_rule(8), ids=lambda rule: rule.name)
def test_bad_dimensions_and_bases(rule):
    for rotary_dim in (7, 0, -2):
        with pytest.raises(ValueError, match=f"rotary_dim: expected an even .* got {rotary_dim}"):
            rule.inverse_frequencies(rotary_dim, 10000.0)
    with pytest.raises(TypeError, match=r"rotary_dim: expected an even integer, got 8\.0"):
        rule.inverse_frequencies(8.0, 10000.0)
    for base in (0.0, 1.0, -5.0):
        with pytest.raises(ValueError, match="base: expected"):
            rule.inverse_frequencies(8, base)


def test_longrope_lists_must_fit_the_head():
    rule = LongRoPE([1.0] * 4, [2.0] * 4, 512)
    with pytest.raises(ValueError, match=r"expected 8 factors.*rotary_dim = 16.*lists of 4"):
        rule.inverse_frequencies(16, 10000.0)


def test_rules_that_stretch_the_base_need_two_planes():
    for rule in (NTKAware(2.0), DynamicNTK(2.0, 512)):
        with pytest.raises(ValueError, match="even integer ≥ 4"):
            rule.inverse_frequencies(2, 10000.0)


def test_exhaustive_combinations_of_yarn_stay_between_default_and_linear():
    for factor, original, dim in itertools.product((1.5, 8.0), (256, 8192), (16, 64)):
        for base in (1000.0, 1e6):
            frequencies = YaRN(factor, original).inverse_frequencies(dim, base)
            default = Default().inverse_frequencies(dim, base)
            assert (frequencies <= default * (1 + 1e-6)).all()
            assert (frequencies >= default / factor * (1 - 1e-6)).all()


@pytest.mark.parametrize("rule", every_rule(8), ids=lambda rule: rule.name)
def test_bad_lengths(rule):
    for length in ("a", 2.0, True, torch.tensor(True)):
        with pytest.raises(TypeError, match="length: expected"):
            rule.inverse_frequencies(8, 1e4, length)
    for length in (0, -5, torch.tensor([5, 6])):
        with pytest.raises(ValueError, match="length: expected"):
            rule.inverse_frequencies(8, 1e4, length)
    with pytest.raises(TypeError, match=r"convert it with int\("):
        rule.inverse_frequencies(8, 1e4, np.int64(600))


@pytest.mark.parametrize(
    ("rule", "length"),
    [
        (NTKAware(1e300), None),
        (NTKAware(1e40), None),
        (DynamicNTK(1e300, 16), 1000),
        (Linear(1e-300), None),
        (NTKFixed(1e-300), None),
        (LongRoPE([1e-300] * 4, [1.0] * 4, 16), 8),
    ],
    ids=str,
)
def test_factors_beyond_float32(rule, length):
    with pytest.raises(ValueError, match=r"too large|smaller factor"):
        rule.inverse_frequencies(8, 1e4, length)


def test_negative_exponents_of_the_mixture():
    for exponent in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"NTKMixed\.exponent: expected a finite number ≥ 0"):
            NTKMixed(2, exponent=exponent)
