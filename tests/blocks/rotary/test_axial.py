"""n-D rotary: relative along every axis, and the one-dimensional embedding where it should be."""

import copy
from typing import get_args

import pytest
import torch

from ropewalk.blocks.rotary import (
    AxialRotary,
    DynamicNTK,
    NTKAware,
    RotaryEmbedding,
    YaRN,
    axial_frequencies,
    grid_coordinates,
)
from ropewalk.blocks.rotary.axial import Arrangement

ARRANGEMENTS = get_args(Arrangement)


def test_grid_is_row_major():
    assert grid_coordinates(2, 3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert grid_coordinates(4).tolist() == [[0], [1], [2], [3]]
    video = grid_coordinates(2, 3, 5)
    assert video.shape == (30, 3)
    assert video[(1 * 3 + 2) * 5 + 4].tolist() == [1, 2, 4]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scores_depend_on_coordinate_differences_only(arrangement, layout, axes):
    rotary = AxialRotary(14, axes, arrangement=arrangement, layout=layout, rotary_fraction=0.9)
    assert rotary.rotary_dim == 12
    query, key = torch.randn(2, 1, 1, 14, dtype=torch.float64)
    a, b, shift = torch.randint(-50, 50, (3, 1, axes)).double()

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (rotary.rotate(query, a) * rotary.rotate(key, b)).sum()

    torch.testing.assert_close(score(a + shift, b + shift), score(a, b), rtol=1e-9, atol=1e-9)
    for axis in range(axes):
        moved = b.clone()
        moved[..., axis] += 1
        assert not torch.isclose(score(a, moved), score(a, b))


@pytest.mark.parametrize("arrangement", ["bands", "alternating"])
@pytest.mark.parametrize("sections", [None, [1, 2, 5]])
def test_equal_coordinates_are_the_one_dimensional_embedding(arrangement, sections):
    axes = 2 if sections is None else 3
    rotary = AxialRotary(16, axes, arrangement=arrangement, sections=sections)
    x, positions = torch.randn(2, 3, 9, 16), torch.arange(9) * 7
    actual = rotary.rotate(x, positions[:, None].expand(-1, axes))
    assert torch.equal(actual, RotaryEmbedding(16).rotate(x, positions))


def test_own_spectra_are_block_diagonal():
    rotary = AxialRotary(16, 2, layout="interleaved", base=100.0)
    x, coordinates = torch.randn(1, 2, 12, 16), grid_coordinates(3, 4)
    single = RotaryEmbedding(8, layout="interleaved", base=100.0)
    expected = torch.cat(
        [single.rotate(part, coordinates[:, axis]) for axis, part in enumerate(x.chunk(2, -1))], -1
    )
    assert torch.equal(rotary.rotate(x, coordinates), expected)


def test_who_owns_which_plane():
    for arrangement in get_args(Arrangement):
        assert axial_frequencies(8, [1, 3], arrangement=arrangement)[1].tolist() == [0, 1, 1, 1]
    assert axial_frequencies(12, [2, 3, 1])[1].tolist() == [0, 0, 1, 1, 1, 2]
    assert axial_frequencies(12, [2, 3, 1], arrangement="alternating")[1].tolist() == [
        0, 1, 2, 0, 1, 1,
    ]  # fmt: skip


def test_rules_scale_every_axis():
    frequencies, _ = axial_frequencies(16, [4, 4], frequency=NTKAware(4.0))
    expected = NTKAware(4.0).inverse_frequencies(8, 10000.0)
    assert torch.equal(frequencies, torch.cat((expected, expected)))
    rotary = AxialRotary(16, frequency=YaRN(4.0, 64))
    cos, _ = rotary(torch.zeros(1, 2, dtype=torch.int64))
    torch.testing.assert_close(cos, torch.full((1, 8), rotary.attention_factor()))


def test_coordinates_of_each_sequence():
    rotary = AxialRotary(8)
    x = torch.randn(2, 3, 4, 8)
    coordinates = torch.stack((grid_coordinates(2, 2), grid_coordinates(4, 1)))
    together = rotary.rotate(x, coordinates)
    for row in range(2):
        assert torch.equal(together[row], rotary.rotate(x[row], coordinates[row]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_and_meta_device_change_nothing(dtype):
    coordinates = grid_coordinates(20, 20) * 33
    expected = AxialRotary(8)(coordinates)[0]
    assert torch.equal(AxialRotary(8).to(dtype)(coordinates)[0], expected)
    with torch.device("meta"):
        rotary = AxialRotary(8)
    rotary.to("meta")
    assert torch.equal(rotary(coordinates)[0], expected)
    rotary.to_empty(device="cpu").to(dtype)
    assert torch.equal(rotary(coordinates)[0], expected)
    assert torch.equal(copy.deepcopy(rotary)(coordinates)[0], expected)
    assert rotary.state_dict() == {}
    x = torch.randn(1, 1, 400, 8).to(dtype)
    assert rotary.rotate(x, coordinates).dtype == dtype


def test_compiles_to_one_graph():
    rotary = AxialRotary(8, 2, arrangement="alternating")
    x, coordinates = torch.randn(1, 2, 6, 8), grid_coordinates(2, 3)
    torch.compiler.reset()  # the limit of recompilations is one for all tests
    compiled = torch.compile(rotary.rotate, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, coordinates), rotary.rotate(x, coordinates))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((10, 2), {}, "expected rotary_dim divisible by 2·axes = 4, got 10"),
        ((16, 3), {"sections": [4, 4]}, "expected 3 numbers that sum to rotary_dim/2 = 8"),
        ((16, 2), {"sections": [4, 5]}, r"got \[4, 5\]"),
        ((16, 2), {"sections": [0, 8]}, r"sections\[0\]: expected an integer ≥ 1, got 0"),
        ((16, 2), {"arrangement": "mixed"}, "expected one of own, bands, alternating, got 'mixed'"),
        ((16, 2), {"layout": "neox"}, "expected one of half, interleaved, got 'neox'"),
        ((16, 0), {}, "axes: expected an integer ≥ 1, got 0"),
        ((16, 2), {"rotary_fraction": 2.0}, "expected 0 < fraction ≤ 1"),
        ((16, 2), {"frequency": DynamicNTK(2.0, 64)}, "does not depend on the length"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        AxialRotary(*arguments, **options)


def test_bad_coordinates():
    rotary = AxialRotary(8, 2)
    with pytest.raises(ValueError, match=r"expected \(…, seq, 2\), got \(5, 3\)"):
        rotary(torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"got torch\.bfloat16"):
        rotary(torch.zeros(5, 2, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="expected the grid's sizes"):
        grid_coordinates()
    with pytest.raises(TypeError, match="expected a frequency rule"):
        AxialRotary(8, frequency="yarn")  # pyright: ignore[reportArgumentType]


def test_a_rule_for_each_axis_is_that_rule_on_its_section():
    rules = (NTKAware(4.0), YaRN(2.0, original_length=16))
    both = AxialRotary(16, axes=2, frequency=rules)
    coordinates = grid_coordinates(3, 5)
    cos, sin = both(coordinates)
    for axis, rule in enumerate(rules):
        alone = AxialRotary(16, axes=2, frequency=rule)(coordinates)
        own = slice(4 * axis, 4 * axis + 4)
        torch.testing.assert_close(cos[:, own], alone[0][:, own])
        torch.testing.assert_close(sin[:, own], alone[1][:, own])
    assert AxialRotary(16, axes=2, frequency=(rules[0],) * 2).frequency == rules[0]


def test_rules_for_axes_are_checked():
    with pytest.raises(ValueError, match="expected one rule, or 2, one for each axis, got 3"):
        AxialRotary(16, frequency=(NTKAware(2.0),) * 3)
    with pytest.raises(ValueError, match="one rule for a spectrum that the axes share"):
        AxialRotary(16, frequency=(NTKAware(2.0), NTKAware(3.0)), arrangement="alternating")
    with pytest.raises(TypeError, match="expected a frequency rule, got 2"):
        AxialRotary(16, frequency=(NTKAware(2.0), 2))
