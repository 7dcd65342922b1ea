"""The output forms: what they do to a table, and that hidden states may be turned instead."""

import pytest
import torch

from ropewalk.blocks.heads import OUTPUT_FORMS, TiedEmbedding
from ropewalk.blocks.heads.output_forms import permute, shuffle_shape, unpermute


@pytest.mark.parametrize("output", ["identity", "swap", "shuffle"])
@pytest.mark.parametrize("dim", [4, 6, 12, 30, 64])
def test_turning_the_hidden_state_is_turning_the_table(output, dim):
    table, hidden = torch.randn(9, dim).double(), torch.randn(5, dim).double()
    expected = hidden @ permute(table, output).mT
    torch.testing.assert_close(unpermute(hidden, output) @ table.mT, expected)
    assert torch.equal(unpermute(permute(table, output), output), table)


def test_swap_exchanges_the_halves():
    assert permute(torch.arange(6), "swap").tolist() == [3, 4, 5, 0, 1, 2]


def test_shuffle_transposes():
    assert permute(torch.arange(6), "shuffle").tolist() == [0, 3, 1, 4, 2, 5]


@pytest.mark.parametrize(
    ("dim", "shape"), [(768, (24, 32)), (6, (2, 3)), (64, (8, 8)), (7, (1, 7)), (1, (1, 1))]
)
def test_shuffle_takes_the_squarest_shape(dim, shape):
    assert shuffle_shape(dim) == shape


@pytest.mark.parametrize("output", OUTPUT_FORMS)
def test_logits_are_those_of_the_output_matrix(output):
    head = TiedEmbedding(11, 6, output=output, bias=True, dtype=torch.float64)
    torch.nn.init.normal_(head.bias)
    hidden = torch.randn(3, 4, 6, dtype=torch.float64)
    expected = torch.nn.functional.linear(hidden, head.output_matrix(), head.bias)
    torch.testing.assert_close(head.logits(hidden), expected)


@pytest.mark.parametrize("output", ["swap", "shuffle", "orthogonal", "untied"])
def test_no_form_is_the_identity(output):
    head = TiedEmbedding(11, 6, output=output)
    assert not torch.allclose(head.output_matrix(), head.weight, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_projection_starts_orthogonal_to_its_rounding(dtype):
    projection = TiedEmbedding(11, 24, output="orthogonal", dtype=dtype).state_dict()["projection"]
    assert projection.dtype == dtype
    product = projection.double() @ projection.double().mT
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(product, torch.eye(24).double(), rtol=0, atol=8 * eps)


@pytest.mark.parametrize(
    ("output", "dim", "words"),
    [
        ("swop", 6, "output: expected one of identity, swap, shuffle, orthogonal, untied"),
        ("swap", 7, "expected an even embedding_dim, whose halves are swapped, got 7; take"),
        ("shuffle", 7, "got 7, of which no matrix can be made to transpose; take 'orthogonal'"),
        ("shuffle", 1, "expected an embedding_dim with a divisor"),
    ],
)
def test_forms_that_do_not_exist_are_refused(output, dim, words):
    with pytest.raises(ValueError, match=words):
        TiedEmbedding(11, dim, output=output)
