"""OrthogonalRotary is exp(Σ n_a B_a) with commuting skew-symmetric generators."""

import copy
import itertools

import pytest
import torch

from ropewalk.blocks.rotary import AxialRotary, OrthogonalRotary, RotaryEmbedding

F64 = torch.float64


def randomised(head_dim: int, axes: int = 1, dtype: torch.dtype = F64) -> OrthogonalRotary:
    rotary = OrthogonalRotary(head_dim, axes).to(dtype)
    with torch.no_grad():
        rotary.basis.normal_()
        rotary.frequencies.normal_()
    return rotary


def matrix_at(rotary: OrthogonalRotary, position: list[float]) -> torch.Tensor:
    """R at a position, read off by rotating the unit vectors."""
    at = torch.tensor([position], dtype=F64)
    at = at[:, 0] if rotary.axes == 1 else at
    units = torch.eye(rotary.head_dim, dtype=F64)[:, None, None]
    return rotary.rotate(units, at)[:, 0, 0].mT


@pytest.mark.parametrize(("head_dim", "axes"), [(2, 1), (6, 1), (8, 2), (12, 3)])
def test_it_is_the_exponential_of_its_generators(head_dim, axes):
    rotary = randomised(head_dim, axes)
    generators = rotary.generators(F64)
    torch.testing.assert_close(generators, -generators.mT)
    for a, b in itertools.combinations(generators, 2):
        torch.testing.assert_close(a @ b, b @ a)
    for _ in range(3):
        position = (6 * torch.randn(axes)).tolist()
        exponent = torch.einsum("a,aij->ij", torch.tensor(position, dtype=F64), generators)
        torch.testing.assert_close(matrix_at(rotary, position), torch.matrix_exp(exponent))


@pytest.mark.parametrize(("head_dim", "axes"), [(6, 1), (8, 2), (12, 3)])
def test_relative_property(head_dim, axes):
    rotary = randomised(head_dim, axes)
    m, n = torch.randint(-20, 20, (2, axes)).double()
    product = matrix_at(rotary, m.tolist()).mT @ matrix_at(rotary, n.tolist())
    torch.testing.assert_close(product, matrix_at(rotary, (n - m).tolist()))
    identity = torch.eye(head_dim, dtype=F64)
    torch.testing.assert_close(matrix_at(rotary, [0.0] * axes), identity)


def test_any_special_orthogonal_matrix_has_integer_powers_of_this_form():
    matrix = torch.linalg.qr(torch.randn(6, 6, dtype=F64)).Q
    if torch.linalg.det(matrix) < 0:
        matrix = torch.cat((-matrix[:, :1], matrix[:, 1:]), dim=1)
    # Real eigenvectors of Q: each plane is spanned by the two parts of a complex eigenvector.
    values, vectors = torch.linalg.eig(matrix)
    upper = values.imag > 1e-9
    assert upper.sum() == 3
    basis = torch.cat((vectors[:, upper].real, -vectors[:, upper].imag), dim=1) * 2**0.5
    if torch.linalg.det(basis) < 0:
        basis[:, 3] *= -1
        angles = values[upper].angle() * torch.tensor([-1.0, 1.0, 1.0], dtype=F64)
    else:
        angles = values[upper].angle()
    rotary = OrthogonalRotary(6).to(F64)
    with torch.no_grad():
        rotary.basis.copy_(_logarithm(basis))
        rotary.frequencies.copy_(angles[None])
    for n in (1, 2, 5):
        torch.testing.assert_close(
            matrix_at(rotary, [float(n)]), torch.linalg.matrix_power(matrix, n)
        )


def _logarithm(orthogonal: torch.Tensor) -> torch.Tensor:
    """A real skew-symmetric logarithm of an orthogonal matrix of determinant 1."""
    values, vectors = torch.linalg.eig(orthogonal)
    return (vectors @ torch.diag(1j * values.angle()) @ torch.linalg.inv(vectors)).real


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_starts_as_ordinary_rotary_position(dtype):
    x, positions = torch.randn(2, 3, 7, 8).to(dtype), torch.arange(7) * 50
    actual = OrthogonalRotary(8).rotate(x, positions)
    torch.testing.assert_close(actual, RotaryEmbedding(8).rotate(x, positions))
    coordinates = torch.randint(0, 30, (2, 7, 2))
    actual = OrthogonalRotary(8, 2).rotate(x, coordinates)
    torch.testing.assert_close(actual, AxialRotary(8, 2).rotate(x, coordinates))


def test_norms_are_kept_to_the_precision_of_float32_even_in_a_bfloat16_module():
    rotary = randomised(16, dtype=torch.bfloat16)
    x = torch.randn(1, 2, 9, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = rotary.rotate(x, torch.arange(9) + 1000)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


def test_the_basis_does_not_matter_to_scores_if_projections_absorb_it():
    rotary = randomised(8)
    plain = copy.deepcopy(rotary)
    with torch.no_grad():
        plain.basis.zero_()
    basis, positions = rotary.orthogonal_basis(F64), torch.arange(6)
    query, key = torch.randn(2, 1, 1, 6, 8, dtype=F64)
    learned = rotary.rotate(query, positions) @ rotary.rotate(key, positions).mT
    absorbed = plain.rotate(query @ basis, positions) @ plain.rotate(key @ basis, positions).mT
    torch.testing.assert_close(learned, absorbed)


@pytest.mark.parametrize("axes", [1, 2])
def test_gradients(axes):
    rotary = randomised(4, axes)
    positions = torch.randn(3, dtype=F64) if axes == 1 else torch.randn(3, axes, dtype=F64)
    x = torch.randn(1, 2, 3, 4, dtype=F64, requires_grad=True)

    def function(x, basis, frequencies):
        parameters = {"basis": basis, "frequencies": frequencies}
        return torch.func.functional_call(rotary, parameters, (x, positions))

    arguments = (x, rotary.basis, rotary.frequencies)
    assert torch.autograd.gradcheck(function, arguments)


def test_gradients_flow_from_the_first_step():
    rotary = OrthogonalRotary(8)
    query, key = torch.randn(2, 1, 2, 5, 8)
    scores = rotary(query, torch.arange(5)) @ rotary(key, torch.arange(5)).mT
    scores.square().mean().backward()
    assert rotary.basis.grad is not None
    assert rotary.frequencies.grad is not None
    assert rotary.basis.grad.triu(1).abs().max() > 0
    assert (rotary.frequencies.grad.abs() > 0).all()


def test_compiles_to_one_graph_with_its_backward():
    rotary = randomised(8, 2, torch.float32)
    x, coordinates = torch.randn(1, 2, 5, 8), torch.randint(0, 9, (5, 2))
    expected = rotary(x, coordinates)
    expected_gradient = torch.autograd.grad(expected.sin().sum(), rotary.basis)[0]
    torch.compiler.reset()  # the limit of recompilations is one for all tests
    compiled = torch.compile(rotary, fullgraph=True, backend="aot_eager")(x, coordinates)
    gradient = torch.autograd.grad(compiled.sin().sum(), rotary.basis)[0]
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


def test_meta_device_state_dict_and_strides():
    with torch.device("meta"):
        rotary = OrthogonalRotary(8, 2)
    assert rotary.basis.is_meta
    assert rotary(torch.randn(1, 1, 3, 8, device="meta"), torch.zeros(3, 2, device="meta")).is_meta
    rotary.to_empty(device="cpu").reset_parameters()
    assert torch.equal(rotary.frequencies, OrthogonalRotary(8, 2).frequencies)
    source = randomised(8, 2, torch.float32)
    rotary.load_state_dict(source.state_dict())
    x, coordinates = torch.randn(2, 5, 3, 8).transpose(1, 2), torch.arange(10).reshape(5, 2)
    assert torch.equal(rotary(x, coordinates), source(x.contiguous(), coordinates))
    assert torch.equal(copy.deepcopy(rotary)(x, coordinates), source(x, coordinates))


def test_bad_input():
    with pytest.raises(ValueError, match=r"rotary_dim: expected an even integer ≥ 2 .* got 7"):
        OrthogonalRotary(7)
    with pytest.raises(ValueError, match="expected a multiple of 2·axes = 4, got 6"):
        OrthogonalRotary(6, 2)
    with pytest.raises(ValueError, match="axes: expected an integer ≥ 1, got 0"):
        OrthogonalRotary(6, 0)
    with pytest.raises(ValueError, match="base: expected"):
        OrthogonalRotary(6, base=-1.0)
    with pytest.raises(ValueError, match=r"positions: expected \(…, seq, 2\), got \(5, 3\)"):
        OrthogonalRotary(8, 2)(torch.randn(1, 1, 5, 8), torch.zeros(5, 3))
    with pytest.raises(TypeError, match=r"got torch\.bfloat16"):
        OrthogonalRotary(8)(torch.randn(1, 1, 5, 8), torch.zeros(5, dtype=torch.bfloat16))
