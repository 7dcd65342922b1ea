"""Launches of the forward: two kernels with the hidden values between them, or one."""

from dataclasses import replace

from torch import Tensor

from ropewalk.kernels.launching import arithmetic, run
from ropewalk.kernels.monarch.problem import Problem
from ropewalk.kernels.monarch.triton.configurations import Configuration, Sizes, configuration
from ropewalk.kernels.monarch.triton.form import Form, choose, group_of
from ropewalk.kernels.monarch.triton.fused import fused_kernel
from ropewalk.kernels.monarch.triton.layout import awkward, hidden_blocks, readable
from ropewalk.kernels.monarch.triton.products import product
from ropewalk.kernels.sizes import ceil_divide, power_of_two


def forward(
    problem: Problem, keep_hidden: bool, form: Form | None = None
) -> tuple[Tensor, Tensor | None]:
    """The result and the hidden values; see `ropewalk.kernels.monarch.problem`.

    Args:
        problem: the product.
        keep_hidden: whether the hidden values are wanted.
        form: which kernels run, for tests and measurements; form.py chooses if none.

    Raises:
        ValueError: the fused form is asked for hidden values, which it never has in memory.
    """
    p = replace(
        problem,
        x=readable(problem.x, 0),
        right=readable(problem.right, 1),
        left=readable(problem.left, 1),
    )
    shape = (p.output_blocks, p.tokens, p.output_size)
    y = p.x.new_empty(shape if p.block_major else (shape[1], shape[0] * shape[2]))
    if p.tokens == 0:
        return y, p.x.new_empty(0) if keep_hidden else None
    one = _fused_configuration(p)
    if form is None:
        columns = max(p.output_size, p.output_blocks * p.rank)
        depth = max(p.input_size, p.input_blocks * p.rank)
        two = configuration("product", Sizes(p.tokens, columns, depth), p.x.dtype, p.x.device)
        form = choose(p, two, one, keep_hidden)
    if form == "fused":
        if keep_hidden:
            raise ValueError(
                "form: expected 'two kernels' where hidden values are to be kept, got 'fused', "
                "which has none in memory"
            )
        _fused(p, y, one)
        return y, None
    hidden = p.x.new_empty(p.tokens * p.width)
    first_product(p, hidden)
    product(
        hidden_blocks(hidden, p).flatten(2),
        p.left,
        p.blocks_of(y)[..., None],
        bias=p.bias,
        activation=p.activation,
    )
    return y, hidden if keep_hidden else None


def first_product(problem: Problem, hidden: Tensor) -> None:
    """Writes the hidden values, flat."""
    product(problem.x, problem.right, hidden_blocks(hidden, problem).transpose(1, 2))


def _fused_configuration(p: Problem) -> Configuration:
    sizes = Sizes(p.tokens, p.output_blocks * p.output_size, p.input_size)
    slow = awkward(p.x, 0), awkward(p.right, 1)
    return configuration("fused", sizes, p.x.dtype, p.x.device, awkward=slow)


def _fused(p: Problem, y: Tensor, how: Configuration) -> None:
    """Writes the result without hidden values."""
    x, right, left = p.x, p.right, p.left
    group, out = group_of(p, how.columns), p.blocks_of(y)
    columns = min(how.columns, max(16, power_of_two(group * p.output_size)))
    programs = ceil_divide(p.tokens, how.rows) * ceil_divide(p.output_blocks, group)
    run(
        fused_kernel,
        (programs * ceil_divide(group * p.output_size, columns),),
        x,
        x=x,
        right=right,
        left=left,
        bias=None if p.bias is None else p.bias.contiguous(),
        y=out,
        tokens=p.tokens,
        input_blocks=p.input_blocks,
        input_size=p.input_size,
        output_blocks=p.output_blocks,
        output_size=p.output_size,
        rank=p.rank,
        group=group,
        x_token=x.stride(0),
        x_block=x.stride(1),
        x_step=x.stride(2),
        right_block=right.stride(0),
        right_row=right.stride(1),
        right_step=right.stride(2),
        left_block=left.stride(0),
        left_row=left.stride(1),
        left_step=left.stride(2),
        y_token=out.stride(0),
        y_block=out.stride(1),
        ROWS=how.rows,
        COLUMNS=columns,
        RANKS=max(16, power_of_two(group * p.rank)),
        DEPTH=how.depth,
        ONE_STEP=p.input_size <= how.depth,
        BIAS=p.bias is not None,
        ACTIVATION=p.activation,
        **how.launch(),
        **arithmetic(x.dtype),
    )
