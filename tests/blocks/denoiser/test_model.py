"""Any size, any number of axes, several sizes at once, every mixer and feed-forward."""

import pytest
import torch

from ropewalk.blocks.denoiser import PRESETS, PUBLISHED, DiffusionTransformer, preset
from ropewalk.blocks.denoiser.feed_forward import default_width
from ropewalk.blocks.denoiser.patches import patchify, unpatchify

OPTIONS = {
    "defaults": {},
    "recurrent": {"mixer": "recurrent"},
    "hybrid": {"mixer": "hybrid", "recurrence": "min_gru"},
    "named": {"mixer": ("recurrent", "attention", "attention")},
    "monarch": {"feed_forward": "monarch"},
    "dit": {"rotary": "absolute", "feed_forward": "gelu"},
    "no positions": {"rotary": "none", "qk_norm": True},
    "registers": {"registers": 3},
    "registers, absolute": {"registers": 3, "rotary": "absolute"},
    "registers, recurrent": {"registers": 2, "mixer": "recurrent"},
    "shared": {"adaln": "shared"},
    "low rank": {"adaln": "low_rank", "adaln_rank": 3},
    "rms, qk_norm": {"norm": "rms", "qk_norm": True},
    "sigma": {"learn_sigma": True, "bias": False},
    "per block": {"embed_condition_per_block": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@every_option
def test_several_sizes_at_once_give_what_each_gives_alone(make_denoiser, options):
    model = make_denoiser(**options)
    images = [torch.randn(1, 8, 8), torch.randn(1, 4, 12), torch.randn(1, 2, 2)]
    t, y = torch.rand(3), torch.tensor([0, 1, 10])
    together = model(images, t, y)
    for image, out, time, label in zip(images, together, t, y, strict=True):
        alone = model(image[None], time[None], label[None])[0]
        torch.testing.assert_close(out, alone, rtol=1e-4, atol=1e-5)
        assert out.shape == (model.out_channels, *image.shape[1:])


@every_option
def test_a_new_model_is_the_identity_and_predicts_zero(options):
    model = DiffusionTransformer(8, 2, 1, 32, 3, 4, num_classes=10, **options)
    x = torch.randn(2, 1, 8, 8)
    assert not model(x, torch.rand(2)).any()
    condition = torch.randn(2, 32)
    for block in model.blocks:
        shared = model.shared_modulation
        vectors = block.modulation(condition if shared is None else shared(condition))
        assert not vectors.any()


@pytest.mark.parametrize(
    ("size", "patch", "other"),
    [((16,), (4,), (12,)), ((4, 6), (2, 3), (8, 3)), ((2, 4, 4), (1, 2, 2), (3, 2, 6))],
    ids=["sequence", "image", "video"],
)
@pytest.mark.parametrize("mixer", ["attention", "recurrent"])
@pytest.mark.parametrize("rotary", ["axial", "absolute"])
def test_any_number_of_axes(make_denoiser, size, patch, other, mixer, rotary):
    model = make_denoiser(size, patch, 2, mixer=mixer, rotary=rotary, num_classes=0)
    for shape in (size, other):
        x = torch.randn(2, 2, *shape)
        y = model(x, torch.rand(2))
        assert y.shape == x.shape
        # Every place sees every other one.
        x.requires_grad_()
        first = model(x, torch.rand(2))[0].flatten()[0]
        (seen,) = torch.autograd.grad(first, x)
        assert (seen[0] != 0).all()
        assert not seen[1].any()


def test_patches_are_those_of_a_convolution_and_come_back():
    x = torch.randn(2, 3, 4, 6)
    kernel = torch.randn(5, 3, 2, 3)
    expected = torch.nn.functional.conv2d(x, kernel, stride=(2, 3)).flatten(2).mT
    torch.testing.assert_close(patchify(x, (2, 3)) @ kernel.flatten(1).mT, expected)
    last = patchify(x, (2, 3)).unflatten(-1, (3, 6)).mT.flatten(2)  # (*patch, channels)
    assert torch.equal(unpatchify(last, (2, 2), (2, 3)), x)


def test_rotary_positions_make_the_model_blind_to_where_a_grid_begins(make_denoiser):
    """Attention sees differences of places only: a torus of shifted content has equal scores."""
    model = make_denoiser(rotary="axial", depth=1)
    coordinates = torch.tensor([[0, 0], [1, 3], [2, 1]])
    q, k = torch.randn(1, 4, 3, 8), torch.randn(1, 4, 3, 8)
    scores = [
        model.rotary.rotate(q, coordinates + shift) @ model.rotary.rotate(k, coordinates + shift).mT
        for shift in (0, 5)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_positions_matter(make_denoiser):
    for options in ({}, {"rotary": "absolute"}, {"mixer": "recurrent"}):
        model = make_denoiser(**options)
        x, t = torch.randn(1, 1, 8, 8), torch.rand(1)
        moved = model(x.roll(2, dims=-1), t).roll(-2, dims=-1)
        assert (moved - model(x, t)).abs().max() > 1e-3
    blind = make_denoiser(rotary="none")
    x = torch.randn(1, 1, 8, 8)
    t = torch.rand(1)
    torch.testing.assert_close(
        blind(x.roll(2, dims=-1), t).roll(-2, dims=-1), blind(x, t), rtol=1e-4, atol=1e-5
    )


def test_recurrent_blocks_take_turns_in_the_axes(make_denoiser):
    model = make_denoiser(mixer="recurrent", depth=4)
    assert [block.mixer.axis for block in model.blocks] == [1, 0, 1, 0]


def test_tokens_are_embedded_and_predicted_by_one_table(make_denoiser):
    model = make_denoiser((2, 5), 1, None, vocabulary=7, num_classes=0)
    tokens = torch.randint(8, (3, 2, 5))  # 7 is the mask
    logits = model(tokens, torch.rand(3))
    assert logits.shape == (3, 2, 5, 7)
    logits.sum().backward()
    assert model.embedding.weight.grad[:7].abs().sum(-1).gt(0).all()
    several = model([tokens[0], tokens[1, :1]], torch.rand(2))
    assert [tuple(x.shape) for x in several] == [(2, 5, 7), (1, 5, 7)]


def test_registers_change_the_output_and_have_none(make_denoiser):
    model = make_denoiser(registers=2)
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    before = model(x, t)
    torch.nn.init.normal_(model.registers, std=3.0)
    assert before.shape == x.shape
    assert (model(x, t) - before).abs().max() > 1e-3


def test_no_class_is_the_last_row(make_denoiser):
    model = make_denoiser()
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    assert model.null_condition == 10
    torch.testing.assert_close(model(x, t), model(x, t, torch.tensor([10, 10])))
    assert (model(x, t) - model(x, t, torch.tensor([0, 3]))).abs().max() > 1e-3
    assert make_denoiser(num_classes=0).null_condition is None


def test_one_time_for_all(make_denoiser):
    model, x = make_denoiser(), torch.randn(3, 1, 8, 8)
    expected = model(x, torch.full((3,), 0.25))
    torch.testing.assert_close(model(x, torch.tensor(0.25)), expected)
    torch.testing.assert_close(model(x, 0.25), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_published_sizes(name):
    """MATH: 32.9, 130, 458 and 675 million parameters at patches of 2."""
    millions = {"S": "32.9", "B": "130", "L": "458", "XL": "675"}
    model = preset(name, num_classes=1000, **PUBLISHED, device="meta")
    width, patch = name.split("/")
    count = sum(p.numel() for p in model.parameters())
    # Patches of 4 and 8 have wider first and last layers: 4 channels in, 8 out.
    wider = model.dim * (4 + 8) * (int(patch) ** 2 - 4) + 8 * (int(patch) ** 2 - 4)
    assert f"{(count - wider) / 1e6:.3g}" == millions[width]


@pytest.mark.parametrize("name", ["S/2", "B/2", "L/2", "XL/2"])
def test_swiglu_has_as_many_parameters_as_gelu(name):
    counts = [
        sum(
            p.numel()
            for p in preset(name, feed_forward=kind, num_classes=1000, device="meta").parameters()
        )
        for kind in ("gelu", "swiglu")
    ]
    assert counts[1] / counts[0] == pytest.approx(1, abs=2e-3)
    assert default_width("swiglu", 1152) == 3072


def test_shared_and_low_rank_modulations_save_their_third():
    counts = {
        kind: sum(
            p.numel()
            for p in preset("XL/2", adaln=kind, num_classes=1000, device="meta").parameters()
        )
        for kind in ("full", "shared", "low_rank")
    }
    modulation = 28 * 6 * 1152 * 1153
    assert modulation / counts["full"] == pytest.approx(1 / 3, abs=0.02)
    assert counts["full"] - counts["shared"] == modulation - 6 * 1152 * 1153 - 28 * 6 * 1152
    assert counts["low_rank"] < counts["full"] - 0.9 * modulation
