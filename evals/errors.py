"""What can go wrong in an evaluation, split by who can mend it."""

LONGEST = 400


class InputError(ValueError):
    """What the user asked for cannot be done; the message is one line that says how to mend it.

    The command line prints it without a traceback and ends with exit code 2.
    """


class EvaluationError(RuntimeError):
    """The machine cannot finish what was asked for; results so far are kept. Exit code 1."""


def one_line(error: BaseException) -> str:
    """The first line with content of an exception's message, and what it announces with a colon.

    Cut at `LONGEST` characters, because some messages list every file or model there is.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    message, *rest = lines
    for line in rest:
        if not message.endswith((":", ",")):
            break
        message = f"{message} {line}"
    return message if len(message) <= LONGEST else message[:LONGEST].rstrip() + " …"
