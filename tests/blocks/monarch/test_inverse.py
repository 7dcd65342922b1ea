"""Transpose, inverse, solve and determinant against the dense matrix."""

import pytest
import torch

from ropewalk.blocks.monarch.inverse import (
    log_abs_det,
    monarch_inverse,
    monarch_solve,
    monarch_transpose,
)

F64 = torch.float64
# k, l, r, p, s
ANY = [(1, 1, 1, 1, 1), (2, 3, 1, 5, 4), (3, 2, 2, 7, 3), (4, 1, 3, 2, 5), (1, 4, 2, 3, 6)]
# k, l, r; then p = l·r and s = k·r
SQUARE = [(1, 1, 1), (3, 3, 1), (4, 2, 1), (2, 5, 1), (2, 3, 2), (1, 1, 4)]


def factors(k, outputs, r, p, s, dtype=F64):
    generator = torch.Generator().manual_seed(k + 10 * outputs)
    draw = F64 if not dtype.is_complex else torch.complex128
    right = torch.randn(k, outputs * r, p, dtype=draw, generator=generator)
    left = torch.randn(outputs, s, k * r, dtype=draw, generator=generator)
    return right.to(dtype), left.to(dtype)


def square(k, outputs, r, dtype=F64):
    return factors(k, outputs, r, outputs * r, k * r, dtype)


def dense(right, left):
    """The definition: W[(l s), (k p)] = Σ_r L[l, s, (k r)] R[k, (l r), p], slice by slice."""
    k, rows, p = right.shape
    outputs, s, _ = left.shape
    r = rows // outputs
    matrix = right.new_zeros(outputs * s, k * p)
    for i in range(k):
        for o in range(outputs):
            block = left[o, :, i * r : (i + 1) * r] @ right[i, o * r : (o + 1) * r]
            matrix[o * s : (o + 1) * s, i * p : (i + 1) * p] = block
    return matrix


@pytest.mark.parametrize("sizes", ANY, ids=str)
def test_transpose_is_the_transposed_matrix_and_its_own_inverse(sizes):
    right, left = factors(*sizes)
    turned = monarch_transpose(right, left)
    torch.testing.assert_close(dense(*turned), dense(right, left).mT)
    back = monarch_transpose(*turned)
    assert torch.equal(back[0], right)
    assert torch.equal(back[1], left)
    assert back[0].data_ptr() == right.data_ptr()


@pytest.mark.parametrize("sizes", SQUARE, ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 4), (0,)], ids=str)
def test_solve_inverts(sizes, batch):
    right, left = square(*sizes)
    matrix = dense(right, left)
    x = torch.randn(*batch, matrix.shape[1], dtype=F64)
    solved = monarch_solve(right, left, x @ matrix.mT)
    assert solved.shape == x.shape
    torch.testing.assert_close(solved, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", SQUARE, ids=str)
def test_the_inverse_is_monarch_in_the_mirrored_layout(sizes):
    right, left = square(*sizes)
    inverse = monarch_inverse(right, left)
    k, outputs, r = sizes
    assert inverse[0].shape == (outputs, k * r, k * r)
    assert inverse[1].shape == (k, outputs * r, outputs * r)
    matrix = dense(right, left)
    identity = torch.eye(len(matrix), dtype=F64)
    torch.testing.assert_close(dense(*inverse) @ matrix, identity, rtol=1e-10, atol=1e-10)
    twice = monarch_inverse(*inverse)
    torch.testing.assert_close(twice, (right, left), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", SQUARE, ids=str)
def test_determinant_is_the_blocks(sizes):
    right, left = square(*sizes)
    expected = torch.linalg.slogdet(dense(right, left)).logabsdet
    torch.testing.assert_close(log_abs_det(right, left), expected)
    torch.testing.assert_close(log_abs_det(*monarch_transpose(right, left)), expected)
    torch.testing.assert_close(log_abs_det(*monarch_inverse(right, left)), -expected)


def test_a_singular_matrix_has_the_determinant_zero():
    right, left = square(3, 3, 1)
    right[1] = 0
    assert log_abs_det(right, left) == -torch.inf


@pytest.mark.parametrize("sizes", [(2, 3, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [F64, torch.complex128], ids=str)
def test_gradients(sizes, dtype):
    right, left = square(*sizes, dtype)
    y = torch.randn(2, left.shape[0] * left.shape[1], dtype=dtype)
    inputs = tuple(x.requires_grad_() for x in (right, left, y))
    assert torch.autograd.gradcheck(monarch_solve, inputs)
    assert torch.autograd.gradcheck(monarch_inverse, inputs[:2])
    assert torch.autograd.gradcheck(log_abs_det, inputs[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_solved_in_single(dtype):
    right, left = square(4, 4, 1, dtype)
    right, left = (right + 4 * torch.eye(4)).to(dtype), (left + 4 * torch.eye(4)).to(dtype)
    y = torch.randn(5, 16).to(dtype)
    exact = monarch_solve(right.double(), left.double(), y.double())
    # Single precision's error and one rounding.
    rounding = max(torch.finfo(dtype).eps, 1e-5)
    solved = monarch_solve(right, left, y)
    assert solved.dtype == dtype
    torch.testing.assert_close(solved.double(), exact, rtol=rounding, atol=1e-5)
    assert all(factor.dtype == dtype for factor in monarch_inverse(right, left))
    value = log_abs_det(right, left)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), log_abs_det(right.double(), left.double()))


def test_strided_factors_and_right_hand_sides():
    right, left = square(4, 2, 1)
    views = monarch_transpose(*monarch_transpose(right, left))
    mirrored = monarch_transpose(right, left)
    y = torch.randn(8, 3, 2, dtype=F64).permute(2, 1, 0)
    torch.testing.assert_close(monarch_solve(*views, y), monarch_solve(right, left, y.contiguous()))
    plain = monarch_solve(*(x.contiguous() for x in mirrored), y)
    torch.testing.assert_close(monarch_solve(*mirrored, y), plain)


def test_compiled_whole_and_on_the_meta_device():
    right, left = square(3, 3, 1, torch.float32)
    y = torch.randn(2, 9)
    compiled = torch.compile(monarch_solve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(right, left, y), monarch_solve(right, left, y))
    meta = [x.to("meta") for x in (right, left, y)]
    assert monarch_solve(*meta).shape == (2, 9)
    assert monarch_inverse(*meta[:2])[0].shape == (3, 3, 3)


def test_a_compiled_solve_refuses_singular_blocks():
    right, left = square(3, 3, 1)
    y = torch.randn(2, 9, dtype=F64)
    compiled = torch.compile(monarch_solve, fullgraph=True, backend="aot_eager")
    inverted = torch.compile(monarch_inverse, fullgraph=True, backend="aot_eager")
    right[1] = 0
    for call in (lambda: compiled(right, left, y), lambda: inverted(right, left)):
        with pytest.raises(torch.linalg.LinAlgError, match="singular"):
            call()


def test_vmap():
    matrices = [square(2, 3, 1) for _ in range(3)]
    right, left = (
        torch.stack([pair[i] * (n + 1) for n, pair in enumerate(matrices)]) for i in (0, 1)
    )
    y = torch.randn(3, 4, 6, dtype=F64)
    each = torch.stack([monarch_solve(*given) for given in zip(right, left, y, strict=True)])
    torch.testing.assert_close(torch.vmap(monarch_solve)(right, left, y), each)
    shared = torch.vmap(monarch_solve, in_dims=(None, None, 0))
    torch.testing.assert_close(shared(right[0], left[0], y)[0], each[0])
    inverses = torch.vmap(monarch_inverse)(right, left)
    torch.testing.assert_close(inverses[0][2], monarch_inverse(right[2], left[2])[0])
    right[1, 1] = 0
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"right: .* singular ones: block 1 \(of 0…1\)"
    ):
        shared(right[1], left[1], y)
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"right: .* in one of the matrices that vmap"
    ):
        torch.vmap(monarch_solve)(right, left, y)


def test_singular_blocks_are_named():
    right, left = square(4, 3, 1)
    right[2] = 0
    with pytest.raises(torch.linalg.LinAlgError, match=r"right: expected.* block 2 \(of 0…3\)"):
        monarch_solve(right, left, torch.ones(12, dtype=F64))
    left[:] = 0
    with pytest.raises(torch.linalg.LinAlgError, match=r"left: .*ones: blocks 0, 1, 2 \(of 0…2\)"):
        monarch_inverse(right, left)


@pytest.mark.gpu
def test_on_a_device():
    right, left = (factor.cuda() for factor in square(8, 8, 1))
    x = torch.randn(5, 64, dtype=F64, device="cuda")
    solved = monarch_solve(right, left, x @ dense(right, left).mT)
    torch.testing.assert_close(solved, x, rtol=1e-8, atol=1e-8)
    right[3] = 0
    with pytest.raises(torch.linalg.LinAlgError, match=r"singular ones: block 3 \(of 0…7\)"):
        monarch_solve(right, left, x)


RIGHT, LEFT = square(2, 3, 1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: monarch_solve(*factors(2, 3, 1, 5, 4), torch.ones(12, dtype=F64)),
            ValueError,
            "expected square blocks.*take blocks of p = 3 input and s = 2 output features",
        ),
        (lambda: monarch_inverse(*factors(2, 3, 1, 3, 4)), ValueError, "expected square blocks"),
        (lambda: log_abs_det(*factors(2, 3, 1, 4, 2)), ValueError, "expected square blocks"),
        (
            lambda: monarch_solve(RIGHT, LEFT, torch.ones(2, 5, dtype=F64)),
            ValueError,
            r"y: expected \(..., 6\)",
        ),
        (
            lambda: monarch_solve(RIGHT, LEFT, torch.ones(6)),
            ValueError,
            "y: expected torch.float64",
        ),
        (
            lambda: monarch_solve(RIGHT, LEFT, [1.0] * 6),
            TypeError,
            "y: expected a tensor, got list",
        ),
        (
            lambda: monarch_transpose(RIGHT, LEFT.float()),
            ValueError,
            "left: expected torch.float64",
        ),
        (lambda: monarch_transpose(RIGHT.long(), LEFT), ValueError, "right: expected a floating"),
        (lambda: monarch_transpose(RIGHT, LEFT[:, :, :1]), ValueError, "one rank r"),
        (lambda: monarch_transpose(RIGHT[0], LEFT), ValueError, "right: expected"),
    ],
)
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words):
        call()
