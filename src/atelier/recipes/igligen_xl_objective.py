"""IGLIGEN-XL's encoder, objective and sampler: the parts of the recipe that need torch."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from atelier.data.geometry import time_ids
from atelier.data.sa1b import RawExample
from atelier.errors import ConfigError
from atelier.models.grounded_unet import adapter_parameters, attach, freeze_base, gates
from atelier.recipes.denoising import NoiseSchedule, box_weights, compute_dtype, weighted_mse
from atelier.recipes.igligen_xl import Config, Recipe
from atelier.recipes.layouts import Layout
from atelier.recipes.sdxl_text import SDXLText
from atelier.sampling.gligen_sdxl import StableDiffusionXLGLIGENPipeline
from atelier.storage.digest import sha256_file, sha256_json
from atelier.training.protocol import Draws


def open_pipeline(base: Path, unet: UNet2DConditionModel | None = None) -> StableDiffusionXLGLIGENPipeline:
    """The sampler of a diffusers folder, with ``unet`` in the place of the folder's own."""
    text = SDXLText.load(base)
    pipeline = StableDiffusionXLGLIGENPipeline(
        vae=AutoencoderKL.from_pretrained(base / "vae").eval().requires_grad_(False),
        text_encoder=text.encoders[0],
        text_encoder_2=text.encoders[1],
        tokenizer=text.tokenizers[0],
        tokenizer_2=text.tokenizers[1],
        unet=unet if unet is not None else UNet2DConditionModel.from_pretrained(base / "unet").eval(),
        scheduler=load_scheduler(base),
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_scheduler(base: Path) -> SchedulerMixin:
    """The base folder's scheduler, of whatever class its configuration names."""
    path = base / "scheduler" / "scheduler_config.json"
    name = str(json.loads(path.read_text())["_class_name"])
    kind: Any = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise ConfigError(f"{path} names {name!r}, which is no scheduler of diffusers", "correct the base folder")
    return kind.from_pretrained(base / "scheduler")  # type: ignore[attr-defined]  # mypy narrows Any to a bare type


class Encoder:
    """``atelier.data.preprocess.Encoder``: latents, prompt, pooled and phrase embeddings, all fp16.

    The latent is the posterior's mean: SDXL's autoencoder has a standard deviation of about 1e-4 of it, and a drawn
    sample would freeze one draw for the whole training.
    """

    PIXELS_PER_PASS = 2**17
    """On a CPU the autoencoder is fastest on as many pixels as its activations fit the caches with."""

    def __init__(self, base: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.vae = AutoencoderKL.from_pretrained(base / "vae").eval().requires_grad_(False).to(self.device)
        self.text = SDXLText.load(base, device=str(self.device))
        files = sorted(
            p
            for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
            for p in (base / part).rglob("*")
            if p.is_file()
        )
        self.digest = sha256_json({p.relative_to(base).as_posix(): sha256_file(p) for p in files})

    @torch.no_grad()
    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """images uint8 [B, res, res, 3] → B samples of ``latent`` [4, h, w], ``prompt`` [T, D], ``pooled`` [P] and
        ``phrases`` [n, D], float16."""
        latents = torch.cat([self._latents(part) for part in torch.from_numpy(images).split(self._images(images))])
        prompt, pooled = self.text.prompts([example.caption for example in examples])
        names = [name for example in examples for name in example.phrases]
        unique = list(dict.fromkeys(names))
        encoded = dict(zip(unique, _half(self.text.phrases(unique)), strict=True)) if unique else {}
        width = prompt.shape[-1]
        return [
            {
                "latent": latent,
                "prompt": states,
                "pooled": pool,
                "phrases": np.stack([encoded[name] for name in example.phrases])
                if example.phrases
                else np.zeros((0, width), np.float16),
            }
            for latent, states, pool, example in zip(
                _half(latents), _half(prompt), _half(pooled), examples, strict=True
            )
        ]

    def _images(self, images: np.ndarray) -> int:
        """Images in one pass of the autoencoder."""
        if self.device.type != "cpu":
            return len(images)
        return max(1, self.PIXELS_PER_PASS // (images.shape[1] * images.shape[2]))

    def _latents(self, images: Tensor) -> Tensor:
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents: Tensor = self.vae.encode(x).latent_dist.mean * self.vae.config["scaling_factor"]
        return latents


def _half(x: Tensor) -> np.ndarray:
    return x.half().cpu().numpy()


class Objective:
    """``atelier.training.protocol.Objective``: which parameters train, and the loss of a batch."""

    def __init__(self, recipe: Recipe, base: Path) -> None:
        self.recipe, self.config, self.base = recipe, recipe.config, base
        self.schedule = NoiseSchedule.of(load_scheduler(base))
        self._empty: tuple[Tensor, Tensor] | None = None
        self._pipeline: StableDiffusionXLGLIGENPipeline | None = None
        self._control: dict[str, float] | None = None

    def build(self) -> UNet2DConditionModel:
        """The frozen base with fresh layers in every transformer block."""
        unet = attach(UNet2DConditionModel.from_pretrained(self.base / "unet"))
        freeze_base(unet)
        config = self.config
        with torch.no_grad():
            for name, parameter in adapter_parameters(unet).items():
                gain = config.position_gain if name.startswith("position_net.") else config.fuser_gain
                if name.endswith(("alpha_attn", "alpha_dense")):
                    parameter.fill_(config.gate_start)
                elif gain is not None and parameter.dim() == 2:
                    nn.init.orthogonal_(parameter, gain)
        if self.config.empty_prompt == "encoded":
            self._empty = SDXLText.load(self.base).prompts([""])
        return unet

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The gates in a group of their own: they may have another learning rate."""
        named = adapter_parameters(model)
        alphas = [p for name, p in named.items() if ".alpha_" in name]
        others = [p for name, p in named.items() if ".alpha_" not in name]
        group: dict[str, Any] = {"params": alphas, "name": "gates"}
        if self.config.gate_lr is not None:
            group["lr"] = self.config.gate_lr
        return [{"params": others, "name": "adapter"}, group]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Shard samples to a batch: latents [B, 4, h, w], prompt [B, T, D], pooled [B, P], boxes [B, N, 4],
        masks [B, N], phrases [B, N, D], time_ids [B, 6]; float32, boxes padded to ``max_boxes``."""
        limit, width = self.config.max_boxes, samples[0]["prompt"].shape[-1]
        boxes = np.zeros((len(samples), limit, 4), np.float32)
        masks = np.zeros((len(samples), limit), np.float32)
        phrases = np.zeros((len(samples), limit, width), np.float32)
        for row, sample in enumerate(samples):
            used = min(len(sample["json"]["boxes"]), limit)
            if used:
                boxes[row, :used] = sample["json"]["boxes"][:used]
                phrases[row, :used] = sample["phrases"][:used]
                masks[row, :used] = 1

        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([sample[name] for sample in samples]).astype(np.float32))

        return {
            "latents": stack("latent"),
            "prompt": stack("prompt"),
            "pooled": stack("pooled"),
            "boxes": torch.from_numpy(boxes),
            "masks": torch.from_numpy(masks),
            "phrases": torch.from_numpy(phrases),
            # float32 holds sizes exactly; upstream's fp16 rounds those above 2048.
            "time_ids": torch.tensor([sample["json"]["time_ids"] for sample in samples], dtype=torch.float32),
        }

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws, progress: float) -> dict[str, Tensor]:
        """The denoising loss under jointly dropped conditions.

        With probability ``drop_boxes`` boxes and caption go together (what guidance needs as its other half); else
        the caption alone goes with probability ``drop_caption``.
        """
        config, x = self.config, batch["latents"]
        no_boxes = draws.chance(config.drop_boxes)
        no_caption = draws.chance(config.drop_caption) | no_boxes
        first, last = config.timestep_power
        timesteps = self.schedule.timesteps(draws, first + (last - first) * progress)
        noised, target = self.schedule.noised(x, draws.normal(x.shape[1:]), timesteps)
        prompt, pooled = self._captions(batch["prompt"], batch["pooled"], no_caption)
        masks = batch["masks"] * (~no_boxes)[:, None]
        dtype = compute_dtype(model)
        prediction = model(
            noised.to(dtype),
            timesteps,
            prompt.to(dtype),
            # Sizes and boxes stay float32 until their sines are taken: bf16 holds no integer above 256 exactly.
            added_cond_kwargs={"text_embeds": pooled.to(dtype), "time_ids": batch["time_ids"]},
            cross_attention_kwargs={
                "gligen": {"boxes": batch["boxes"], "masks": masks, "positive_embeddings": batch["phrases"].to(dtype)}
            },
        ).sample
        weights = None
        if config.inside_weight != 1:
            weights = box_weights(batch["boxes"], batch["masks"], (x.shape[2], x.shape[3]), config.inside_weight)
        error = weighted_mse(prediction, target, weights)
        return {"loss": error.mean()}

    def _captions(self, prompt: Tensor, pooled: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
        if self._empty is None:
            keep = (~dropped).to(prompt.dtype)
            return prompt * keep[:, None, None], pooled * keep[:, None]
        empty_prompt, empty_pooled = (e.to(prompt.device, prompt.dtype) for e in self._empty)
        return (
            torch.where(dropped[:, None, None], empty_prompt, prompt),
            torch.where(dropped[:, None], empty_pooled, pooled),
        )

    def trainable_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Fusers and position net under their diffusers names."""
        return {name: parameter.detach() for name, parameter in adapter_parameters(model).items()}

    def gauges(self, model: nn.Module) -> dict[str, float]:
        """tanh(alpha) of every gate: the loss shows nothing until they open."""
        return gates(model)

    def preview(self, model: nn.Module, step: int) -> list[Image.Image]:
        """The same eight layouts each time, from the same noise; the model is left as found."""
        return self._draw(model, grounded=True)

    def validate(self, model: nn.Module, step: int, previews: list[Image.Image]) -> dict[str, float]:
        """How far the previews follow their boxes, and the same prompts and noise without grounding as control.

        Read off the pixels alone, no judge: the share of the ink that lies in the boxes, and of the boxes that hold
        ink. {} where nothing is known of what is drawn (the layouts have no labels).
        """
        from atelier.evaluation.layout import ink_metrics

        layouts = self._preview_layouts()
        if not all(layout.labels for layout in layouts):
            return {}
        boxes = [layout.boxes for layout in layouts]
        if self._control is None:
            # Drawn once: without grounding the fusers are skipped, and the base is frozen.
            control = [np.asarray(image) for image in self._draw(model, grounded=False)]
            self._control = ink_metrics(control, boxes, "_ungrounded")
        return ink_metrics([np.asarray(image) for image in previews], boxes) | self._control

    def _preview_layouts(self) -> list[Layout]:
        return self.recipe.layouts(8, seed=1)

    @torch.no_grad()
    def _draw(self, model: nn.Module, grounded: bool) -> list[Image.Image]:
        if self._pipeline is None:
            self._pipeline = self.recipe.pipeline(self.base, model)
        config, training, dtype = self.config, model.training, compute_dtype(model)
        device = next(model.parameters()).device.type
        model.eval()
        try:
            # The pipeline's other parts are float32: autocast joins them to a UNet in half precision.
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                return sample_layouts(
                    self._pipeline, self._preview_layouts(), config, config.preview_steps, config.guidance, grounded
                )
        finally:
            model.train(training)

    def flops_per_sample(self) -> float:
        """Twice the base's forward pass (activations need gradients, weights do not) + three times the adapter's."""
        from atelier.models.flops import adapter_training_flops

        config = UNet2DConditionModel.load_config(self.base / "unet")
        tokens = json.loads((self.base / "text_encoder" / "config.json").read_text())["max_position_embeddings"]
        vae = AutoencoderKL.load_config(self.base / "vae")
        latent = self.config.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
        return adapter_training_flops(config, latent, self.config.max_boxes, tokens)


def sample_layouts(
    pipeline: StableDiffusionXLGLIGENPipeline,
    layouts: list[Layout],
    config: Config,
    steps: int,
    guidance: float,
    grounded: bool = True,
) -> list[Image.Image]:
    """One picture a layout, each from its own seed's noise; ``grounded=False`` is the control."""
    size = (config.resolution, config.resolution)
    conditions = time_ids(size, config.resolution)
    result = pipeline(
        [layout.prompt for layout in layouts],
        height=config.resolution,
        width=config.resolution,
        num_inference_steps=steps,
        guidance_scale=guidance,
        original_size=conditions[:2],
        target_size=conditions[4:],
        generator=[torch.Generator().manual_seed(layout.seed) for layout in layouts],
        gligen_boxes=[layout.boxes for layout in layouts] if grounded else None,
        gligen_phrases=[layout.phrases for layout in layouts] if grounded else None,
        gligen_scheduled_sampling_beta=config.beta,
        gligen_max_boxes=config.max_boxes,
    )
    images: list[Image.Image] = result.images
    return images
