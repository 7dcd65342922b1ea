"""Who computes recurrences.

auto, numba, reference, triton
                     `newton_scan` or `linear_scan` with that backend
numba-newton, triton-newton, triton-sequential, reference-sequential
                     `newton_scan` with that backend and algorithm
nn.GRU               torch's own of equal width, dense recurrent matrices: on a GPU cuDNN's,
                     which takes TF32 for float32
loop                 the steps in torch, one after another
loop-compiled        32 steps at a time through torch.compile, in a loop, forward only: all of
                     a long sequence would compile for hours
copy                 no recurrence: a copy that moves as many bytes as the least work does
associative-scan     torch's own, forward only, because its gradients are silently zero; on a
                     GPU compiled, as its pointwise form must be
accelerated-scan, accelerated-scan-warp
                     the Triton and the CUDA form of that library, on tensors that lie with
                     time last as they want it, transposed beforehand
hgrn                 flash-linear-attention's scan of this recurrence, with the logarithm of a
                     made beforehand and part of its gradient afterwards
"""

import copy
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from benchmarks.case import Unavailable
from benchmarks.recurrent import Layer, gate_inputs, step
from ropewalk.kernels.linear_scan import linear_scan
from ropewalk.kernels.newton_scan import newton_scan

if TYPE_CHECKING:
    from benchmarks.recurrent import RecurrentShape, RecurrentWorkload

BACKENDS = ("auto", "numba", "reference", "triton")
ALGORITHMS = ("newton", "sequential")
COMPILED_STEPS = 32
TF32_TOLERANCE = 5e-3


def build(name: str, workload: "RecurrentWorkload") -> Layer:
    """What a peer times.

    Raises:
        Unavailable: it cannot take part.
    """
    if name == "copy":
        return _copy(workload)
    if name == "nn.GRU":
        return _torch_gru(workload)
    if name in SCANS:
        return SCANS[name](name, workload)
    if name == "loop":
        function = _loop(workload.shape)
    elif name == "loop-compiled":
        function = _compiled_loop(workload.shape)
    else:
        function = _library(name, workload)
    shown = workload.compared if workload.shape.kind == "linear" else _all
    return Layer(function, workload.tensors, workload.expected, shown=shown)


def _all(x: Tensor) -> Tensor:
    return x


def _library(name: str, workload: "RecurrentWorkload") -> Callable[..., Tensor]:
    backend, _, algorithm = name.partition("-")
    shape = workload.shape
    # A backend that the op refuses here is absent, not wrong: asked on a tiny problem.
    _refused(backend, shape)

    def linear(a: Tensor, b: Tensor) -> Tensor:
        return linear_scan(a, b, backend=cast("Any", backend))

    def cell(*tensors: Tensor) -> Tensor:
        return newton_scan(
            gate_inputs(shape, tensors),
            tensors[-1],
            cell=cast("Any", shape.kind),
            algorithm=cast("Any", algorithm or "auto"),
            backend=cast("Any", backend),
        ).states

    return linear if shape.kind == "linear" else cell


def _refused(backend: str, shape: "RecurrentShape") -> None:
    one = torch.zeros(1, 1, 1, device=shape.device, dtype=shape.dtype)
    try:
        linear_scan(one, one, backend=cast("Any", backend))
    except ValueError as error:
        if "backend" not in str(error):
            raise
        raise Unavailable(str(error)) from None


def _loop(shape: "RecurrentShape") -> Callable[..., Tensor]:
    def linear(a: Tensor, b: Tensor) -> Tensor:
        x, states = torch.zeros_like(b[:, 0]), []
        for gate, value in zip(a.unbind(1), b.unbind(1), strict=True):
            x = gate * x + value
            states.append(x)
        return torch.stack(states, dim=1)

    def cell(*tensors: Tensor) -> Tensor:
        inputs = gate_inputs(shape, tensors)
        return _steps(shape.kind, inputs, tensors[-1], _zeros(shape))

    return linear if shape.kind == "linear" else cell


def _zeros(shape: "RecurrentShape") -> Tensor:
    state = (2, shape.channels) if shape.parts == 2 else (shape.channels,)
    return torch.zeros(shape.batch, *state, device=shape.device, dtype=shape.dtype)


def _steps(kind: str, inputs: Tensor, weights: Tensor, state: Tensor) -> Tensor:
    states = []
    for x in inputs.unbind(1):
        state = step(kind, x, state, weights)
        states.append(state)
    return torch.stack(states, dim=1)


def _compiled_loop(shape: "RecurrentShape") -> Callable[..., Tensor]:
    if shape.backward or shape.kind == "linear":
        raise Unavailable("the forward of a cell only")
    if shape.time % COMPILED_STEPS:
        raise Unavailable(f"a time that is no multiple of {COMPILED_STEPS}")
    torch.compiler.reset()
    compiled = torch.compile(_steps, dynamic=False, fullgraph=True)

    def cell(*tensors: Tensor) -> Tensor:
        state, pieces = _zeros(shape), []
        for piece in gate_inputs(shape, tensors).split(COMPILED_STEPS, dim=1):
            # Every piece has the strides of the first, so that one compilation serves all.
            pieces.append(compiled(shape.kind, piece.contiguous(), tensors[-1], state))
            state = pieces[-1][:, -1].clone()
        return torch.cat(pieces, dim=1)

    return cell


def _torch_gru(workload: "RecurrentWorkload") -> Layer:
    shape = workload.shape
    if shape.kind != "gru" or not shape.projected:
        raise Unavailable("it has a projection of its own, and no other cell")
    torch.manual_seed(0)
    width = shape.channels
    module = nn.GRU(width, width, batch_first=True, device=shape.device, dtype=shape.dtype)
    module.requires_grad_(shape.backward)
    tensors = (workload.tensors[0], *module.parameters())

    def function(x: Tensor, *_: Tensor) -> Tensor:
        return module(x)[0]

    def expected() -> list[Tensor]:
        wide, x = copy.deepcopy(module).double(), tensors[0].detach().double()
        x.requires_grad_(shape.backward)
        states = wide(x)[0]
        if not shape.backward:
            return [states]
        given = (x, *wide.parameters())
        return [states, *torch.autograd.grad(states, given, workload.states_grad.double())]

    tf32 = shape.device == "cuda" and shape.dtype == torch.float32
    return Layer(function, tensors, expected, TF32_TOLERANCE if tf32 else None)


def _copy(workload: "RecurrentWorkload") -> Layer:
    """Half as many numbers as the least work moves: a copy reads and writes each."""
    if workload.shape.backward:
        raise Unavailable("forward only: it has no gradient")
    size = sum(t.numel() for t in workload.tensors) + workload.states_grad.numel()
    source = workload.draw(max(1, size // 2))
    target = torch.empty_like(source)
    return Layer(target.copy_, (source,), lambda: [source.double()])


def _associative(_name: str, workload: "RecurrentWorkload") -> Layer:
    _only_linear(workload)
    if workload.shape.backward:
        raise Unavailable("its gradients are silently zero")
    try:
        operators = importlib.import_module("torch._higher_order_ops.associative_scan")
        scan = operators.associative_scan
    except (ImportError, AttributeError):
        raise Unavailable("this release of torch has no associative_scan") from None
    on_gpu = workload.shape.device == "cuda"

    def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> Any:
        return right[0] * left[0], right[0] * left[1] + right[1]

    def function(a: Tensor, b: Tensor) -> Tensor:
        mode = "pointwise" if on_gpu else "generic"
        return scan(combine, (a, b), dim=1, combine_mode=mode)[1]

    if on_gpu:
        torch.compiler.reset()
        function = torch.compile(function, dynamic=False)
    return Layer(function, workload.tensors, workload.expected, shown=workload.compared)


def _accelerated(name: str, workload: "RecurrentWorkload") -> Layer:
    _only_linear(workload)
    form = "warp" if name.endswith("-warp") else "scalar"
    scan = _imported("accelerated-scan", f"accelerated_scan.{form}", workload).scan
    tensors = tuple(workload.leaf(t.mT.contiguous()) for t in workload.tensors)
    return Layer(
        lambda a, b: scan(a, b),
        tensors,
        workload.expected,
        shown=lambda x: workload.compared(x.mT),
        states_grad=workload.states_grad.mT.contiguous(),
    )


def _hgrn(_name: str, workload: "RecurrentWorkload") -> Layer:
    _only_linear(workload)
    chunk_hgrn = _imported("flash-linear-attention", "fla.ops.hgrn", workload).chunk_hgrn
    a, b = workload.tensors
    gate = workload.leaf(a.detach().float().log())

    def expected() -> list[Tensor]:
        states, *gradients = workload.expected()
        if gradients:  # of the logarithm
            gradients[0] = gradients[0] * workload.compared(a.detach()).double()
        return [states, *gradients]

    return Layer(
        lambda gate, b: chunk_hgrn(b, gate)[0], (gate, b), expected, shown=workload.compared
    )


def _only_linear(workload: "RecurrentWorkload") -> None:
    if workload.shape.kind != "linear":
        raise Unavailable("linear recurrences only")


def _imported(distribution: str, module: str, workload: "RecurrentWorkload") -> Any:
    if workload.shape.device != "cuda":
        raise Unavailable(f"{distribution} needs a GPU")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise Unavailable(f"{distribution} is not installed") from None
    except Exception as error:  # a library made for another torch or triton fails in any way
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Unavailable(f"{distribution} cannot be imported: {reason}") from None


SCANS: dict[str, Callable[[str, "RecurrentWorkload"], Layer]] = {
    "associative-scan": _associative,
    "accelerated-scan": _accelerated,
    "accelerated-scan-warp": _accelerated,
    "hgrn": _hgrn,
}
