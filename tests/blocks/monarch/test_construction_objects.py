"""A construction as an object: printed in a line, called as what it is."""

import pytest
import torch

from ropewalk.blocks.monarch.constructions import dft, hadamard
from ropewalk.blocks.monarch.convolutions import circulant, toeplitz


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (
            dft(64),
            "Construction(64, sizes=(8, 8), dtype=torch.complex64, parameters=1024 (25.0% of "
            "dense))",
        ),
        (
            hadamard(32, (2, 4, 4), dtype=torch.float64),
            "Construction(32, sizes=(4, 4, 2), dtype=torch.float64, parameters=320 (31.2% of "
            "dense))",
        ),
        (
            toeplitz(torch.ones(300), torch.ones(200)),
            "ConstructionProduct(200, 300, sizes=(23, 22, 23, 22), dtype=torch.complex64, "
            "parameters=45540 (75.9% of dense))",
        ),
    ],
    ids=["dft", "hadamard", "toeplitz"],
)
def test_it_is_printed_in_a_line_without_its_factors(made, expected) -> None:
    assert repr(made) == str(made) == expected
    assert sum(factor.numel() for factor in made.factors) == made.parameters


@pytest.mark.parametrize("made", [dft(12), hadamard(8), circulant(torch.arange(6.0))])
def test_calling_it_applies_it(made) -> None:
    x = torch.randn(3, made.to_dense().shape[1])
    assert torch.equal(made(x), made.apply(x))
