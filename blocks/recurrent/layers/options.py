"""What a layer can be told beyond `nn.GRU`'s arguments, and which of it makes sense together."""

from typing import Any, Literal, TypedDict

from ropewalk.blocks.checks import require_integer
from ropewalk.blocks.recurrent.solvers import Method, named
from ropewalk.kernels.backends import check_backend
from ropewalk.kernels.newton_scan import Backend
from ropewalk.kernels.newton_scan.backend import BACKENDS

Structure = Literal["diagonal", "dense"]
STRUCTURES = ("diagonal", "dense")
IN_KERNEL = ("auto", "newton", "sequential")
"""Methods that the kernel of the diagonal cells has."""
FUSED = ("auto", "sequential")
"""Methods under which dense cells run in torch's own operators."""


class Options(TypedDict, total=False):
    """Keyword-only arguments that all layers share; `LayerOptions` in `ropewalk.blocks.recurrent`.

    Attributes:
        structure: "diagonal", where every channel reads only its own state, which is what can be
            computed in parallel; or "dense", torch's cell. "diagonal" if not given.
        bounded: whether weights are parametrised such that no state can grow; see
            `ropewalk.blocks.recurrent.cells.bounded`. None, or not given, is True for "diagonal"
            and False for "dense", which then is torch's layer. The parameters of a bounded layer,
            and so its `state_dict`, are free ones that the weights are made of: the `state_dict` of
            an unbounded layer, or of torch's, fits and is *another function* there.
            `effective_weights` gives the weights themselves.
        mode: "converged", which is the recurrence itself; or a number of iterations over the whole
            sequence, from the initial state everywhere, which is a model of its own, the same in
            training and evaluation: the first k states are those of the recurrence after k
            iterations, the others only near. Such a model has no `.step` and becomes no torch
            layer, because its states do not follow from the ones before; and on a CPU it is slower
            than the recurrence itself. "converged" if not given.
        method: how states are found, a name or an object of `ropewalk.blocks.recurrent.solvers`;
            with a number as mode, which iteration it is, Newton's under "auto". "auto" takes what
            is fastest: of diagonal cells the kernel's choice, of dense ones torch's operators. With
            these and with a number as mode a layer can be compiled as a whole, with others not:
            they look at numbers, and refuse NaN and infinity in inputs, which else pass through.
        window: steps that are solved at once; None leaves it to the method.
        backend: of `newton_scan`, which computes the diagonal cells.
    """

    structure: Structure
    bounded: bool | None
    mode: "Literal['converged'] | int"
    method: "str | Method"
    window: int | None
    backend: Backend


DEFAULTS: dict[str, Any] = {
    "structure": "diagonal",
    "bounded": None,
    "mode": "converged",
    "method": "auto",
    "window": None,
    "backend": "auto",
}


BOUNDED = {"diagonal": True, "dense": False}
"""What layers are by default."""


def checked(layer: str, given: Options) -> dict[str, Any]:
    """The options, with what was not given, `bounded` as the structure has it.

    Raises:
        TypeError: an argument that does not exist or of the wrong kind.
        ValueError: a value that does not, or one that would have no effect.
    """
    unknown = [name for name in given if name not in DEFAULTS]
    if unknown:
        raise TypeError(
            f"{layer}: expected options among {', '.join(DEFAULTS)}, got {', '.join(unknown)}"
        )
    options = {**DEFAULTS, **given}
    structure, mode, method = options["structure"], options["mode"], options["method"]
    if structure not in STRUCTURES:
        raise ValueError(
            f"{layer}.structure: expected one of {', '.join(STRUCTURES)}, got {structure!r}"
        )
    if options["bounded"] is None:
        options["bounded"] = BOUNDED[structure]
    if not isinstance(options["bounded"], bool):
        raise TypeError(
            f"{layer}.bounded: expected True or False, or None for what the structure has, got "
            f"{options['bounded']!r}"
        )
    if mode != "converged":
        if isinstance(mode, str):
            raise ValueError(
                f"{layer}.mode: expected 'converged' or a number of iterations, got {mode!r}"
            )
        require_integer(layer, 1, mode=mode)
    if method != "auto":
        named(method)
    if options["window"] is not None:
        require_integer(layer, 1, window=options["window"])
    check_backend(options["backend"], BACKENDS)
    _check_effect(layer, options)
    return options


def _check_effect(layer: str, options: dict[str, Any]) -> None:
    """Refuses an option that nothing would read."""
    structure, mode, method = options["structure"], options["mode"], options["method"]
    iterated = mode != "converged"
    in_kernel = structure == "diagonal" and not iterated and method in IN_KERNEL
    if options["backend"] != "auto" and not in_kernel:
        raise ValueError(
            f"{layer}.backend: expected 'auto', got {options['backend']!r}: only diagonal layers "
            f"with mode='converged' and a method of {', '.join(IN_KERNEL)} run in the kernel"
        )
    if iterated and method == "sequential":
        raise ValueError(
            f"{layer}.method: expected an iteration with mode={mode}, got 'sequential', which has "
            "none; take mode='converged'"
        )
    solved = structure == "dense" and method not in FUSED
    if options["window"] is None:
        return
    if iterated:
        raise ValueError(
            f"{layer}.window: expected None with mode={mode}, got {options['window']}: its "
            "iterations go over the whole sequence"
        )
    if method == "sequential" or (structure == "dense" and not solved):
        raise ValueError(
            f"{layer}.window: expected None, got {options['window']}: a {structure} layer with "
            f"method={method!r} takes one step after another; take method='newton'"
        )
