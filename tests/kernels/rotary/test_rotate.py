"""`rotate` turns pairs of dimensions by given angles and leaves everything else alone."""

import math

import pytest
import torch
from torch import Tensor

from ropewalk.kernels.rotary import LAYOUTS, Layout, rotate


def tables(seq: int, pairs: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    angles = torch.arange(seq, dtype=dtype)[:, None] * torch.linspace(1.3, 0.01, pairs, dtype=dtype)
    return angles.cos(), angles.sin()


def pair_of(layout: Layout, pair: int, pairs: int) -> tuple[int, int]:
    return (pair, pair + pairs) if layout == "half" else (2 * pair, 2 * pair + 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("head_dim", "pairs"), [(2, 1), (6, 3), (10, 3), (64, 32), (7, 2)])
def test_each_pair_is_multiplied_by_its_own_complex_number(layout, head_dim, pairs):
    x = torch.randn(2, 3, 5, head_dim, dtype=torch.float64)
    cos, sin = tables(5, pairs, torch.float64)
    result = rotate(x, cos, sin, layout=layout)
    for pair in range(pairs):
        a, b = pair_of(layout, pair, pairs)
        expected = torch.complex(x[..., a], x[..., b]) * torch.complex(cos[:, pair], sin[:, pair])
        torch.testing.assert_close(result[..., a], expected.real)
        torch.testing.assert_close(result[..., b], expected.imag)
    assert torch.equal(result[..., 2 * pairs :], x[..., 2 * pairs :])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norms_are_kept_and_opposite_angles_undo_it(layout):
    x = torch.randn(1, 2, 9, 12, dtype=torch.float64)
    cos, sin = tables(9, 6, torch.float64)
    y = rotate(x, cos, sin, layout=layout)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(rotate(y, cos, -sin, layout=layout), x)


def test_layouts_are_one_permutation_apart():
    x = torch.randn(2, 1, 4, 16)
    cos, sin = tables(4, 8)
    to_half = torch.cat((torch.arange(0, 16, 2), torch.arange(1, 16, 2)))
    interleaved = rotate(x, cos, sin, layout="interleaved")
    half = rotate(x[..., to_half], cos, sin, layout="half")
    assert torch.equal(interleaved[..., to_half], half)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_the_result_is_rounded(layout, dtype):
    x = torch.randn(2, 2, 7, 12).to(dtype)
    cos, sin = tables(7, 5)
    result = rotate(x, cos, sin, layout=layout)
    exact = rotate(x.double(), cos.double(), sin.double(), layout=layout)
    assert result.dtype == dtype
    # Half an ulp of the dtype, and a little for the float32 in between.
    torch.testing.assert_close(
        result.double(), exact, rtol=0.51 * torch.finfo(dtype).eps + 2e-7, atol=3e-7
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout):
    cos, sin = tables(5, 4)
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)
    assert not x.is_contiguous()
    assert torch.equal(
        rotate(x, cos, sin, layout=layout), rotate(x.contiguous(), cos, sin, layout=layout)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_table_for_each_sequence(layout):
    x = torch.randn(2, 3, 5, 8)
    cos, sin = tables(10, 4)
    cos, sin = cos.reshape(2, 1, 5, 4), sin.reshape(2, 1, 5, 4)
    together = rotate(x, cos, sin, layout=layout)
    for row in range(2):
        alone = rotate(x[row], cos[row], sin[row], layout=layout)
        assert torch.equal(together[row], alone)


def test_one_vector_at_many_positions():
    cos, sin = tables(6, 2)
    result = rotate(torch.randn(7), cos, sin)
    assert result.shape == (6, 7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients(layout):
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, angles: Tensor) -> Tensor:
        return rotate(x, angles.cos(), angles.sin(), layout=layout)

    assert torch.autograd.gradcheck(function, (x, angles))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiles_to_one_graph_and_runs_on_meta(layout):
    x = torch.randn(1, 2, 3, 10)
    cos, sin = tables(3, 4)
    torch.compiler.reset()  # the limit of recompilations is one for all tests
    compiled = torch.compile(rotate, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        compiled(x, cos, sin, layout=layout), rotate(x, cos, sin, layout=layout)
    )
    meta = rotate(x.to("meta"), cos.to("meta"), sin.to("meta"), layout=layout)
    assert meta.shape == x.shape


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (0, 2, 3, 4), (1, 2, 0, 4)])
def test_sizes_one_and_none(shape):
    cos, sin = tables(shape[-2], 2)
    assert rotate(torch.ones(shape), cos, sin).shape == shape


def test_bad_input():
    x, (cos, sin) = torch.randn(1, 2, 3, 8), tables(3, 4)
    with pytest.raises(ValueError, match="layout: expected one of half, interleaved, got 'neox'"):
        rotate(x, cos, sin, layout="neox")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="equal shapes, got"):
        rotate(x, cos, sin[:, :2])
    with pytest.raises(ValueError, match=r"at most head_dim/2 = 4 angles .* got 8"):
        rotate(x, torch.cat((cos, cos), -1), torch.cat((sin, sin), -1))
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        rotate(x.long(), cos, sin)


def test_quarter_turn():
    x = torch.tensor([1.0, 0.0])
    quarter = torch.tensor([math.pi / 2])
    turned = rotate(x, quarter.cos(), quarter.sin())
    torch.testing.assert_close(turned, torch.tensor([0.0, 1.0]), atol=1e-6, rtol=0)
