"""Asking a step for its output without making it: for plans, which spend nothing."""

import contextlib
import contextvars
from collections.abc import Iterator


class NotMade(Exception):
    """The output that was asked for does not exist (or not whole); ``uri`` is where it would be."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.uri = uri


_peeking = contextvars.ContextVar("peeking", default=False)


@contextlib.contextmanager
def peeking() -> Iterator[None]:
    """In this block ``run_step`` returns an output that is there and raises ``NotMade`` for any other."""
    token = _peeking.set(True)
    try:
        yield
    finally:
        _peeking.reset(token)


def is_peeking() -> bool:
    """Whether this is such a block."""
    return _peeking.get()
