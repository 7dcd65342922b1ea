"""What several sub-commands share: types of options, and how their values are read."""

from typing import Annotated, TypeVar

import typer

from ropewalk.evals.errors import InputError

Number = TypeVar("Number", int, float)

Threads = Annotated[
    int | None,
    typer.Option(help="Processor threads; as many as may be used by default.", min=1, max=1024),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
]


def numbers(name: str, written: str, kind: type[Number]) -> tuple[Number, ...]:
    """Parses `1,2,3`.

    Raises:
        InputError: something in it is no number.
    """
    try:
        return tuple(kind(piece) for piece in written.split(","))
    except ValueError as error:
        expected = "whole numbers" if kind is int else "numbers"
        raise InputError(
            f"--{name} expects {expected} separated by commas, got {written!r}"
        ) from error


def set_threads(threads: int | None) -> None:
    """Lets torch use the threads asked for, and no more than this process may by default."""
    import torch

    from ropewalk.evals.memory import usable_threads

    torch.set_num_threads(threads or min(torch.get_num_threads(), usable_threads()))
