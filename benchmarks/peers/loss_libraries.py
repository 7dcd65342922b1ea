"""Other people's losses without logits, where they are installed: all of them need a GPU.

Each is called as its documentation says, with the defaults of its release; a second name chooses
the option that makes it as exact as ours. What they need is checked before: the library, the
device, and an option that older releases lack.
"""

import importlib.util
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.case import Unavailable

if TYPE_CHECKING:
    from benchmarks.linear_cross_entropy import Loss, LossShape

QUACK_MULTIPLE = 8


def build(name: str, shape: "LossShape") -> "Loss":
    """The function of (hidden, weight, targets) of a library.

    Raises:
        Unavailable: it cannot take part.
    """
    distribution, module, builder = BUILDERS[name]
    return builder(name, _imported(distribution, module, shape.device), shape)


def _imported(distribution: str, module: str, device: str) -> ModuleType:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise Unavailable(f"{distribution} is not installed")
    if device != "cuda":
        raise Unavailable(f"{distribution} needs a GPU")
    try:
        return importlib.import_module(module)
    except Exception as error:  # a library made for another torch or triton fails in any way
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise Unavailable(f"{distribution} cannot be imported: {reason}") from None


def cut_cross_entropy(name: str, module: ModuleType, _shape: "LossShape") -> "Loss":
    """apple/ml-cross-entropy (arXiv 2411.09009).

    Its presets `cce_exact` and `cce_kahan_full_c` sum both gradients in float32; the first skips
    nothing, the second nothing of the weight's gradient. The release 25.1.1 knows no presets: there
    the exact form is that without a threshold, summed in the gradients' dtype.
    """
    function = module.linear_cross_entropy
    presets = "accum_c_fp32" in inspect.signature(function).parameters
    options: dict[str, Any] = {}
    if name == "cce-exact":
        options = {"impl": "cce_exact"} if presets else {"filter_eps": None}
    elif name == "cce-kahan":
        if not presets:
            raise Unavailable("this release of cut-cross-entropy has no preset cce_kahan_full_c")
        options = {"impl": "cce_kahan_full_c"}
    return lambda hidden, weight, targets: function(hidden, weight, targets, **options)


def liger(name: str, module: ModuleType, _shape: "LossShape") -> "Loss":
    """Liger Kernel: logits by chunks of tokens, gradients in the forward pass."""
    options: dict[str, Any] = {}
    if name == "liger-float32":
        parameters = inspect.signature(module.LigerFusedLinearCrossEntropyLoss).parameters
        if "accum_dtype" not in parameters:
            raise Unavailable("this release of liger-kernel has no accum_dtype")
        options = {"accum_dtype": torch.float32}
    loss = module.LigerFusedLinearCrossEntropyLoss(**options)
    return lambda hidden, weight, targets: loss(weight, hidden, targets)


def quack(_name: str, module: ModuleType, shape: "LossShape") -> "Loss":
    """Dao-AILab/quack: chunks of 4096 tokens, the weight's gradient summed in float32."""
    for size in (shape.tokens, shape.dim, shape.vocabulary):
        if size % QUACK_MULTIPLE:
            raise Unavailable(f"quack wants sizes that are multiples of {QUACK_MULTIPLE}: {size}")

    def loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return module.chunked_linear_cross_entropy(hidden, weight, targets)

    return loss


Builder = Callable[[str, ModuleType, "LossShape"], "Loss"]
_CCE = ("cut-cross-entropy", "cut_cross_entropy", cut_cross_entropy)
_LIGER = ("liger-kernel", "liger_kernel.transformers", liger)

BUILDERS: dict[str, tuple[str, str, Builder]] = {
    "cce": _CCE,
    "cce-exact": _CCE,
    "cce-kahan": _CCE,
    "liger": _LIGER,
    "liger-float32": _LIGER,
    "quack": ("quack-kernels", "quack.linear_cross_entropy", quack),
}
"""Its package, the module to import, and who builds its function, by the peer's name."""
