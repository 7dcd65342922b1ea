"""What does not go together is refused before any work, in words that say what to change."""

import pytest
import torch

from ropewalk.blocks.denoiser import DiffusionTransformer, preset

SIZES = (8, 2, 1, 32, 1, 4)


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ((9, 2, 1, 32, 1, 4), {}, ValueError, "multiples of the patch"),
        (((8, 8), (2, 2, 2), 1, 32, 1, 4), {}, ValueError, "patch_size: expected one number, or 2"),
        ((8.0, 2, 1, 32, 1, 4), {}, TypeError, "input_size: expected integers, got 8.0"),
        ((8, 0, 1, 32, 1, 4), {}, ValueError, "sizes of at least 1"),
        ((8, 2, 1, 33, 1, 4), {}, ValueError, "heads that divide dim"),
        ((8, 2, 1, 12, 1, 4), {}, ValueError, "an even dim / heads"),
        ((8, 2, 1, 8, 1, 4), {}, ValueError, "at least 4, a pair for each axis"),
        ((8, 2, None, 32, 1, 4), {}, ValueError, "or a vocabulary for discrete tokens"),
        ((8, 2, 1, 32, 0, 4), {}, ValueError, "depth: expected an integer ≥ 1"),
        ((8, 2, None, 32, 1, 4), {"vocabulary": 5}, ValueError, "channels=None and patch_size=1"),
        (SIZES, {"mixer": "mamba"}, ValueError, "expected one of attention, recurrent, hybrid"),
        (SIZES, {"mixer": ("attention",) * 2}, ValueError, "for each of 1 blocks"),
        (SIZES, {"mixer": 2}, ValueError, "for each of 1 blocks, got 2"),
        (SIZES, {"norm_eps": None}, TypeError, "norm_eps: expected a number > 0, got None"),
        (SIZES, {"norm_eps": (1e-6,) * 3}, ValueError, "norm_eps: expected one number or two"),
        (SIZES, {"feed_forward": "relu"}, ValueError, "feed_forward: expected one of swiglu"),
        (SIZES, {"rotary": "learned"}, ValueError, "rotary: expected one of axial, absolute"),
        (SIZES, {"adaln": "half"}, ValueError, "adaln: expected one of full, shared, low_rank"),
        (SIZES, {"norm": "batch"}, ValueError, "norm: expected one of layer, rms"),
        (SIZES, {"qk_norm": 1}, TypeError, "qk_norm: expected True or False"),
        (SIZES, {"num_classes": -1}, ValueError, "num_classes: expected an integer ≥ 0"),
        (SIZES, {"dropout": 0.1}, TypeError, "unexpected options dropout; it has mixer"),
        (SIZES, {"norm_eps": 0.0}, ValueError, "norm_eps: expected a finite number > 0"),
        (SIZES, {"learn_sigma": True, "out_channels": 3}, ValueError, "got both"),
        (SIZES, {"time_frequency_shift": 2}, ValueError, "expected 0 or 1, got 2"),
    ],
)  # fmt: skip
def test_models(sizes, options, error, message):
    with pytest.raises(error, match=message):
        DiffusionTransformer(*sizes, **options)


X, T, Y = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[..., :7], T, Y), ValueError, "multiples of the patch .2, 2., got .8, 7."),
        ((X[0], T, Y), ValueError, r"x\[None\] is a batch of one array"),
        ((X.expand(2, 3, 8, 8), T, Y), ValueError, "with 1 channels, got .2, 3, 8, 8."),
        ((X.long(), T, Y), TypeError, "expected floating-point data, got torch.int64"),
        (([], T, Y), ValueError, "at least one array"),
        ((None, T, Y), TypeError, "x: expected a tensor, or a list of tensors, got NoneType"),
        (([X], T[:1], Y[:1]), ValueError, "expected .channels, .size."),
        ((X, T[:1], Y), ValueError, "a time for each array, or one number"),
        ((X, torch.tensor([3, 4]), Y), TypeError, "floating-point times"),
        ((X, torch.tensor([0.5, 999.0]), Y), ValueError, "got 0.5 … 999; step k of n is time"),
        ((X, torch.tensor([0.5, float("nan")]), Y), ValueError, "expected times in .0, 1."),
        ((X.double(), T, Y), ValueError, r"expected torch.float32 as the model is"),
        ((X, 1, Y), TypeError, "floating-point times in .0, 1., a tensor, got int"),
        ((X, 2.5, Y), ValueError, "expected times in .0, 1., got 2.5"),
        (([X], T, Y), ValueError, "arrays of a list have no batch axis"),
        ((X, T, torch.tensor([0, 4])), ValueError, "0 … 2, or 3 for none, got 0 … 4"),
        ((X, T, torch.tensor([-1, 0])), ValueError, "got -1 … 0"),
        ((X, T, torch.tensor([0])), ValueError, "a class for each array"),
        ((X, T, torch.tensor([0.0, 1.0])), TypeError, "expected classes, an int64 tensor"),
    ],
)  # fmt: skip
def test_calls(arguments, error, message):
    with pytest.raises(error, match=message):
        DiffusionTransformer(*SIZES, num_classes=3)(*arguments)


def test_classes_for_a_model_without():
    with pytest.raises(ValueError, match="num_classes=0, got classes"):
        DiffusionTransformer(*SIZES)(X, T, Y)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 4]), ValueError, "0 … 2, or 3 for none, got 0 … 4"),
        (torch.tensor([0]), ValueError, r"expected \(2,\), a class for each"),
        ([0, 1], TypeError, "expected classes, an int64 tensor, got list"),
    ],
)  # fmt: skip
def test_labels_are_refused_before_anything_is_sampled(labels, error, message):
    """Asked once by the sampler, since a forward on a device does not wait for their values."""
    model = DiffusionTransformer(*SIZES, num_classes=3)
    with pytest.raises(error, match=message):
        model.check_condition(labels, 2)
    assert model.check_condition(Y, 2) is None
    assert model.check_condition(None, 2) is None


def test_tokens_for_a_model_of_data():
    model = DiffusionTransformer(4, 1, None, 32, 1, 4, vocabulary=5)
    with pytest.raises(TypeError, match="expected int64 tokens, got"):
        model(torch.randn(1, 4, 4), T[:1])
    for token in (-1, 6):
        with pytest.raises(ValueError, match=f"tokens 0 … 4, or 5 for the mask, got {token} …"):
            model(torch.full((1, 4, 4), token), T[:1])


def test_unknown_sizes():
    with pytest.raises(ValueError, match="name: expected one of S/2, S/4"):
        preset("XXL/2")
