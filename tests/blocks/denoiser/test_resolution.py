"""Another size is another frequency rule on each axis, and the same weights."""

import pytest
import torch

from ropewalk.blocks.denoiser import DiffusionTransformer
from ropewalk.blocks.denoiser.positions import absolute_positions
from ropewalk.blocks.denoiser.resolution import RULES, axis_rules
from ropewalk.blocks.rotary import Default, Linear, NTKAware, YaRN, grid_coordinates


def test_each_axis_has_the_rule_of_its_own_growth():
    assert axis_rules("ntk", (8, 6), (4, 6), (2, 2)) == (NTKAware(2.0), Default())
    assert axis_rules("yarn", (16, 24), (8, 16), (2, 2)) == (YaRN(2.0, 8), YaRN(1.5, 16))
    # On six cells no plane makes a full turn.
    assert axis_rules("yarn", (12, 14), (6, 7), (2, 2)) == (Linear(2.0), YaRN(2.0, 7))
    assert axis_rules("linear", (2, 6), (4, 3), (1, 1)) == (Default(), Linear(2.0))
    assert axis_rules(lambda factor, trained: Linear(factor * trained), (8,), (4,), (1,)) == (
        Linear(8.0),
    )


@pytest.mark.parametrize("rotary", ["axial", "absolute"])
def test_weights_are_shared_and_the_model_is_left_as_it_is(make_denoiser, rotary):
    model = make_denoiser(rotary=rotary)
    x, t = torch.randn(1, 1, 16, 8), torch.rand(1)
    before = model(x, t)
    other = model.at_size((16, 8), rule="linear")
    assert (other(x, t) - before).abs().max() > 1e-4
    assert torch.equal(model(x, t), before)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    other.registers = torch.nn.Parameter(torch.zeros(1, 32))
    assert model.registers is None
    other.registers = None
    with torch.no_grad():
        model.head.bias.add_(1.0)
    assert (other(x, t) - before).abs().max() > 0.5


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rotary", ["axial", "absolute"])
def test_the_trained_size_changes_nothing(make_denoiser, rule, rotary):
    model = make_denoiser(rotary=rotary)
    x, t = torch.randn(1, 1, 8, 8), torch.rand(1)
    torch.testing.assert_close(model.at_size(8, rule=rule)(x, t), model(x, t))


@pytest.mark.parametrize("rotary", ["axial", "absolute"])
def test_linear_interpolation_reads_every_second_place_as_trained(make_denoiser, rotary):
    """Twice the size with half the frequency: place 2n is what place n was."""
    model = make_denoiser(rotary=rotary)
    other = model.at_size(16, rule="linear")
    small, large = grid_coordinates(4, 4), 2 * grid_coordinates(4, 4)
    if rotary == "axial":
        torch.testing.assert_close(other.rotary(large), model.rotary(small))
    else:
        torch.testing.assert_close(
            absolute_positions(large, 32, frequency=other.frequency), absolute_positions(small, 32)
        )


def test_axes_of_unequal_growth_have_unequal_temperatures(make_denoiser):
    model = make_denoiser(16).at_size((64, 16), rule="yarn")
    cos, _ = model.rotary(torch.zeros(1, 2, dtype=torch.int64))
    assert cos[0, :2].tolist() == pytest.approx([YaRN(4.0, 8).attention_factor()] * 2)
    assert cos[0, 2:].tolist() == [1.0, 1.0]


def test_bad_sizes_and_rules():
    model = DiffusionTransformer(8, 2, 1, 32, 1, 4)
    with pytest.raises(ValueError, match="size: expected sizes that are multiples of the patch"):
        model.at_size(9)
    with pytest.raises(ValueError, match="expected one of none, linear, ntk, yarn, got 'dynamic'"):
        model.at_size(16, rule="dynamic")
    with pytest.raises(TypeError, match="expected it to give a frequency rule, got 2"):
        model.at_size(16, rule=lambda factor, trained: 2)
    with pytest.raises(TypeError, match="a name, or a function"):
        model.at_size(16, rule=3)
    with pytest.raises(ValueError, match="expected a model with positions"):
        DiffusionTransformer(8, 2, 1, 32, 1, 4, rotary="none").at_size(16)
    with pytest.raises(ValueError, match="expected a model with positions"):
        DiffusionTransformer(8, 2, 1, 32, 1, 4, mixer="recurrent").at_size(16)


@pytest.mark.parametrize("rotary", ["axial", "absolute"])
def test_rules_for_more_pairs_than_an_axis_has_are_refused_at_once(make_denoiser, rotary):
    model = make_denoiser(dim=4, heads=1, rotary=rotary)
    for rule in ("ntk", lambda factor, trained: NTKAware(factor)):
        with pytest.raises(ValueError, match=r"rule: expected one for 1 pair.* needs 2 .*'linear'"):
            model.at_size(16, rule=rule)
    for size, rule in ((8, "ntk"), (16, "linear"), (16, "yarn")):  # NTK, where nothing grew
        other = model.at_size(size, rule=rule)
        assert other(torch.randn(1, 1, size, size), torch.rand(1)).isfinite().all()
