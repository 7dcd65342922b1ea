"""Measurements of this checkout against its peers: speed, memory, roofline.

    run.py           the entry: `python -m benchmarks.run --suite rotary_attention --device cuda`
    plot.py          draws a result: `python -m benchmarks.plot FILE --out FOLDER`
    case.py          what is measured: a case, its peers, its work
    measure.py       one case: build each peer, check its result, time all in turn
    timing.py        medians of interleaved runs; memory.py: peaks
    roofline.py      floating-point operations, bytes, and the device's measured ceilings
    goals.py         what a suite wants to reach, as pass, miss or not measured
    result_file.py   the JSON, always whole, from which an interrupted run goes on
    environment.py   on what it ran
    attention.py     inputs and oracle of rotary attention; peers/: who computes it
    linear_cross_entropy.py, token_distributions.py    inputs and oracle of the vocabulary loss
    denoiser.py, denoiser_ops.py    inputs and oracles of whole denoisers and of their ops
    saved.py         what autograd keeps between a forward and its backward
    definitions.py   distance rules from their papers, for the oracle
    evaluation.py    the bundled model's perplexity, by backend and by an earlier commit
    earlier/         an earlier commit's code in a process of its own, as a peer
    suites/          one file a suite

The folder is no part of the installed package. It measures the checkout it lies in, so that a
machine needs PyTorch, einops and jaxtyping but no installation of ropewalk.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def _names_this_checkout() -> bool:
    try:
        found = importlib.util.find_spec("ropewalk.blocks")
    except ModuleNotFoundError:
        return False
    origin = None if found is None else found.origin
    return origin is not None and Path(origin).resolve().parent.parent == ROOT


# The repository's root is the namespace `ropewalk`; without an editable install nothing says so.
if "ropewalk" not in sys.modules and not _names_this_checkout():
    namespace = ModuleType("ropewalk", "The checkout's folders as the package they become.")
    namespace.__path__ = [str(ROOT)]
    sys.modules["ropewalk"] = namespace
