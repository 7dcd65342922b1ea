"""Which way `auto` goes, and that all ways give the same."""

import pytest
import torch

from ropewalk.kernels.monarch import matmul, merged_from, monarch_matmul


def factors(n, blocks, rank, **options):
    size = n // blocks
    return (
        torch.randn(blocks, blocks * rank, size, **options),
        torch.randn(blocks, size, blocks * rank, **options),
    )


def way(monkeypatch, rows, right, left, backend="auto"):
    """The name of the function that computes."""
    taken = []
    for name in ("dense_product", "batched_product", "eager_product", "monarch_op"):
        function = getattr(matmul, name)

        def spied(*args, name=name, function=function):
            taken.append(name)
            return function(*args)

        monkeypatch.setattr(matmul, name, spied)
    x = torch.randn(rows, right.shape[0] * right.shape[2], dtype=right.dtype, device=right.device)
    monarch_matmul(x, right, left, backend=backend)
    return taken


@pytest.mark.parametrize(
    ("blocks", "rank", "dense"),
    [
        (16, 1, False),  # 32 times fewer parameters
        (4, 8, False),
        (2, 64, True),  # as many as the matrix has
        (4, 64, True),  # twice as many
    ],
)
def test_many_rows_are_multiplied_by_the_matrix_where_that_is_less_work(
    monkeypatch, blocks, rank, dense
):
    right, left = factors(256, blocks, rank)
    expected = "dense_product" if dense else "eager_product"
    assert way(monkeypatch, 4096, right, left) == [expected]
    least = merged_from(right, left)
    assert (least is not None and least <= 4096) == dense


def test_the_break_even_is_where_it_says(monkeypatch):
    right, left = factors(64, 4, 16)
    rows = merged_from(right, left)
    assert rows is not None
    assert rows > 1
    assert way(monkeypatch, rows - 1, right, left) == ["batched_product"]
    monkeypatch.undo()
    assert way(monkeypatch, rows, right, left) == ["dense_product"]


def test_few_rows_are_plain_products(monkeypatch):
    assert way(monkeypatch, 1, *factors(256, 8, 2)) == ["batched_product"]
    monkeypatch.undo()
    assert way(monkeypatch, 2000, *factors(256, 8, 2)) == ["eager_product"]
    monkeypatch.undo()
    assert way(monkeypatch, 1, *factors(256, 16, 1)) == ["eager_product"]


@pytest.mark.parametrize("backend", ["reference", "dense"])
def test_what_is_asked_for_is_taken(monkeypatch, backend):
    right, left = factors(64, 4, 4)
    expected = {"reference": "eager_product", "dense": "dense_product"}[backend]
    for rows in (1, 3000):
        assert way(monkeypatch, rows, right, left, backend) == [expected]
        monkeypatch.undo()


def test_elsewhere_only_fewer_multiplications_count():
    more, fewer = factors(256, 4, 64, device="meta"), factors(256, 16, 4, device="meta")
    assert merged_from(*fewer) is None
    parameters, dense = sum(f.numel() for f in more), 256 * 256
    assert parameters > dense
    assert merged_from(*more) == -(-dense * 64 // (parameters - dense))
