"""Imports every module of an installed `ropewalk`, from outside the repository.

Run by .ci/run in a folder of its own, with the unpacked wheel first on the path.
"""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path


def main() -> None:
    import ropewalk

    locations = [Path(place).resolve() for place in ropewalk.__path__]
    repository = Path(__file__).resolve().parent.parent
    if any(repository in (place, *place.parents) for place in locations):
        raise SystemExit(f"the wheel was to be imported, the repository was: {locations}")
    optional = [] if importlib.util.find_spec("triton") else ["triton"]
    names = [module.name for module in pkgutil.walk_packages(ropewalk.__path__, "ropewalk.")]
    # walk_packages passes over namespace folders, and `kernels` is one.
    kernels = [str(place / "kernels") for place in locations]
    names += [module.name for module in pkgutil.walk_packages(kernels, "ropewalk.kernels.")]
    for name in names:
        if name.rsplit(".", 1)[-1] not in (*optional, "__main__"):
            importlib.import_module(name)
    sys.stdout.write(f"imported {len(names)} modules from {locations[0]}\n")


if __name__ == "__main__":
    main()
