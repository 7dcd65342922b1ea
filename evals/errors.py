"""What can go wrong in an evaluation, split by who can mend it."""


class InputError(ValueError):
    """What the user asked for cannot be done; the message is one line that says how to mend it.

    The command line prints it without a traceback and ends with exit code 2.
    """


class EvaluationError(RuntimeError):
    """The machine cannot finish what was asked for; results so far are kept. Exit code 1."""


def one_line(error: BaseException) -> str:
    """The first line with content of an exception's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
