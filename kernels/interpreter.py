"""Whether Triton interprets its kernels in this process; asked without importing Triton."""

import os


def interpreted() -> bool:
    """Triton's own switch, in the words that Triton takes for yes.

    Triton decides once, when it is imported, so a change of the variable after that misleads.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
