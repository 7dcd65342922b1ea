"""A peer's call as serving engines run it: recorded once in a CUDA graph, then replayed.

A replay costs the host one launch, however many kernels the call has. Beside the eager figure it
tells what the device needs from what the host takes to ask for it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.attention import Forward
from benchmarks.case import Unavailable

SUFFIX = ":captured"
WARM_UPS = 3


class Recording(NamedTuple):
    """A recorded call: how to run it again, and where its result then is."""

    replay: Callable[[], Any]
    output: Tensor


def captured(
    forward: Forward, record: Callable[[Callable[[], Tensor]], Recording] | None = None
) -> Forward:
    """The same function, recorded at its first call.

    Args:
        forward: what is recorded.
        record: how; by default in a CUDA graph.

    Returns:
        A function of the tensors that it was first called with, which it reads anew each time.
    """
    recorded: dict[tuple[int, ...], Recording] = {}

    def replay(*inputs: Tensor) -> Tensor:
        where = tuple(x.data_ptr() for x in inputs)
        if where not in recorded:
            recorded[where] = (record or in_graph)(lambda: forward(*inputs))
        recorded[where].replay()
        return recorded[where].output

    return replay


def in_graph(call: Callable[[], Tensor]) -> Recording:
    """Records a call in a CUDA graph.

    Raises:
        Unavailable: a graph cannot hold the call, because it reads a value back for example.
    """
    # Whatever is compiled, tuned or allocated once must be so before.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = call()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # each library says in its own way that it cannot
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(f"not captured: {lines[0][:300]}") from error
    return Recording(graph.replay, output)
