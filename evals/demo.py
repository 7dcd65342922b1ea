"""The demo: every variant on the bundled model, from its trained length to eight times that."""

from pathlib import Path

from ropewalk.evals.default_model import bundled_models
from ropewalk.evals.request import Request

VARIANTS = (
    "rope",
    "linear",
    "ntk-aware",
    "ntk-fixed",
    "ntk-mixed",
    "dynamic-ntk",
    "yarn",
    "rerope",
    "rerope+log-n",
    "leaky-rerope",
    "self-extend",
    "dual-chunk",
)
LENGTHS = (512, 1024, 2048, 4096)
FULL_LENGTHS = (*LENGTHS, 8192, 16384)
SECOND_MODEL = "default-inverse-leaky"


def demo_request(*, full: bool = False, out: Path | None = None) -> Request:
    """The evaluation that `ropewalk demo` carries out.

    Args:
        full: whether to add 8192 and 16384 tokens.
        out: folder of the run.
    """
    second = (f"rope@{SECOND_MODEL}",) if SECOND_MODEL in bundled_models() else ()
    return Request(
        out=out or Path("runs") / ("demo-full" if full else "demo"),
        model="default",
        variants=VARIANTS + second,
        lengths=FULL_LENGTHS if full else LENGTHS,
        # Sized for five minutes on two cores; the long run has time for narrower intervals.
        documents=8,
        trials=2 if full else 1,
    )
