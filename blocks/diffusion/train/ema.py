"""`EMA`: the running average of a model's weights, which is what diffusion models sample with.

    w̄_k = d_k · w̄_(k−1) + (1 − d_k) · w_k        d_k = decay, or min(decay, (1 + k) / (10 + k))

The averages are float32 also where the weights are bfloat16: 1 − 0.9999 is below bfloat16's
resolution, and an average kept in it would never move. All weights move in one fused update.

Source: Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); the warm-up is that of TensorFlow's
ExponentialMovingAverage. Pitfall: buffers (running statistics) are not averaged, the model keeps
its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ropewalk.blocks.checks import require_number


class EMA:
    """The exponential moving average of a model's floating-point parameters.

    Example:
        >>> model = nn.Linear(4, 4)
        >>> ema = EMA(model, decay=0.999)
        >>> # after every optimizer.step(): ema.update()
        >>> ema.update()
        >>> with ema.swap():
        ...     y = model(torch.randn(2, 4))  # with the averages

    Attributes:
        decay: d of a long run.
        warm_up: whether d grows from 2/11 up to `decay`, so that the first weights, which are
            noise, are soon forgotten.
        updates: how many there were.
        shadow: the averages by parameter name; float32, float64 of float64 parameters.

    Args:
        model: its parameters are read at every update; parameters that are shared count once, and
            those that are not floating-point are left out.
        decay: in [0, 1).
        warm_up: see the attribute.

    Raises:
        ValueError: `decay` outside [0, 1), or a model without floating-point parameters.
        TypeError: `decay` is not a number.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, *, warm_up: bool = True) -> None:
        self.decay = _checked_decay(decay)
        self.warm_up = warm_up
        self.updates = 0
        self.shadow: dict[str, Tensor] = {
            name: weight.to(_average_dtype(weight), copy=True)
            for name, weight in _weights(model).items()
        }
        if not self.shadow:
            raise ValueError("EMA: expected a model with floating-point parameters, got none")
        self._model = model
        self._swapped = False

    def __repr__(self) -> str:
        return f"EMA(decay={self.decay}, warm_up={self.warm_up}, updates={self.updates})"

    @property
    def next_decay(self) -> float:
        """The d_k of the next update."""
        if not self.warm_up:
            return self.decay
        following = self.updates + 1
        return min(self.decay, (1 + following) / (10 + following))

    @torch.no_grad()
    def update(self) -> None:
        """Takes the model's weights into the average; call it after each step of the optimiser.

        Raises:
            RuntimeError: within `swap`, where the model holds the averages themselves.
            ValueError: the model has other parameters than those that are averaged.
        """
        self._refuse_if_swapped("update")
        weights = self._model_weights("update")
        latest = [weights[name].to(average.dtype) for name, average in self.shadow.items()]
        average_all = get_ema_multi_avg_fn(self.next_decay)  # one fused update
        average_all(tuple(self.shadow.values()), tuple(latest), self.updates)
        self.updates += 1

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Within it the model has the averages for weights; after it its own again, bit by bit.

        Raises:
            RuntimeError: within another `swap` of this object.
            ValueError: the model has other parameters than those that are averaged.
        """
        self._refuse_if_swapped("swap")
        weights = self._model_weights("swap")
        places = [weights[name] for name in self.shadow]
        own = [place.clone() for place in places]
        self._swapped = True
        try:
            for place, average in zip(places, self.shadow.values(), strict=True):
                place.copy_(average)
            yield
        finally:
            for place, weight in zip(places, own, strict=True):
                place.copy_(weight)
            self._swapped = False

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Writes the averages into the parameters of another model of the same architecture.

        Raises:
            ValueError: the model's parameters have other names or shapes.
        """
        weights = _weights(model)
        _check_same(self.shadow, weights, "EMA.copy_to: expected a model of the same form")
        for name, average in self.shadow.items():
            weights[name].copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: {"decay", "warm_up", "updates", "shadow": name → average}.

        The tensors are the averages themselves, not copies, as with a module's `state_dict`.
        """
        return {
            "decay": self.decay,
            "warm_up": self.warm_up,
            "updates": self.updates,
            "shadow": dict(self.shadow),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`; nothing is changed if it does not fit.

        Raises:
            ValueError: an entry is missing, names or shapes are not those of the model, or the
                decay is outside [0, 1).
        """
        missing = {"decay", "warm_up", "updates", "shadow"} - set(state)
        if missing:
            raise ValueError(f"EMA.load_state_dict: {sorted(missing)} missing from {sorted(state)}")
        _check_same(
            self.shadow, state["shadow"], "EMA.load_state_dict: expected this model's state"
        )
        decay = _checked_decay(state["decay"])
        for name, average in self.shadow.items():
            average.copy_(state["shadow"][name])
        self.decay = decay
        self.warm_up = bool(state["warm_up"])
        self.updates = int(state["updates"])

    def _model_weights(self, method: str) -> dict[str, Tensor]:
        """What is averaged, as it is now; refused if it is not what it was."""
        weights = _weights(self._model)
        _check_same(
            self.shadow,
            weights,
            f"EMA.{method}: expected the parameters that the model had when this average was made, "
            "or make a new EMA after adding or removing some",
        )
        return weights

    def _refuse_if_swapped(self, method: str) -> None:
        if self._swapped:
            raise RuntimeError(
                f"EMA.{method}: the model holds the averages at this moment; "
                "leave `with ema.swap()` first"
            )


def _checked_decay(decay: float) -> float:
    require_number("EMA", "a number in [0, 1)", decay=decay)
    if not 0 <= decay < 1:
        raise ValueError(f"EMA.decay: expected a number in [0, 1), got {decay!r}")
    return decay


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """What is averaged. Asked for anew each time: sharding and loading replace parameters."""
    return {name: p.detach() for name, p in model.named_parameters() if p.is_floating_point()}


def _average_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _check_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], message: str) -> None:
    if ours.keys() != theirs.keys():
        missing, unknown = sorted(ours.keys() - theirs.keys()), sorted(theirs.keys() - ours.keys())
        raise ValueError(f"{message}; missing {missing[:5]}, unexpected {unknown[:5]}")
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            raise ValueError(
                f"{message}; {name}: expected shape {tuple(tensor.shape)}, "
                f"got {tuple(theirs[name].shape)}"
            )
