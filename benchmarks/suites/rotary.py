"""Rotation of queries and keys, with and without norms before it: bound by memory, not arithmetic.

The measure is the share of the copy bandwidth; `of_copy` in the result. The sizes are those of the
suite `rotary_attention`.
"""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.case import Case, Suite
from benchmarks.goals import Results, judge, median_ms
from benchmarks.roofline import rotary_work
from benchmarks.rotation import RotationShape, RotationWorkload
from ropewalk.kernels.rotary import LAYOUTS

LENGTHS = {"cuda": (4096, 16384, 65536), "cpu": (1024, 8192)}


def make(device: str, quick: bool) -> Suite:
    """The suite for a device."""
    if device == "cuda":
        base = RotationShape(1, 32, 8, 0, 128, torch.bfloat16, device, "half")
    else:
        base = RotationShape(1, 8, 8, 0, 64, torch.float32, device, "half")
    if quick:
        base = replace(base, heads=2, kv_heads=1, head_dim=32)
    cases = []
    for layout in LAYOUTS:
        for norm in (False, True):
            for backward in (False, True):
                for length in (64,) if quick else LENGTHS[device]:
                    cases.append(
                        _case(
                            replace(
                                base, layout=layout, norm=norm, backward=backward, length=length
                            ),
                            quick,
                        )
                    )
    return Suite("rotary", tuple(cases), _cuda_goals if device == "cuda" else _cpu_goals)


def _name(layout: str, norm: bool, backward: bool, length: int) -> str:
    kind = f"{layout}-norm" if norm else layout
    return f"{kind}/{'training' if backward else 'forward'}/{length}"


def _case(shape: RotationShape, quick: bool) -> Case:
    name = _name(shape.layout, shape.norm, shape.backward, shape.length)
    peers = ["triton" if shape.device == "cuda" else "auto"]
    if not shape.backward:
        peers.append(f"{peers[0]}-in-place")
    peers.append("torch")
    if shape.device == "cuda":
        peers += ["reference", "flash-attn"]
    if not quick and shape.length > LENGTHS[shape.device][0]:  # a compilation takes seconds
        peers.append("torch-compiled")
    heads = shape.batch * (shape.heads + shape.kv_heads)
    work = rotary_work(
        elements=heads * shape.length * shape.head_dim,
        table_elements=shape.length * shape.head_dim,
        itemsize=torch.empty((), dtype=shape.dtype).element_size(),
        backward=shape.backward,
        norm=shape.norm,
    )
    return Case(
        name=name,
        parameters=shape.parameters,
        work=work,
        peers=tuple(peers),
        make=lambda: RotationWorkload(shape),
        figure=name.rpartition("/")[0].replace("/", ", "),
        x="length",
    )


def _goals(results: Results, ours: str, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    return [
        judge(
            f"{kind} at {length}: speed over compiled torch",
            "at least",
            1.0,
            lambda case=f"{kind}/{length}": (
                median_ms(results, case, "torch-compiled") / median_ms(results, case, ours)
            ),
        )
        for kind in ("half/forward", "half/training", "half-norm/forward", "half-norm/training")
        for length in lengths
    ]


def _cuda_goals(results: Results) -> list[dict[str, Any]]:
    return _goals(results, "triton", LENGTHS["cuda"][1:])


def _cpu_goals(results: Results) -> list[dict[str, Any]]:
    return []
