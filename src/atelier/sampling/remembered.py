"""A part that is asked the same thing in every step of a sampling run."""

from torch import Tensor, nn

from atelier.models.view import View


class Remembered(View):
    """Keeps its answer for as long as it is asked about the same tensor: a prompt's keys and values, in every step."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self._asked: tuple[Tensor, int, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """As the part's."""
        if self._asked is None or self._asked[0] is not x or self._asked[1] != x._version:
            self._asked = (x, x._version, self.inner(x))
        return self._asked[2]
