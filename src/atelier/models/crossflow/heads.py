"""Heads that turn a flat vector into a latent: of the text encoder, and of the image tower."""

from torch import Tensor, nn

MAP = 64
"""The side of the square that an ``Adaptor`` paints on; its hidden layers have MAP² units."""


class Adaptor(nn.Module):
    """A flat vector to a map of 64 × 64: two wide layers, then three convolutions; for 512 px.

    Args:
        width: of the input.
        size: of the output, a multiple of 64².
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, MAP * MAP)
        self.ln_fc1 = nn.LayerNorm(MAP * MAP)
        self.fc2 = nn.Linear(MAP * MAP, MAP * MAP)
        self.ln_fc2 = nn.LayerNorm(MAP * MAP)
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.ln_conv1 = nn.LayerNorm([32, MAP, MAP])
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.ln_conv2 = nn.LayerNorm([64, MAP, MAP])
        self.conv3 = nn.Conv2d(64, size // (MAP * MAP), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width] → [B, size], channels first."""
        x = self.ln_fc1(self.fc1(x)).relu()
        x = self.ln_fc2(self.fc2(x)).relu().unflatten(1, (1, MAP, MAP))
        x = self.ln_conv1(self.conv1(x)).relu()
        x = self.ln_conv2(self.conv2(x)).relu()
        flat: Tensor = self.conv3(x).flatten(1)
        return flat


class Mlp(nn.Module):
    """Linear, GELU, LayerNorm, Linear; for 256 px.

    Args:
        width: of the input.
        size: of the hidden layer and of the output.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, size)
        self.norm = nn.LayerNorm(size)
        self.fc2 = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width] → [B, size]."""
        x = nn.functional.gelu(self.fc1(x))
        latent: Tensor = self.fc2(self.norm(x))
        return latent


def needs_adaptor(size: int) -> bool:
    """Whether ``size`` numbers come out of an ``Adaptor``: from 4 × 64 × 64 on, which is what 512 px need."""
    return size >= 4 * MAP * MAP


def image_head(width: int, size: int) -> Adaptor | Mlp:
    """The head of the image tower for a latent of ``size`` = C · H · W numbers."""
    return Adaptor(width, size) if needs_adaptor(size) else Mlp(width, size)
