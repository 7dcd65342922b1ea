"""The Monarch product against the dense one: by matrix, by features and by tokens.

Matrices are square, and the rank is that of square blocks unless the case says otherwise: then the
factors have 2 / blocks of the dense matrix's parameters. On a CPU float32, one thread, and one case
in bfloat16; on a GPU bfloat16 and 16384 tokens.

Cases are named by pass, tokens × features, blocks × rank, and dtype.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.case import Case, Suite
from benchmarks.monarch import ProductShape, ProductWorkload
from benchmarks.peers.monarch import FORMS
from benchmarks.roofline import monarch_work
from benchmarks.suites.monarch_goals import cpu_goals, cuda_goals

CPU_TOKENS = 1024
CPU_MAIN = (4096, 64)
"""Features and blocks of the case that the goals name."""
CPU_MATRICES = (CPU_MAIN, (2048, 8), (1024, 4), (512, 4), (256, 4))
SWEPT_BLOCKS = 16
CPU_FEATURES = (256, 512, 1024, 2048, 4096)
SWEPT_TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
SWEPT_MATRIX = (1024, 8)
CUDA_TOKENS = 16384
CUDA_FEATURES = (512, 1024, 2048, 4096)
CUDA_BLOCKS = (4, 16, 64)

OTHERS = ("merged", "dense", "two-bmm", "einsum-compiled", "low-rank", "block-diagonal")
CPU_PEERS = ("auto", "reference", *OTHERS)
CUDA_PEERS = ("auto", "triton", *FORMS, "reference", *OTHERS)


def make(device: str, quick: bool) -> Suite:
    """The suite for a device; its goals are judged by cases of the full size only."""
    shapes = (_cuda_shapes if device == "cuda" else _cpu_shapes)(quick)
    cases: dict[str, Case] = {}
    for shape, figure, x in shapes:
        for backward in (False, True):
            case = _case(replace(shape, backward=backward), figure, x, quick)
            # A matrix that a sweep passes through is the same case.
            if case.name not in cases or figure:
                cases[case.name] = case
    full = _names(device)
    goals = partial(cuda_goals if device == "cuda" else cpu_goals, full)
    return Suite("monarch", tuple(cases.values()), goals)


Named = tuple[ProductShape, str, str]
"""A shape, the figure it belongs to, and that figure's axis."""


def _cpu_shapes(quick: bool) -> Iterator[Named]:
    if quick:
        yield from _quick_shapes("cpu", torch.float32)
        return
    main = ProductShape(CPU_TOKENS, *CPU_MAIN, torch.float32, "cpu")
    for features, blocks in CPU_MATRICES:
        yield replace(main, features=features, blocks=blocks), "", ""
    yield replace(main, features=2048, blocks=16, dtype=torch.bfloat16), "", ""
    for features in CPU_FEATURES:
        yield replace(main, features=features, blocks=SWEPT_BLOCKS), "by features", "features"
    swept = ProductShape(CPU_TOKENS, *SWEPT_MATRIX, torch.float32, "cpu")
    for tokens in SWEPT_TOKENS:
        yield replace(swept, tokens=tokens), "by tokens", "tokens"


def _cuda_shapes(quick: bool) -> Iterator[Named]:
    if quick:
        yield from _quick_shapes("cuda", torch.bfloat16)
        return
    for blocks in CUDA_BLOCKS:
        for features in CUDA_FEATURES:
            if blocks**2 <= features:  # more slices than that stay empty
                shape = ProductShape(CUDA_TOKENS, features, blocks, torch.bfloat16, "cuda")
                yield shape, f"by features, {blocks} blocks", "features"


def _quick_shapes(device: str, dtype: torch.dtype) -> Iterator[Named]:
    small = ProductShape(24, 64, 4, dtype, device)
    yield replace(small, blocks=8), "", ""
    for features in (32, 48, 64):
        yield replace(small, features=features, rank=2), "by features", "features"
    for tokens in (1, 7):
        yield replace(small, tokens=tokens), "by tokens", "tokens"


def _case(shape: ProductShape, figure: str, x: str, quick: bool) -> Case:
    work = monarch_work(
        tokens=shape.tokens,
        inputs=shape.features,
        outputs=shape.features,
        parameters=shape.factor_parameters,
        itemsize=shape.dtype.itemsize,
        backward=shape.backward,
    )
    peers = CUDA_PEERS if shape.device == "cuda" else CPU_PEERS
    return Case(
        name=_name(shape),
        parameters=shape.parameters,
        work=work,
        peers=tuple(peer for peer in peers if _takes_part(peer, shape, quick)),
        make=lambda: ProductWorkload(shape),
        figure=f"{figure}, {_pass(shape)}" if figure else "",
        x=x or "features",
    )


def _takes_part(peer: str, shape: ProductShape, quick: bool) -> bool:
    if peer in FORMS:
        return not shape.backward
    return not (quick and peer == "einsum-compiled")  # a compilation takes seconds


def _pass(shape: ProductShape) -> str:
    return "training" if shape.backward else "forward"


def _name(shape: ProductShape) -> str:
    sizes = f"{shape.tokens}x{shape.features}/{shape.blocks}x{shape.slice_rank}"
    return f"{_pass(shape)}/{sizes}/{shape.parameters['dtype']}"


def _names(device: str) -> dict[ProductShape, str]:
    """The full-size cases that goals look at, by shape."""
    shapes = (_cuda_shapes if device == "cuda" else _cpu_shapes)(False)
    both = (replace(s, backward=backward) for s, *_ in shapes for backward in (False, True))
    return {shape: _name(shape) for shape in both}
