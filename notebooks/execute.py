"""Executes the notebooks from top to bottom; fails on the first error.

`python notebooks/execute.py` checks them, `--write` also stores the outputs in the files, and names
on the command line choose some of them.
"""

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
SECONDS_PER_CELL = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="notebooks to execute; all by default")
    parser.add_argument("--write", action="store_true", help="store the outputs in the files")
    options = parser.parse_args()
    paths = [FOLDER / name for name in options.names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        started = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook, timeout=SECONDS_PER_CELL, resources={"metadata": {"path": str(FOLDER)}}
        )
        client.execute()
        if options.write:
            for cell in notebook.cells:
                cell.metadata.pop("execution", None)  # times of day would change on every run
            nbformat.write(notebook, path)
        sys.stdout.write(f"{path.name}: {time.perf_counter() - started:.0f} s\n")


if __name__ == "__main__":
    main()
