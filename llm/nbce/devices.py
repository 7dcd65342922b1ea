"""Where a model takes its inputs, and where keys and values are to be kept."""

from typing import Any

import torch

HOST = torch.device("cpu")


def input_device(model: Any) -> torch.device:
    """Where the model takes tokens.

    The weights of a model that accelerate brings in layer by layer are on the meta device; then
    accelerate's hook says where it computes.
    """
    if model.device.type != "meta":
        return model.device
    hook = getattr(model, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or HOST)


def storage_device(asked: str | torch.device) -> torch.device | None:
    """The device that was asked for; None for "auto".

    Raises:
        ValueError: there is no such device.
        TypeError: no name of a device.
    """
    if isinstance(asked, str) and asked == "auto":
        return None
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except TypeError as error:
        raise TypeError(
            f'cache_device: expected "auto" or a device such as "cpu", got {asked!r}'
        ) from error
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f'cache_device: expected "auto" or a device of this machine, got {str(asked)!r}: '
            + str(error).partition("\n")[0]
        ) from error
    return device
