"""Region tokens for the fusers from text states and boxes (upstream's TextEmbeddingNetV2, and V1 without boxes)."""

import torch
from torch import Tensor, nn

from atelier.models.fourier import fourier_embedding
from atelier.models.regional.grounding import Grounding


class RegionTextNet(nn.Module):
    """An MLP over each token's text state and its object's box.

    The parameters' names are the released checkpoints'. Their ``null_text_feature`` stands for padding, which nobody
    attends to: its gradient is always 0.

    Args:
        text_dim: width of a text state (SD 1.5 768, SDXL 2048).
        out_dim: width of a token (the UNet's cross_attention_dim).
        frequencies: Fourier frequencies a coordinate.
        hidden: width of the two hidden layers (512 in every released model).
        boxed: False leaves the boxes out (upstream's first version).
        keep_small: as ``Grounding``'s; False is upstream's rule.
    """

    def __init__(
        self,
        text_dim: int,
        out_dim: int,
        frequencies: int = 8,
        hidden: int = 512,
        *,
        boxed: bool = True,
        keep_small: bool = True,
    ) -> None:
        super().__init__()
        self.keep_small = keep_small
        self.frequencies = frequencies if boxed else 0
        width = text_dim + self.frequencies * 2 * 4
        self.linears = nn.Sequential(
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, out_dim),
        )
        self.null_text_feature = nn.Parameter(torch.zeros(width))

    def forward(
        self,
        text: Tensor | None = None,
        boxes: Tensor | None = None,
        bias: Tensor | None = None,
        region: Tensor | None = None,
        cells: Tensor | None = None,
        unions: Tensor | None = None,
        objs: Grounding | None = None,
    ) -> Grounding:
        """The batch's grounding; its masks are made as the fusers ask for them.

        Args:
            text: [B, T, text_dim].
            boxes: [B, T, 4] normalised xyxy, -1 for a token without a box.
            bias: [B, T].
            region: int [B, T]; -1 is padding.
            cells: int [B, h, w]; a row of -1 alone is a sample without a layout.
            unions: bool [B, R, h, w]; only the fusers with self-attention need it.
            objs: made before; returned as it is, so that a sampler makes it once a run and passes it through the
                UNet's own ``cross_attention_kwargs["gligen"]``.
        """
        if objs is not None:
            return objs
        if text is None or boxes is None or bias is None or region is None or cells is None:
            raise ValueError("RegionTextNet needs text, boxes, bias, region and cells, or objs made before")
        weight = self.null_text_feature
        features = text.to(weight.dtype)
        if self.frequencies:
            features = torch.cat((features, fourier_embedding(boxes, self.frequencies).to(weight.dtype)), dim=-1)
        features = torch.where((region >= 0).unsqueeze(-1), features, weight)
        return Grounding(self.linears(features), bias, region, cells, unions, {}, self.keep_small)
