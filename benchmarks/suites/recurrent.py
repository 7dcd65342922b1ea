"""Recurrences: a layer beside torch's GRU, the scans alone, and linear recurrences.

A layer is a projection and a diagonal GRU, of as many channels as its inputs have, as nn.GRU of
equal width is with dense recurrent matrices. A scan alone starts from what the gates get.

Cases are named by kind, pass, batch × time × channels, and dtype.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.case import Case, Suite
from benchmarks.recurrent import GATES, ROWS, RecurrentShape, RecurrentWorkload
from benchmarks.roofline import recurrence_work
from benchmarks.suites.recurrent_goals import cpu_goals, cuda_goals

CPU_TIMES = (1024, 4096, 16384)
CPU_BATCHES = (1, 8)
CPU_WIDTHS = (64, 256)
CUDA_TIMES = (512, 2048, 8192)
CUDA_WIDTHS = (256, 1024)
CUDA_BATCH = 16
LONG = 16384
LONG_CHANNELS = 64
LOOP_STEPS = 4096
"""A loop in torch over more of them takes seconds a call."""

LAYER = ("auto", "nn.GRU")
LINEAR = ("copy", "associative-scan")
CPU_LAYER = (*LAYER, "numba", "reference", "reference-sequential", "loop")
CPU_SCAN = ("auto", "numba", "numba-newton", "reference", "reference-sequential", "loop")
CPU_LINEAR = ("auto", "numba", "reference", "loop", *LINEAR)
CUDA_LAYER = (*LAYER, "triton-newton", "triton-sequential", "reference")
CUDA_SCAN = ("auto", "triton-newton", "triton-sequential", "reference", "loop-compiled", "copy")
CUDA_LINEAR = (
    *("auto", "triton", "reference", *LINEAR),
    *("accelerated-scan", "accelerated-scan-warp", "hgrn"),
)


def make(device: str, quick: bool) -> Suite:
    """The suite for a device; its goals are judged by cases of the full size only."""
    cases = tuple(_case(*named, quick) for named in _both(device, quick))
    full = {shape: _name(shape) for shape, _ in _both(device, False)}
    goals = partial(cuda_goals if device == "cuda" else cpu_goals, full)
    return Suite("recurrent", cases, goals)


def _both(device: str, quick: bool) -> Iterator[tuple[RecurrentShape, str]]:
    """Shapes and the figures they belong to, forward and training."""
    shapes = _quick_shapes(device) if quick else _shapes(device)
    for shape, figure in shapes:
        for backward in (False, True):
            title = f"{figure}, {'training' if backward else 'forward'}" if figure else ""
            yield replace(shape, backward=backward), title


def _shapes(device: str) -> Iterator[tuple[RecurrentShape, str]]:
    if device == "cuda":
        yield from _cuda_shapes()
        return
    one = RecurrentShape("gru", 1, LONG, LONG_CHANNELS, torch.float32, "cpu")
    for batch in CPU_BATCHES:
        for width in CPU_WIDTHS:
            for time in CPU_TIMES:
                shape = replace(one, batch=batch, time=time, channels=width, projected=True)
                yield shape, f"GRU by time, batch {batch}, {width} channels"
    for kind in ("gru", "lstm", "tanh"):
        yield replace(one, kind=kind, batch=4, time=4096), ""
    for time in CPU_TIMES:
        shape = replace(one, kind="linear", batch=8, time=time, channels=256)
        yield shape, "linear recurrence by time"
    yield replace(one, kind="linear"), ""


def _cuda_shapes() -> Iterator[tuple[RecurrentShape, str]]:
    one = RecurrentShape("gru", 1, LONG, LONG_CHANNELS, torch.float32, "cuda")
    for width in CUDA_WIDTHS:
        for time in CUDA_TIMES:
            sizes = {"batch": CUDA_BATCH, "time": time, "channels": width}
            layer = replace(one, **sizes, dtype=torch.bfloat16, projected=True)
            yield layer, f"GRU by time, {width} channels"
    yield replace(one, projected=True), ""
    yield one, ""
    large = replace(one, batch=8, time=2048, channels=2048)
    for dtype in (torch.float32, torch.bfloat16):
        yield replace(large, dtype=dtype), ""
    for time in CUDA_TIMES:
        shape = replace(large, kind="linear", time=time)
        yield shape, "linear recurrence by time"
    yield replace(large, kind="linear", dtype=torch.bfloat16), ""
    for kind in ("lstm", "tanh"):
        yield replace(large, kind=kind, channels=512), ""
    yield replace(one, kind="linear"), ""


def _quick_shapes(device: str) -> Iterator[tuple[RecurrentShape, str]]:
    small = RecurrentShape("gru", 2, 64, 8, torch.float32, device, projected=True)
    for time in (32, 64):
        yield replace(small, time=time), "GRU by time"
    for kind in ("gru", "lstm", "tanh"):
        yield replace(small, kind=kind, projected=False), ""
    yield replace(small, kind="linear", projected=False), "linear recurrence by time"


def _case(shape: RecurrentShape, figure: str, quick: bool) -> Case:
    linear = shape.kind == "linear"
    work = recurrence_work(
        steps=shape.batch * shape.time,
        channels=shape.channels,
        per_step=2 if linear else GATES[shape.kind],
        again=1 if linear else GATES[shape.kind],
        per_state=shape.parts,
        weights=0 if linear else ROWS[shape.kind] * shape.channels,
        itemsize=shape.dtype.itemsize,
        projected=shape.projected,
        backward=shape.backward,
    )
    return Case(
        name=_name(shape),
        parameters=shape.parameters,
        work=work,
        peers=tuple(peer for peer in _peers(shape) if _takes_part(peer, shape, quick)),
        make=lambda: RecurrentWorkload(shape),
        figure=figure,
        x="time",
    )


def _peers(shape: RecurrentShape) -> tuple[str, ...]:
    if shape.device == "cuda":
        scan = CUDA_LINEAR if shape.kind == "linear" else CUDA_SCAN
        return CUDA_LAYER if shape.projected else scan
    scan = CPU_LINEAR if shape.kind == "linear" else CPU_SCAN
    return CPU_LAYER if shape.projected else scan


def _takes_part(peer: str, shape: RecurrentShape, quick: bool) -> bool:
    if peer in ("copy", "associative-scan", "loop-compiled") and shape.backward:
        return False
    if peer == "loop-compiled":  # the case that a goal names; a compilation takes a minute
        return not quick and shape.time == LONG
    return peer != "loop" or shape.time <= LOOP_STEPS


def _name(shape: RecurrentShape) -> str:
    kind = f"{shape.kind}-layer" if shape.projected else shape.kind
    pass_ = "training" if shape.backward else "forward"
    sizes = f"{shape.batch}x{shape.time}x{shape.channels}"
    return f"{kind}/{pass_}/{sizes}/{shape.parameters['dtype']}"
