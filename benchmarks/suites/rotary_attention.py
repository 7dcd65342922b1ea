"""Rotary attention: prefill, training and decoding under every distance rule.

On a GPU bfloat16, head_dim 128, 32 query heads on 8 key heads, as an 8B model has; on a CPU
float32, head_dim 64, 8 heads, as a small one. A case of a distance rule holds the plain rule's
time too (`:plain`), so that their ratio is of one run.
"""

from dataclasses import replace
from typing import NamedTuple

import torch

from benchmarks.attention import COPY, AttentionWorkload, Shape
from benchmarks.case import Case, Kind, Suite
from benchmarks.peers.graph import SUFFIX
from benchmarks.roofline import attention_work
from benchmarks.suites.rotary_attention_goals import cpu_goals, cuda_goals
from ropewalk.blocks.rotary import DualChunk, LeakyReRoPE, Plain, ReRoPE, SelfExtend
from ropewalk.kernels.rotary_attention import DistanceRule

PASSES = ("forward", "training")
MAIN_WINDOW = {"cuda": 2048, "cpu": 512}


class Sizes(NamedTuple):
    """What a device is measured with."""

    base: Shape
    lengths: tuple[int, ...]
    training: tuple[int, ...]
    windows: tuple[int, ...]
    window_lengths: tuple[int, ...]
    rules_length: int
    decode: tuple[int, ...]
    decode_batches: tuple[int, ...]


def _sizes(device: str, quick: bool) -> Sizes:
    if device == "cuda":
        base = Shape(1, 32, 8, 0, 0, 128, torch.bfloat16, device, Plain())
        lengths = (2048, 4096, 8192, 16384, 32768, 65536)
        sizes = Sizes(base, lengths, lengths, (1024, 4096), (16384, 32768, 65536), 16384,
                      (8192, 32768, 131072), (1, 8))  # fmt: skip
    else:
        base = Shape(1, 8, 8, 0, 0, 64, torch.float32, device, Plain())
        lengths = (512, 1024, 2048, 4096, 8192)
        sizes = Sizes(base, lengths, (512, 2048, 4096), (128, 2048), (8192,), 4096, (8192, 32768),
                      (1,))  # fmt: skip
    if quick:
        base = replace(base, heads=2, kv_heads=1, head_dim=32)
        return Sizes(base, (96,), (96,), (32,), (96,), 96, (64,), (1,))
    return sizes


def make(device: str, quick: bool) -> Suite:
    """The suite for a device."""
    sizes = _sizes(device, quick)
    window = 16 if quick else MAIN_WINDOW[device]
    cases: list[Case] = []
    for name in PASSES:
        backward = name == "training"
        for length in sizes.training if backward else sizes.lengths:
            shape = replace(sizes.base, queries=length, keys=length, backward=backward)
            cases.append(_case(f"plain/{name}/{length}", shape, f"plain, {name}"))
            rerope = replace(shape, rule=ReRoPE(window))
            figure = f"ReRoPE, window {window}, {name}"
            cases.append(_case(f"rerope-{window}/{name}/{length}", rerope, figure))
        for other in sizes.windows:
            for length in sizes.window_lengths:
                if device == "cpu" and backward:
                    continue
                shape = replace(
                    sizes.base, queries=length, keys=length, backward=backward, rule=ReRoPE(other)
                )
                cases.append(_case(f"rerope-{other}/{name}/{length}", shape))
        for rule_name, rule in _other_rules(window).items():
            if device == "cpu" and backward:
                continue
            length = sizes.rules_length
            shape = replace(sizes.base, queries=length, keys=length, backward=backward, rule=rule)
            cases.append(_case(f"{rule_name}/{name}/{length}", shape))
    for batch in sizes.decode_batches:
        for rule_name, rule in {"plain": Plain(), f"rerope-{window}": ReRoPE(window)}.items():
            for keys in sizes.decode:
                shape = replace(sizes.base, batch=batch, queries=1, keys=keys, rule=rule)
                figure = f"decoding, {rule_name}, batch {batch}"
                cases.append(_case(f"{rule_name}/decode/batch-{batch}/{keys}", shape, figure))
    if device == "cpu":
        length = 128 if quick else 16384
        shape = replace(sizes.base, queries=length, keys=length, rule=ReRoPE(window))
        cases.append(_case(f"rerope-{window}/memory/{length}", shape, kind="memory"))
    goals = cuda_goals if device == "cuda" else cpu_goals
    return Suite("rotary_attention", tuple(cases), goals)


def _other_rules(window: int) -> dict[str, DistanceRule]:
    return {
        f"leaky-{window}": LeakyReRoPE(window, 16),
        f"self-extend-{window}": SelfExtend(8, window),
        f"dual-chunk-{2 * window}": DualChunk(2 * window, window // 2),
    }


def _case(name: str, shape: Shape, figure: str = "", kind: Kind = "time") -> Case:
    work = attention_work(
        batch=shape.batch,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        queries=shape.queries,
        keys=shape.keys,
        head_dim=shape.head_dim,
        itemsize=torch.empty((), dtype=shape.dtype).element_size(),
        backward=shape.backward,
    )
    return Case(
        name=name,
        parameters=shape.parameters,
        work=work,
        peers=_memory_peers() if kind == "memory" else _peers(shape, name),
        make=lambda: AttentionWorkload(shape),
        figure=figure,
        kind=kind,
    )


def _memory_peers() -> tuple[str, ...]:
    return ("auto", "reference", "sdpa:plain")


def _peers(shape: Shape, name: str) -> tuple[str, ...]:
    main = f"rerope-{MAIN_WINDOW[shape.device]}/" in name or "rerope-16/" in name
    return (_cuda_peers if shape.device == "cuda" else _cpu_peers)(shape, main=main)


def _cuda_peers(shape: Shape, *, main: bool) -> tuple[str, ...]:
    """Peers on a GPU; what takes a compilation of tens of seconds only where it matters.

    Args:
        shape: the case.
        main: whether its rule is ReRoPE with the main window.
    """
    plain, decoding = len(shape.rule.branches) == 1, shape.queries < shape.keys
    peers = ["triton", "flash", "flash-attn"]
    if plain:
        # What "auto" takes there: our rotation, then torch's attention.
        peers += ["auto", "sdpa-flash", "sdpa-cudnn"]
        if not shape.backward and not decoding:
            peers += ["sdpa-flash-alone", "sdpa-cudnn-alone"]
    else:
        peers += ["triton:plain", "two-matrix"]
        if main and not decoding and (shape.keys >= 16384 or shape.keys < 2048):
            peers += ["two-matrix-compiled"]
        if main and not decoding and (shape.keys in (8192, 32768) or shape.keys < 2048):
            peers += ["flex"]
    if shape.keys <= 8192 and not decoding:
        peers += ["reference"]
    if decoding:
        # The copy's time at the cache's size, and all as serving engines run them.
        peers += [COPY]
        peers += [f"{peer}{SUFFIX}" for peer in peers if peer != "two-matrix"]
    return tuple(peers)


def _cpu_peers(shape: Shape, *, main: bool) -> tuple[str, ...]:
    """Peers on a CPU; arguments as for a GPU."""
    plain, decoding = len(shape.rule.branches) == 1, shape.queries < shape.keys
    peers = ["auto", "flash", "reference", "sdpa" if plain else "sdpa:plain"]
    # Seconds a run at the longest length, whatever the window.
    if not plain and (shape.keys < 8192 or decoding or main):
        peers += ["two-matrix"]
    if main and not decoding and not shape.backward and shape.keys == 4096:
        peers += ["two-matrix-compiled", "flex"]
    return tuple(peers)
