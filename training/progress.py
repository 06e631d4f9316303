"""Progress of work that takes longer than two seconds: rich where it is installed, plain lines elsewhere."""

import sys
import time
from typing import Iterable, Iterator, Optional, Sized, TypeVar

T = TypeVar("T")
PLAIN_EVERY_S = 5.0


def track(items: Iterable[T], what: str, total: Optional[int] = None) -> Iterator[T]:
    """Passes `items` on and shows on stderr how many are done.

    Args:
        items: what is worked through.
        what: shown beside the bar, such as `reading images`.
        total: their number, where `items` has no length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    try:
        from rich.console import Console
        from rich.progress import track as rich_track
    except ImportError:
        yield from _plain(items, what, total)
        return
    if not sys.stderr.isatty():
        yield from _plain(items, what, total)
        return
    yield from rich_track(items, description=what, total=total, console=Console(stderr=True), transient=True)


def _plain(items: Iterable[T], what: str, total: Optional[int]) -> Iterator[T]:
    shown_at = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - shown_at >= PLAIN_EVERY_S:
            shown_at = time.monotonic()
            print("%s: %d of %s" % (what, done, total or "?"), file=sys.stderr, flush=True)
