"""`monarchize`: the linear layers of a model become Monarch layers.

which layers?     matching, obstacles
their inputs      calibration, if asked for
the factors       sizes, fitting
into the model    replacement, once everything is there
"""

import warnings
from typing import Literal

import torch
from torch import nn

from ropewalk.blocks.monarch.conversion.calibration import (
    Calibration,
    check_calibration,
    gather,
)
from ropewalk.blocks.monarch.conversion.dense import (
    dense_weight,
    features,
    is_layer,
    is_transposed,
    remember_class,
)
from ropewalk.blocks.monarch.conversion.fitting import ByOutput, ByWeight, Fitted
from ropewalk.blocks.monarch.conversion.matching import Found, Match, find
from ropewalk.blocks.monarch.conversion.moments import ENOUGH, Moment
from ropewalk.blocks.monarch.conversion.obstacles import Surroundings, check_model, obstacle
from ropewalk.blocks.monarch.conversion.progress import shown
from ropewalk.blocks.monarch.conversion.replacement import replace, take_over
from ropewalk.blocks.monarch.conversion.report import LayerReport, MonarchReport
from ropewalk.blocks.monarch.conversion.sizes import Goal
from ropewalk.blocks.monarch.linear import MonarchLinear
from ropewalk.blocks.monarch.shape import Blocks
from ropewalk.kernels.backends import check_backend
from ropewalk.kernels.monarch import Backend
from ropewalk.kernels.monarch.backend import BACKENDS


def monarchize(
    model: nn.Module,
    *,
    match: Match,
    nblocks: Blocks | Literal["auto"] = 4,
    rank: int | None = None,
    target_compression: float | None = None,
    max_relative_error: float | None = None,
    calibration: Calibration | None = None,
    progress: bool = True,
    backend: Backend = "auto",
) -> MonarchReport:
    """Replaces linear layers of any model by the Monarch layers nearest to them, in place.

    Exactly one of `rank`, `target_compression` and `max_relative_error` says how near. A layer
    keeps its device, dtype, mode, `requires_grad`, hooks and its very bias. Layers that cannot be
    replaced stay, and the report says why: quantised, sharded, shared with another module, read
    without being called, … All factors are computed before the first layer is replaced, so there
    must be memory for both; whatever fails on the way leaves the model as it was.

    An optimiser that exists holds the old weights; make it afterwards.

    To save a converted model take safetensors' `save_model`, or `save_file` of its `state_dict()`,
    and `load_monarch_state_dict` to load it into a model as its class makes it; or `merge` first.
    transformers' `from_pretrained` of what `save_pretrained` wrote knows nothing of factors: it
    draws those layers at random, with no more than a note of missing names.

    `layer.weight` multiplies the factors out at each access. A model that reads it in its forward,
    as transformers' T5 does for its dtype, pays for that at every call; `merge` for serving.

    Args:
        model: any module. It is changed.
        match: which layers: a glob on their names, `"*.mlp.*"`, several of them, or a function of
            name and module.
        nblocks: (input blocks, output blocks), a number for both, or "auto" for the one, up to 64,
            that reaches the goal best. It may be one block, which is a plain low-rank matrix.
        rank: of the slices, for all layers.
        target_compression: each layer gets at least that many times fewer parameters.
        max_relative_error: each layer gets the least rank that keeps its error; those that would
            need as many parameters as before stay dense. With `calibration` it is the error of the
            layer's output, without it that of its weight; of the factors as they are rounded.
        calibration: batches to run the model on (a tensor, a tuple or a dict of arguments each; an
            `attention_mask` in a dict leaves padding out), or a function that runs the model it is
            given. Then it is the error of a layer's output on those inputs that is made small,
            which is what a model feels: expect much less loss. Give at least four rows (tokens) for
            each input of a layer; fewer are believed less, and a warning says so. Takes 2·in²
            numbers of memory a layer.
        progress: whether a bar is shown where tqdm is installed and it takes some seconds.
        backend: of the new layers, see `ropewalk.kernels.monarch.monarch_matmul`.

    Returns:
        A table of the layers that were meant: error, parameters, operations; what was skipped.

    Raises:
        ValueError: a pattern that fits no layer, with the names there are; not exactly one goal, or
            one out of its range, or that no layer reaches; weights or inputs that are not finite;
            no batch, or one with a misspelt mask.
        TypeError: an argument of the wrong kind; a scripted model.
        RuntimeError: the model failed on a batch (or one of the above, if it raised such).

    Warns:
        UserWarning: layers saw few rows of the calibration.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
        >>> report = monarchize(model, match="*", target_compression=2)
        >>> report.compression >= 2
        True
    """
    check_model(model)
    if is_layer(model):
        raise ValueError(
            f"model: expected a model that has layers, got a layer, {type(model).__name__}, which "
            "cannot be replaced in place; use MonarchLinear.from_linear(layer)"
        )
    goal = Goal(nblocks, rank, target_compression, max_relative_error)
    check_backend(backend, BACKENDS)
    if calibration is not None:
        check_calibration(calibration)
    meant = find(model, match)
    around = Surroundings(model)
    obstacles = {found: obstacle(found, around) for found in meant}
    moments: dict[nn.Module, Moment] = {}
    if calibration is not None:
        free = [found.module for found in meant if obstacles[found] is None]
        moments = gather(model, free, calibration, progress=progress)
    before = _parameters(model)
    unreached: dict[str, str] = {}  # reason → the first layer with it
    rows: list[LayerReport] = []
    replacements: dict[nn.Module, nn.Module] = {}
    for found in shown(meant, "projecting", progress=progress):
        reason = obstacles[found]
        moment = moments.pop(found.module, None)
        if reason is None:
            fitted = _fitted(found, goal, moment)
            if isinstance(fitted, Fitted):
                replacements[found.module] = _layer(found.module, fitted, backend)
                rows.append(_row(found, fitted, moment))
                continue
            reason = fitted
            unreached.setdefault(reason, found.name)
        rows.append(_skipped(found, reason))
    # A goal that no layer reaches is a mistake; layers that nobody could convert are a finding.
    if unreached and not replacements:
        reasons = [f"{name}: {reason}" for reason, name in unreached.items()]
        raise ValueError(
            f"expected a goal that some layer reaches, got {goal}, which none of "
            f"{len(meant)} layers does; {'; '.join(reasons[:3])}; nothing was converted"
        )
    _warn_of_few(rows)
    replace(model, replacements)
    return MonarchReport(tuple(rows), before, _parameters(model))


@torch.no_grad()
def _fitted(found: Found, goal: Goal, moment: Moment | None) -> Fitted | str:
    weight = dense_weight(found.module).detach()
    out_features, in_features = weight.shape
    try:
        if moment is None or not moment.rows:
            return goal.reach(ByWeight(weight), in_features, out_features)
        if not bool(moment.mean().isfinite().all()):
            raise ValueError(
                "calibration: expected finite inputs, got NaN or infinite ones, or such that "
                "overflow when squared; see whether the model itself is finite on these batches"
            )
        return goal.reach(ByOutput(weight, moment), in_features, out_features)
    except ValueError as error:
        raise ValueError(f"{found.name}: {error}; nothing was converted") from error


# A parameter made in inference mode could never be trained.
@torch.inference_mode(False)
@torch.no_grad()
def _layer(module: nn.Module, fitted: Fitted, backend: Backend) -> MonarchLinear:
    layer = MonarchLinear.from_factors(
        fitted.right, fitted.left, shape=fitted.shape, backend=backend
    )
    layer.relative_error = fitted.relative_error
    trained = dense_weight(module).requires_grad
    layer.right.requires_grad_(trained)
    layer.left.requires_grad_(trained)
    remember_class(layer, module)
    take_over(layer, module)
    return layer


def _row(found: Found, fitted: Fitted, moment: Moment | None) -> LayerReport:
    shape = fitted.shape
    notes = []
    if len(found.names) > 1:
        notes.append(f"also {', '.join(found.names[1:])}")
    if type(found.module) is not nn.Linear and not is_transposed(found.module):
        notes.append(f"merges back as Linear, no longer {type(found.module).__name__}")
    if moment is not None and not moment.rows:
        notes.append("the calibration never came here: projected by weight alone")
    elif moment is not None and moment.few:
        notes.append(
            f"{moment.rows} calibration rows, {ENOUGH * shape.in_features} would be enough: output "
            "error of rows not fitted to"
        )
        if fitted.plain:
            notes.append("by which the projection by weight is nearer and was kept")
    return LayerReport(
        name=found.name,
        kind=type(found.module).__name__,
        in_features=shape.in_features,
        out_features=shape.out_features,
        nblocks=shape.nblocks,
        rank=shape.rank,
        parameters_before=shape.dense_parameters,
        parameters_after=shape.parameters,
        flops_before=shape.dense_flops,
        flops_after=shape.flops,
        relative_error=fitted.relative_error,
        output_error=fitted.output_error,
        calibration_rows=None if moment is None else moment.rows,
        note="; ".join(notes) or None,
    )


def _warn_of_few(rows: list[LayerReport]) -> None:
    """Once for the whole model; before anything is replaced, as a warning may be an error."""
    few = [row for row in rows if 0 < (row.calibration_rows or 0) < ENOUGH * (row.in_features or 0)]
    if few:
        most = max(few, key=lambda row: (row.in_features or 0) / (row.calibration_rows or 1))
        warnings.warn(
            f"calibration: {len(few)} {'layer' if len(few) == 1 else 'layers'} saw fewer rows than "
            f"{ENOUGH} for each input, such as {most.name}: {most.calibration_rows} for "
            f"{most.in_features}; {ENOUGH * (most.in_features or 0)} would be enough. Their "
            "output is fitted as far as so few rows tell, and their output error is of rows that "
            "were not fitted to",
            UserWarning,
            stacklevel=3,
        )


def _skipped(found: Found, reason: str) -> LayerReport:
    module = found.module
    sizes = (None, None) if found.parameter is not None else features(module)
    if isinstance(module, MonarchLinear):
        held = module.shape.parameters
    elif found.parameter is None and None not in sizes:
        held = (sizes[0] or 0) * (sizes[1] or 0)
    else:
        # A scripted module's parameters are no dictionary.
        matrix = dict(module._parameters.items()).get(found.parameter or "weight")
        held = 0 if matrix is None else matrix.numel()
    return LayerReport(
        name=found.name,
        kind=type(module).__name__,
        in_features=sizes[0],
        out_features=sizes[1],
        nblocks=None,
        rank=None,
        parameters_before=held,
        parameters_after=held,
        flops_before=2 * held,
        flops_after=2 * held,
        skipped=reason,
    )


def _parameters(model: nn.Module) -> int:
    """Of a whole model, each counted once."""
    return sum(
        parameter.numel() for parameter in model.parameters() if not nn.parameter.is_lazy(parameter)
    )
