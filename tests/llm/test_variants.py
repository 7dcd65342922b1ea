"""The grammar of variants: what parses, what it means, and what is said about what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ropewalk.blocks.rotary import (
    DISTANCE_RULES,
    FREQUENCY_RULES,
    DualChunk,
    LeakyReRoPE,
    LogN,
    LongRoPE,
    NTKAware,
    NTKMixed,
    ReRoPE,
    SelfExtend,
    YaRN,
)
from ropewalk.llm.variant_rules import describe_parameters, paper_of, rule_classes
from ropewalk.llm.variants import parse_variant


def test_rope_adds_nothing():
    resolved = parse_variant("rope").resolve(512)
    assert (resolved.frequency, resolved.distance, resolved.log_n) == (None, None, None)
    assert resolved.describe() == {}
    model = object()
    with resolved.plug(model) as same:  # type: ignore[arg-type]
        assert same is model


@pytest.mark.parametrize(
    ("text", "kind", "rule"),
    [
        ("ntk-aware:factor=8", "frequency", NTKAware(factor=8.0)),
        ("ntk-mixed:factor=4,exponent=0.5", "frequency", NTKMixed(factor=4.0, exponent=0.5)),
        (
            "yarn:factor=4,truncate=false",
            "frequency",
            YaRN(factor=4.0, original_length=512, truncate=False),
        ),
        ("rerope:window=100", "distance", ReRoPE(window=100)),
        ("leaky-rerope:window=100,factor=0.5", "distance", LeakyReRoPE(window=100, factor=0.5)),
        (" rerope : window = 7 ", "distance", ReRoPE(window=7)),
        ("log-n:length=99,clamp=false", "log_n", LogN(99, clamp=False)),
    ],
)
def test_written_parameters_reach_the_rule(text, kind, rule):
    assert getattr(parse_variant(text).resolve(512), kind) == rule


def test_a_list_of_numbers_is_separated_by_slashes():
    rule = parse_variant("longrope:short_factor=1/1,long_factor=1.5/2").resolve(512, 1024).frequency
    assert isinstance(rule, LongRoPE)
    assert tuple(rule.short_factor) == (1.0, 1.0)
    assert tuple(rule.long_factor) == (1.5, 2.0)


def test_the_name_that_checkpoints_have_for_the_temperature_is_understood():
    written = parse_variant("yarn:factor=4,attention_factor=1.5")
    assert written.resolve(512).frequency == YaRN(4.0, 512, attention_scaling=1.5)
    lists = "longrope:short_factor=1/1,long_factor=2/2,"
    rule = parse_variant(lists + "attention_factor=1.5").resolve(512, 1024).frequency
    assert isinstance(rule, LongRoPE)
    assert rule.attention_scaling == 1.5
    with pytest.raises(ValueError, match="has parameter 'attention_scaling' twice"):
        parse_variant("yarn:factor=4,attention_factor=1.5,attention_scaling=1")
    with pytest.raises(ValueError, match="has no parameter 'attention_factor'"):
        parse_variant("linear:attention_factor=1.5")


def test_parts_combine_in_any_order():
    for text in (
        "ntk-aware:factor=2+rerope:window=8+log-n",
        "log-n+rerope:window=8+ntk-aware:factor=2",
    ):
        resolved = parse_variant(text).resolve(64)
        assert resolved.frequency == NTKAware(2.0)
        assert resolved.distance == ReRoPE(8)
        assert resolved.log_n == LogN(64)


def test_defaults_follow_from_the_model():
    assert parse_variant("rerope").resolve(512).distance == ReRoPE(128)
    assert parse_variant("leaky-rerope").resolve(512).distance == LeakyReRoPE(128, 16.0)
    assert parse_variant("dual-chunk").resolve(512).distance == DualChunk(384, 64)
    assert parse_variant("log-n").resolve(512).log_n == LogN(512)
    assert parse_variant("ntk-aware").resolve(512, 4096).frequency == NTKAware(8.0)
    assert parse_variant("ntk-aware").resolve(512, 256).frequency == NTKAware(1.0)


@given(trained=st.integers(8, 8192), times=st.floats(1.0, 64.0))
def test_self_extend_stays_inside_the_trained_length(trained, times):
    longest = int(trained * times)
    rule = parse_variant("self-extend").resolve(trained, longest).distance
    assert isinstance(rule, SelfExtend)
    assert rule.window + (longest - rule.window) / rule.group <= trained


def test_a_variant_is_laid_over_the_native_one():
    native = parse_variant("log-n:length=512,clamp=false")
    assert parse_variant("rope").over(native).resolve(512).log_n == LogN(512, clamp=False)
    mixed = parse_variant("rerope:window=9+log-n").over(native).resolve(64)
    assert (mixed.distance, mixed.log_n) == (ReRoPE(9), LogN(64))


def test_every_rule_is_listed_with_its_paper_and_parses_by_its_name():
    assert {*FREQUENCY_RULES, *DISTANCE_RULES, "log-n"} == set(rule_classes())
    for name in rule_classes():
        assert paper_of(name), name
        required = [p.name for p in describe_parameters(name) if p.default == "required"]
        if not required:
            resolved = parse_variant(name).resolve(512, 4096)
            assert [part["name"] for part in resolved.describe().values()] == [name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rerop", "unknown variant 'rerop'; did you mean 'rerope'? known: rope, default, linear"),
        ("qqqqqq", "unknown variant 'qqqqqq'; known: rope"),
        ("", "unknown variant ''"),
        ("rope+", "unknown variant ''"),
        (
            "rerope:windw=3",
            "'rerope' has no parameter 'windw'; did you mean 'window'? known: window",
        ),
        ("default:factor=1", "'default' has no parameters, got 'factor'"),
        ("rope:factor=1", "'rope' has no parameters"),
        ("rerope:window", "parameter 'window' of 'rerope' has no value"),
        ("rerope:window=", "parameter 'window' of 'rerope' has no value"),
        ("rerope:window=x", "expects a whole number, got 'x'"),
        ("rerope:window=1.5", "expects a whole number, got '1.5'"),
        ("linear:factor=x", "expects a number, got 'x'"),
        ("log-n:clamp=maybe", "expects true or false, got 'maybe'"),
        ("rerope:window=1,window=2", "'rerope' has parameter 'window' twice"),
        ("linear:factor=0", "factor"),
        ("yarn:factor=-2", "factor"),
        ("rerope:window=0", "window"),
        ("linear+yarn", "two parts of kind frequency, 'linear' and 'yarn'"),
        ("rerope+self-extend", "two parts of kind distance"),
        ("longrope", "'longrope' needs short_factor and long_factor"),
        ("ntk-aware:factor=1e300", "'ntk-aware' has a value that is too large"),
        ("dynamic-ntk:factor=1e300", "'dynamic-ntk' has a value"),
        ("rerope:window=99999999999999999999", "must be below 2**31, got 99999999999999999999"),
        ("log-n:length=2147483648", "must be below 2**31"),
        ("ReRoPE", "did you mean 'rerope'?"),
        ("NTKAware", "did you mean 'ntk-aware'?"),
        ("ntk_mixed", "did you mean 'ntk-mixed'?"),
        ("YaRN", "did you mean 'yarn'?"),
        ("Linear", "did you mean 'linear'?"),
        ("ntk", "did you mean 'ntk-aware'?"),
    ],
)
def test_what_does_not_parse_is_explained_in_one_line(text, expected):
    with pytest.raises(ValueError) as caught:
        parse_variant(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_factor_that_cannot_be_known_is_asked_for():
    with pytest.raises(ValueError, match=r"'ntk-aware' needs 'factor'.*ntk-aware:factor=8"):
        parse_variant("ntk-aware").resolve(512)
