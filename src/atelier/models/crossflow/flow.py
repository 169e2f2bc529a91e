"""What a flow network is, whichever backbone computes it."""

from typing import Protocol

from torch import Tensor

from atelier.errors import ConfigError


class FlowNetwork(Protocol):
    """A velocity field on latents, given the time and whether the image belongs to the text.

    Attributes:
        latent_shape: [C, H, W].
        loss_coeffs: the weight of each output's loss.
    """

    latent_shape: tuple[int, ...]
    loss_coeffs: tuple[float, ...]

    def __call__(self, x: Tensor, t: Tensor, null: Tensor | None = None) -> list[Tensor]:
        """Velocities from the lowest resolution to that of the latent; the last one is the field.

        Args:
            x: latents [B, C, H, W].
            t: float32 [B] or, for one time for all, [1]: 0 at the text, 1 at the image.
            null: bool [B], true where the velocity is that to any image, not to the text's; None: true nowhere.

        Raises:
            ConfigError: the latent has another shape than the network's.
        """
        ...


def check_latent(x: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ConfigError where ``x`` is no batch of latents of this shape."""
    if tuple(x.shape[1:]) != tuple(shape):
        raise ConfigError(
            f"the flow network works on latents {tuple(shape)}, not {tuple(x.shape[1:])}",
            "use the network of the resolution that the latents were made at",
        )
