"""Rich-context's encoder, objective and sampler: the parts of the recipe that need torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from atelier.data.batch_reader import column
from atelier.data.encoder import Encoded
from atelier.data.raw_example import RawExample
from atelier.errors import ConfigError
from atelier.models.flops import regional_training_flops
from atelier.models.grounded_unet import adapter_parameters, blocks, freeze_base
from atelier.models.regional.batches import RegionLayout, collate
from atelier.models.regional.limit import limited
from atelier.models.regional.reading import read_regions
from atelier.models.regional.regions import map_regions, unions
from atelier.models.regional.rules import ADAPTER, RegionRules
from atelier.models.regional.texts import region_texts
from atelier.models.regional.tokens import NO_BOX, RegionTokens
from atelier.models.regional_unet import attach_regional
from atelier.recipes.denoising import compute_dtype, load_scheduler
from atelier.recipes.grounded_objective import GroundedObjective
from atelier.recipes.grounding import base_sizes, pad_boxes
from atelier.recipes.latents import LatentEncoder, half, parts_digest
from atelier.recipes.rich_context import Config, Recipe
from atelier.recipes.sd_text import SDText
from atelier.recipes.sdxl_text import SDXLText
from atelier.sampling.region_text import region_reader, region_states
from atelier.sampling.regional_pipeline import RegionalMixin, adopt_drawn
from atelier.sampling.regional_sd import StableDiffusionRegionalPipeline
from atelier.sampling.regional_sdxl import StableDiffusionXLRegionalPipeline
from atelier.training.protocol import Draws

TEXTS: dict[str, type[SDXLText] | type[SDText]] = {"sdxl": SDXLText, "sd": SDText}
"""How each family reads text."""


def open_pipeline(
    base: Path, family: str, unet: UNet2DConditionModel | None = None, rules: RegionRules | None = None
) -> RegionalMixin:
    """The sampler of a diffusers folder, with ``unet`` in the place of the folder's own.

    Args:
        rules: of ``unet``; an exported folder names its own.
    """
    if unet is None:
        unet = UNet2DConditionModel.from_pretrained(base / "unet").eval()
        rules = adopt_drawn(unet, base / ADAPTER)
    text = TEXTS[family].load(base)
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(base / "vae").eval().requires_grad_(False),
        "text_encoder": text.encoders[0],
        "tokenizer": text.tokenizers[0],
        "unet": unet,
        "scheduler": load_scheduler(base),
    }
    pipeline: StableDiffusionXLRegionalPipeline | StableDiffusionRegionalPipeline
    if family == "sdxl":
        second = {"text_encoder_2": text.encoders[1], "tokenizer_2": text.tokenizers[1]}
        pipeline = StableDiffusionXLRegionalPipeline(**parts, **second, add_watermarker=False)
    else:
        pipeline = StableDiffusionRegionalPipeline(**parts)
    pipeline.rules = rules or RegionRules()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Encoder:
    """``atelier.data.encoder.TakesSquares``, of one resolution: latents, prompt, and the regions' tokens, fp16.

    What no cell would lack is not stored: of a region without words (the background) only its number, since the
    states of no words are the same in every picture. Of more tokens than ``Config.max_region_tokens`` the smallest
    regions' are not stored either, and their cells are of no region.
    """

    def __init__(self, base: Path, config: Config) -> None:
        self.config = config
        self.latents = LatentEncoder(base)
        self.text = TEXTS[config.family].load(base, device=str(self.latents.device))
        self.digest = parts_digest(base, ("vae", *self.text.parts))

    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """As ``encode_squares``: images uint8 [B, res, res, 3]."""
        return [encoded.arrays for encoded in self.encode_squares({images.shape[1]: images}, examples)]

    @torch.no_grad()
    def encode_squares(self, squares: dict[int, np.ndarray], examples: list[RawExample]) -> list[Encoded]:
        """One square of each image, uint8 [B, res, res, 3] → B samples of ``latent`` [4, h, w], ``prompt`` [T, D],
        SDXL's ``pooled`` [P] and of the regions ``cells`` [h, w], ``wordless`` [k] and, a row a token, ``text`` [t, D],
        ``text_boxes`` [t, 4], ``text_bias`` [t], ``text_region`` [t]; float16, the numbers of regions int16, boxes and
        bias float32.

        Counted are ``region_tokens``, the background's among them, ``regions_left_out``, ``pictures_limited`` (those of
        which any was) and ``descriptions_cut`` (that alone are longer than the text encoder reads).

        Raises:
            ConfigError: several resolutions; regions are cut for one latent.
        """
        if len(squares) != 1:
            sides = ", ".join(map(str, sorted(squares)))
            raise ConfigError(f"resolutions {sides}: regions are cut for one latent", "give one resolution")
        (images,) = squares.values()
        latents = half(self.latents(images))
        captions = self.text.captions([example.caption for example in examples])
        told = {name: half(states) for name, states in captions.items()}
        reader = region_reader(self.text.tokenizers, self.text.encoders, half)
        regions = read_regions(
            [(example.boxes, example.phrases) for example in examples],
            latents.shape[-2],
            latents.shape[-1],
            reader,
            iou_weight=self.config.iou_weight,
            legacy=self.config.parity,
        )
        samples = []
        for row, (example, own) in enumerate(zip(examples, regions, strict=True)):
            kept = limited(*own, self.config.max_region_tokens)
            arrays = {"latent": latents[row], **{name: states[row] for name, states in told.items()}}
            counts = {
                "region_tokens": len(kept.tokens.region),
                "regions_left_out": kept.left_out,
                "pictures_limited": int(kept.left_out > 0),
                "descriptions_cut": sum(not reader.fits(phrase) for phrase in example.phrases),
            }
            texts = region_texts(own[0].regions, example.phrases, legacy=self.config.parity)
            samples.append(Encoded(arrays | _stored(kept.cells, kept.tokens, texts), counts))
        return samples


def _stored(cells: np.ndarray, tokens: RegionTokens, texts: list[str]) -> dict[str, np.ndarray]:
    """A picture's regions without the states of no words.

    Args:
        texts: of all regions. By parity one may be a separator alone, whose states are not those of no words.
    """
    unowned = np.unique(tokens.region[(tokens.boxes == NO_BOX).all(axis=1)])
    wordless = np.array([region for region in unowned if not texts[region].strip()], np.int16)
    spoken = ~np.isin(tokens.region, wordless)
    return {
        "cells": cells,
        "wordless": wordless,
        "text": tokens.text[spoken],
        "text_boxes": tokens.boxes[spoken],
        "text_bias": tokens.bias[spoken],
        "text_region": tokens.region[spoken],
    }


class Objective(GroundedObjective):
    """``atelier.training.protocol.Objective``: which parameters train, and the loss of a batch."""

    def __init__(self, recipe: Recipe, base: Path) -> None:
        super().__init__(recipe, base)
        # Every rank reads the states of one empty text and lets go of the encoders: of SDXL 1.6 GB for a moment, where
        # float32 would be 3.3.
        text = TEXTS[self.config.family].load(base, torch.float16)
        self._no_words = region_states(text.tokenizers, text.encoders, [""], half).states[0]
        self._dropped = self._without_caption(text)

    def _without_caption(self, text: SDXLText | SDText) -> dict[str, Tensor]:
        """What stands for a dropped caption: that with which the family samples without a prompt.

        Those are SDXL's zeros, its pooled text too, and SD's states of "". By ``parity`` zeros in both, and SDXL's
        pooled text stays.
        """
        zeros = torch.zeros(())
        if self.config.parity:
            return {"prompt": zeros}
        return {"prompt": zeros, "pooled": zeros} if self.config.family == "sdxl" else text.captions([""])

    def build(self) -> UNet2DConditionModel:
        """The frozen base with fresh layers in every transformer block."""
        unet = attach_regional(
            UNet2DConditionModel.from_pretrained(self.base / "unet"),
            self.config.fuser,
            keep_small=not self.config.parity,
        )
        freeze_base(unet)
        return unet

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """All that is trained, in one group."""
        return [{"params": list(adapter_parameters(model).values()), "name": "adapter"}]

    def gauges(self, model: nn.Module) -> dict[str, float]:
        """The root mean square of every fuser's last matrix: it starts at 0, where the layer does nothing.

        Those that ZeRO 3 has cut into parts are left out.
        """
        values = {}
        for name, block in blocks(model):  # type: ignore[arg-type]  # a UNet
            fuser: Any = block.fuser
            weight = fuser.attn.to_out[0].weight.detach()
            if weight.numel():
                values[f"{name}.out"] = weight.float().square().mean().sqrt().item()
        return values

    def flops_per_sample(self) -> float:
        """See ``regional_training_flops``."""
        config, latent, tokens = base_sizes(self.base, self.config.resolution)
        return regional_training_flops(config, latent, self.recipe.region_tokens, self.config.fuser, tokens)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Shard samples to a batch: latents [B, 4, h, w], prompt [B, T, D], SDXL's pooled [B, P], boxes [B, N, 4] and
        masks [B, N] for the loss's weights, and ``RegionTextNet``'s arguments. Floats are float32 but for the regions'
        text, which stays float16 as it is stored: the step casts it where it runs, half as much is sent there."""

        def stack(name: str) -> Tensor:
            return torch.from_numpy(column(samples, name).astype(np.float32))

        latents = stack("latent")
        size = (latents.shape[-2], latents.shape[-1])
        regions = collate(
            [self._layout(sample, size) for sample in samples],
            *size,
            self._no_words.shape[-1],
            with_unions=self.config.fuser == "casa",
        )
        return {
            "latents": latents,
            **{name: stack(name) for name in ("prompt", "pooled") if name in samples[0]},
            **pad_boxes(samples, self.config.max_boxes),
            "regions": {name: torch.from_numpy(array) for name, array in regions.items()},
        }

    def _layout(self, sample: dict[str, Any], size: tuple[int, int]) -> RegionLayout:
        """A sample's regions, with the states of no words where its encoder left them out."""
        wordless, count = sample["wordless"], len(self._no_words)
        more = len(wordless) * count
        tokens = RegionTokens(
            np.concatenate((sample["text"], *([self._no_words] * len(wordless)))),
            np.concatenate((sample["text_boxes"], np.full((more, 4), NO_BOX, np.float32))),
            np.concatenate((sample["text_bias"], np.zeros(more, np.float32))),
            np.concatenate((sample["text_region"], np.repeat(wordless, count))),
        )
        seen = None
        if self.config.fuser == "casa":
            boxes = np.asarray(sample["json"]["boxes"], np.float64).reshape(-1, 4)
            seen = unions(map_regions(boxes, *size, legacy=self.config.parity))
        return RegionLayout(tokens, sample["cells"], seen)

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws, progress: float) -> dict[str, Tensor]:
        """The denoising loss, layout and caption dropped independently; by ``parity`` one draw decides for the
        captions of the whole batch."""
        config, x = self.config, batch["latents"]
        no_boxes, no_caption = draws.chance(config.drop_boxes), draws.chance(config.drop_caption)
        first, last = config.timestep_power
        timesteps = self.schedule.timesteps(draws, first + (last - first) * progress)
        noised, target = self.schedule.noised(x, draws.normal(x.shape[1:]), timesteps)
        dtype = compute_dtype(model)
        if config.parity:
            no_caption = no_caption[:1].expand_as(no_caption)
        told = self._told(batch, no_caption, dtype)
        regions = dict(batch["regions"])
        regions["text"] = regions["text"].to(dtype)
        regions["cells"] = regions["cells"].masked_fill(no_boxes[:, None, None], -1)
        prediction = self.view.of(model)(
            noised.to(dtype),
            timesteps,
            told["prompt"],
            added_cond_kwargs=self._sized(told["pooled"]) if "pooled" in told else None,
            cross_attention_kwargs={"gligen": regions},
        ).sample
        return self.weighted_loss(prediction, target, batch)

    def _told(self, batch: dict[str, Any], no_caption: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """A batch's captions as the UNet reads them, dropped ones replaced."""
        told: dict[str, Tensor] = {name: batch[name].to(dtype) for name in ("prompt", "pooled") if name in batch}
        for name, absent in self._dropped.items():
            dropped = no_caption.view(-1, *[1] * (told[name].dim() - 1))
            told[name] = torch.where(dropped, absent.to(told[name]), told[name])
        return told

    def _sized(self, pooled: Tensor) -> dict[str, Tensor]:
        """SDXL's conditions beside the caption: its pooled text, and the picture's own size."""
        side = self.config.resolution
        # Sizes and boxes stay float32 until their sines are taken: bf16 holds no integer above 256 exactly.
        sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}
