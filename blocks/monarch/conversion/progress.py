"""A progress bar for what takes more than a few seconds, where tqdm is installed."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
_SILENT_SECONDS = 3


def shown(items: Iterable[Item], what: str, *, progress: bool) -> Iterator[Item]:
    """The items, with a bar over them."""
    if progress:
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            items = tqdm(items, desc=what, delay=_SILENT_SECONDS, leave=False)
    yield from items
