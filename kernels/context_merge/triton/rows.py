"""Where a row lies, and blocks of it.

Rows are counted question by question, the contexts' first and the unconditional one last. Logits
are float32 from the load on: Triton's interpreter computes bfloat16 wrongly. Offsets are 64-bit.
"""

# pyright: reportGeneralTypeIssues=false
# (It believes that calls from one kernel to another never return.)

import triton
import triton.language as tl


@triton.jit
def row_start(
    logits, unconditional, row, contexts, question_stride, context_stride, token_stride,
    other_question_stride, other_token_stride,
):  # fmt: skip
    """Pointer to a row's first logit, and the distance between two of its logits."""
    question = row // (contexts + 1)
    context = row - question * (contexts + 1)
    question = question.to(tl.int64)
    if context < contexts:
        start = logits + question * question_stride + context.to(tl.int64) * context_stride
    else:
        start = unconditional + question * other_question_stride
    step = tl.where(context < contexts, token_stride, other_token_stride)
    return start, step


@triton.jit
def load_logits(start, step, columns, inside):
    """Logits in float32, −∞ outside."""
    logits = tl.load(start + columns.to(tl.int64) * step, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, logits, float("-inf"))


@triton.jit
def load_listed(
    start, step, listed, first, count, vocabulary, BLOCKS: tl.constexpr, WIDTH: tl.constexpr
):
    """Logits (BLOCKS · WIDTH,) of the blocks of a list from `first` on, −∞ past its end."""
    at = first + tl.arange(0, BLOCKS)
    block = tl.load(listed + at, mask=at < count, other=0)
    columns = block[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    logits = load_logits(start, step, columns, (at < count)[:, None] & (columns < vocabulary))
    return tl.reshape(logits, [BLOCKS * WIDTH])
