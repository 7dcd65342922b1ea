"""The denoiser: whole DiTs, and the ops between their products.

A DiT is the published model with random weights, in its own form and in the library's. On a GPU it
is XL/2 with 32 images of 32 × 32 × 4, in bfloat16; on a CPU S/2 with four, in float32. The ops have
the same sizes, and on a GPU those of 256 images too, the published batch: with 32 images a tensor
is 19 MB, and an op takes some ten microseconds, in which launches count.

Cases of models are named by size, pass, batch and dtype; those of ops by kind, pass, batch × tokens
× dim, and dtype.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.case import Case, Suite
from benchmarks.denoiser import ModelShape, ModelWorkload
from benchmarks.denoiser_ops import KINDS, OpShape, OpWorkload
from benchmarks.roofline import denoiser_op_work, denoiser_work
from benchmarks.suites.denoiser_goals import cpu_goals, cuda_goals

MODEL = ("auto", "auto-compiled", "dit", "dit-compiled", "diffusers")
OP = ("torch", "torch-compiled", "copy")


def make(device: str, quick: bool) -> Suite:
    """The suite for a device; its goals are judged by cases of the full size only."""
    models = [_model_case(shape, quick) for shape in _models(device, quick)]
    training, forward = models
    ops = [_op_case(shape, quick) for shape in _ops(device, quick)]
    goals = partial(
        cuda_goals if device == "cuda" else cpu_goals,
        {shape: _model_name(shape) for shape in _models(device, False)},
        {shape: _op_name(shape) for shape in _ops(device, False)},
    )
    # What the goals want most comes first, where a machine is lent by the minute.
    return Suite("denoiser", (training, *ops, forward), goals)


def _models(device: str, quick: bool) -> Iterator[ModelShape]:
    if quick:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        shape = ModelShape("tiny", 3, 32, 2, 2, dtype, device, side=8, classes=10)
    elif device == "cuda":
        shape = ModelShape("XL/2", 32, 1152, 28, 16, torch.bfloat16, device)
    else:
        shape = ModelShape("S/2", 4, 384, 12, 6, torch.float32, device)
    yield replace(shape, backward=True)
    yield shape


def _ops(device: str, quick: bool) -> Iterator[OpShape]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    batches = (2, 3) if quick else (256, 32) if device == "cuda" else (2, 16)
    for batch in batches:
        for kind in KINDS:
            if quick:
                shape = OpShape(kind, batch, 16, 32, 2, dtype, device)
            elif device == "cuda":
                dim = 3072 if kind == "gated-activation" else 1152
                shape = OpShape(kind, batch, 256, dim, 16, dtype, device)
            else:
                dim = 1024 if kind == "gated-activation" else 384
                shape = OpShape(kind, batch, 256, dim, 6, dtype, device)
            for backward in (False, True):
                yield replace(shape, backward=backward)


def _model_case(shape: ModelShape, quick: bool) -> Case:
    return Case(
        name=_model_name(shape),
        parameters=shape.parameters,
        work=denoiser_work(shape),
        # Compilations of a whole model take a minute.
        peers=tuple(peer for peer in MODEL if not (quick and peer.endswith("-compiled"))),
        make=lambda: ModelWorkload(shape),
    )


def _op_case(shape: OpShape, quick: bool) -> Case:
    ours = ("triton", "reference") if shape.device == "cuda" else ("auto", "reference")
    return Case(
        name=_op_name(shape),
        parameters=shape.parameters,
        work=denoiser_op_work(shape),
        peers=(
            *ours,
            *(peer for peer in OP if peer != "torch-compiled" or _compiles(shape, quick)),
        ),
        make=lambda: OpWorkload(shape),
        figure=f"{shape.kind}, {_pass(shape)}",
        x="batch",
    )


def _compiles(shape: OpShape, quick: bool) -> bool:
    """A compilation takes seconds: once for each op and pass."""
    return not quick and shape.batch == (256 if shape.device == "cuda" else 16)


def _pass(shape: ModelShape | OpShape) -> str:
    return "training" if shape.backward else "forward"


def _model_name(shape: ModelShape) -> str:
    return f"{shape.size}/{_pass(shape)}/{shape.batch}/{shape.parameters['dtype']}"


def _op_name(shape: OpShape) -> str:
    sizes = f"{shape.batch}x{shape.tokens}x{shape.dim}"
    return f"{shape.kind}/{_pass(shape)}/{sizes}/{shape.parameters['dtype']}"
