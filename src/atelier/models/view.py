"""A module that stands in another one's place and answers for it."""

from typing import Any

from torch import nn


class View(nn.Module):
    """Answers for a module that it does not change."""

    inner: Any

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)
