"""CrossFlow's part of the training ladder (``benchmarks.gpu.train_step --part crossflow-256-clip-dimr``).

The recipe's own objective with random weights, all of which are trained, on synthetic features of the shards' shapes.
The first rungs are how the published code trains: language model and autoencoder in the loop, blocks recomputed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from atelier.models.crossflow import dimr, dit
from atelier.models.crossflow.flops import training_flops
from atelier.models.crossflow.text_encoder import EncoderLayer
from atelier.recipes.registry import get
from atelier.recipes.twins.assets import shipped
from atelier.training.protocol import Draws
from benchmarks.gpu.train_step import Optimizer, Rung, climb, set_attention

_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_T5_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_CLIP_TINY = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_T5_TINY = {"d_model": 96, "d_kv": 24, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_TOKENS = 20
"""Of a caption; the rest of its 77 places is padding."""
_COMPILED = (dimr.TransformerBlock, dimr.ConvNeXtBlock, dit.Block, EncoderLayer)


@dataclass(frozen=True)
class Size:
    """One model.

    Attributes:
        recipe: whose it is; the profile ``paper``, or ``laptop`` with ``--tiny``.
        batches: the ladder's common batch, then the larger ones of its last rungs.
        bar: img/s on one H200 that are 40 % MFU.
    """

    recipe: str
    batches: tuple[int, ...]
    bar: float | None


SIZES = {
    "crossflow-256-clip-dimr": Size("crossflow", (8, 32, 64, 128), 171.0),
    "crossflow-512-clip-dimr": Size("crossflow:512_clip_dimr", (8, 16, 32, 64), 141.0),
    "crossflow-512-t5-dit": Size("crossflow:512_t5_dit", (4, 8, 16, 32), 72.0),
}
"""Bars: 0.4 × 989 TFLOP/s (H200, bf16, dense) over what a sample costs, blocks counted once however often computed."""


@dataclass(frozen=True)
class CrossFlowRung(Rung):
    """How a step is computed; ``recompute``: blocks keep nothing for the backward pass."""

    recompute: bool = True


def ladder(batches: tuple[int, ...]) -> Iterator[CrossFlowRung]:
    """The rungs of a CrossFlow."""
    changes = (
        ("precomputed features", {"encoders": False}),
        ("bf16 weights, fp32 masters", {"bf16": True}),
        ("flash attention", {"flash": True}),
        ("fused optimizer", {"fused": True}),
        ("regional compile", {"compiled": True}),
        ("blocks kept", {"recompute": False}),
    )
    first = CrossFlowRung("fp32, math attention, encoders in the loop, blocks recomputed", batches[0])
    return climb(first, changes, batches[1:])


def recipe_of(size: Size, tiny: bool) -> Any:
    """The recipe at its published size, or its twin."""
    return get(size.recipe, "laptop" if tiny else "paper")


def flops_of(size: Size, tiny: bool) -> float:
    """Of a sample's training step."""
    return training_flops(recipe_of(size, tiny).config.model())


class Step:
    """One training step of a CrossFlow, built as a rung says."""

    def __init__(
        self, size: Size, rung: CrossFlowRung, device: torch.device, lr: float = 1e-5, tiny: bool = False
    ) -> None:
        self.rung, self.device, self.done = rung, device, 0
        dtype = torch.bfloat16 if rung.bf16 else torch.float32
        set_attention(rung.flash)
        recipe = recipe_of(size, tiny)
        self.objective = recipe.objective(shipped("sd_twin"))  # of the base it reads the latents' scale alone
        torch.manual_seed(0)
        with torch.device(device):
            self.model = self.objective.build().to(dtype).train()
        for stage in getattr(self.model.flow, "stages", [self.model.flow]):
            stage.gradient_checkpointing = rung.recompute
        self.encode = _encoders(recipe.config, device, dtype, tiny) if rung.encoders else None
        self.optimizer = Optimizer([p for p in self.model.parameters() if p.requires_grad], rung.fused, lr)
        if rung.compiled:
            _compile_regions(self.model, "eager" if tiny else "inductor")
        self.batch = host_batch(recipe.config, rung.batch, pinned=device.type == "cuda")

    def __call__(self) -> Tensor:
        """Returns the loss, not yet waited for."""
        batch = {name: value.to(self.device, non_blocking=True) for name, value in self.batch.items()
                 if self.encode is not None or name not in ("pictures", "numbers")}  # fmt: skip
        if self.encode is not None:
            batch["moments"], batch["text"] = self.encode(batch["pictures"], batch["numbers"])
        rows = len(batch["moments"])
        draws = Draws(0, [(0, self.done * rows + row) for row in range(rows)], self.device)
        value: Tensor = self.objective.loss(self.model, batch, draws, 0.0)["loss"]
        value.backward()
        self.optimizer.step()
        self.done += 1
        return value.detach()


def host_batch(config: Any, rows: int, pinned: bool = False) -> dict[str, Tensor]:
    """What ``collate`` gives for ``rows`` samples; pictures and token numbers beside it."""
    networks, generator = config.model(), torch.Generator().manual_seed(0)
    channels, *sides = networks.latent_shape
    tokens, width = networks.text.get("tokens", 77), networks.text["width"]
    mean = torch.randn(rows, channels, *sides, generator=generator)
    mask = (torch.arange(tokens) < min(_TOKENS, tokens)).float().repeat(rows, 1)
    batch = {
        "moments": torch.cat([mean, torch.full_like(mean, -8.0)], dim=1),
        "text": torch.randn(rows, tokens, width, generator=generator) * mask[..., None],
        "mask": mask,
        "pictures": torch.rand(rows, 3, config.resolution, config.resolution, generator=generator) * 2 - 1,
        "numbers": torch.randint(0, 1000, (rows, tokens), generator=generator),
    }
    return {name: value.pin_memory() for name, value in batch.items()} if pinned else batch


def _encoders(
    config: Any, device: torch.device, dtype: torch.dtype, tiny: bool
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(pictures [B, 3, R, R], token numbers [B, T]) → moments and text, as without shards."""
    channels = (16, 32, 32) if tiny else (128, 256, 512, 512)
    tokens = config.model().text.get("tokens", 77)
    with torch.device(device):
        text: nn.Module
        if config.language_model == "t5":
            text = T5EncoderModel(T5Config(**(_T5_TINY if tiny else _T5_XXL)))
        else:
            text = CLIPTextModel(CLIPTextConfig(**(_CLIP_TINY if tiny else _CLIP_L), max_position_embeddings=tokens))
        text = text.to(dtype).eval()
        vae = AutoencoderKL(
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            layers_per_block=2, latent_channels=4, norm_num_groups=min(32, channels[0]),
        ).to(dtype).eval()  # fmt: skip

    @torch.no_grad()
    def encode(pictures: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        moments = vae.encode(pictures.to(dtype)).latent_dist.parameters.float()
        return moments, text(numbers).last_hidden_state.float()

    return encode


def _compile_regions(model: nn.Module, backend: str) -> None:
    """Compiles every block in place: equal ones share their code."""
    torch._dynamo.config.recompile_limit = 64  # one for each width and grid
    for module in model.modules():
        if isinstance(module, _COMPILED):
            module.compile(backend=backend)
