"""A whole CrossFlow: text encoder, flow network and, for training, the image side of the contrastive loss."""

from typing import Any

import torch
from torch import Tensor, nn

from atelier.models.crossflow.configs import CrossFlowConfig
from atelier.models.crossflow.dimr import CrossFlowDiMR
from atelier.models.crossflow.dit import CrossFlowDiT, sin_cos_table
from atelier.models.crossflow.heads import image_head
from atelier.models.crossflow.image_tower import ImageTower
from atelier.models.crossflow.text_encoder import CrossFlowTextEncoder

PARTS = ("context_encoder", "open_clip", "open_clip_output")
TRAINING_ONLY = ("open_clip", "open_clip_output")
"""Parts that sampling does not need; exports leave them out."""
_FLOW = "flow."


class CrossFlow(nn.Module):
    """The parts that are trained together.

    Attributes:
        flow: see ``flow.FlowNetwork``.
        context_encoder: see ``CrossFlowTextEncoder``.
        open_clip, open_clip_output: the image tower and its head, None in a model for sampling.
    """

    def __init__(self, config: CrossFlowConfig) -> None:
        super().__init__()
        self.flow = build_flow(config)
        self.context_encoder = CrossFlowTextEncoder(**config.text, latent_shape=config.latent_shape)
        self.open_clip: ImageTower | None = None
        self.open_clip_output: nn.Module | None = None
        if config.tower is not None:
            self.open_clip = ImageTower(**config.tower)
            width = config.tower.get("width", 1024)
            self.open_clip_output = image_head(width, torch.Size(config.latent_shape).numel())

    def image_latents(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures → (their place in latent space [B, C·H·W], the raw logit scale)."""
        if self.open_clip is None or self.open_clip_output is None:
            raise RuntimeError("this CrossFlow was built without an image tower")
        features, logit_scale = self.open_clip(images)
        return self.open_clip_output(features), logit_scale

    def released_state(self) -> dict[str, Tensor]:
        """The parameters by the names of a released checkpoint."""
        return {released_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_released(self, state: dict[str, Tensor]) -> None:
        """Loads parameters by the names of a released checkpoint, every one of them."""
        self.load_state_dict({own_name(name): tensor for name, tensor in state.items()}, strict=True)


def build_flow(config: CrossFlowConfig) -> Any:
    """The flow network alone, a ``CrossFlowDiT`` or a ``CrossFlowDiMR``."""
    kind: Any = CrossFlowDiT if config.backbone == "dit" else CrossFlowDiMR
    return kind(**config.flow, channels=config.latent_shape[0])


def fixed_parameters(config: CrossFlowConfig) -> dict[str, Tensor]:
    """Parameters that are never trained, by their released names: DiT's position table."""
    if config.backbone == "dimr":
        return {}
    flow = config.flow
    grid = flow["latent_size"] // flow.get("patch_size", 2)
    return {"pos_embed": sin_cos_table(flow["hidden_size"], grid)}


def released_name(name: str) -> str:
    """Our name of a parameter → that in a released checkpoint, where the flow network lies at the root."""
    return name.removeprefix(_FLOW)


def own_name(name: str) -> str:
    """The way back."""
    return name if name.partition(".")[0] in PARTS else _FLOW + name
