"""A bounded queue between two threads that knows how to end: by its source, by an error, or because nobody reads on."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """The reading side is gone: whoever puts should let go of what it holds and return."""


class Channel(Generic[T]):
    """Items in order from one thread to another.

    Args:
        capacity: items that wait at most; putting one more waits.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._stopped = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Adds an item, once there is room.

        Raises:
            Stopped: the reading side is gone.
        """
        with self._changed:
            while len(self._items) >= self._capacity and not self._stopped:
                self._changed.wait()
            if self._stopped:
                raise Stopped
            self._items.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """No more items come; ``error`` is raised on the reading side after those that are there."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """The reading side takes nothing more; what waits is let go of."""
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                # Stopped by somebody else: its writer may have gone without saying that this is the end.
                while not self._items and not self._ended and not self._stopped:
                    self._changed.wait()
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
