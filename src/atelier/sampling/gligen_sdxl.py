"""Layout-to-image sampling with an SDXL UNet that carries GLIGEN's layers."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from atelier.errors import ConfigError
from atelier.models.grounded_unet import adopt

Boxes = Sequence[Sequence[float]]


class StableDiffusionXLGLIGENPipeline(StableDiffusionXLPipeline):
    """SDXL's own pipeline with boxes and phrases (GLIGEN, arXiv 2301.07093; SDXL form as IGLIGEN-XL).

    It does not fork the parent's sampling loop: the grounding tokens are computed once a call and travel through
    ``cross_attention_kwargs``; when the scheduled steps are over the key is taken away, which skips the fusers
    for the rest. Nothing of the UNet is switched, so it is left as found.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        # diffusers reads a pipeline's parts off this signature, types included.
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=adopt(unet),
            scheduler=scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            add_watermarker=add_watermarker,
        )

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        prompt: str | list[str] | None = None,
        *args: Any,
        gligen_phrases: Sequence[str] | Sequence[Sequence[str]] | None = None,
        gligen_boxes: Boxes | Sequence[Boxes] | None = None,
        gligen_scheduled_sampling_beta: float = 0.3,
        gligen_max_boxes: int = 32,
        **kwargs: Any,
    ) -> Any:
        """As ``StableDiffusionXLPipeline``, with three more arguments.

        Args:
            gligen_phrases: a phrase a box: one list for every prompt, or a list a prompt.
            gligen_boxes: normalised xyxy, one list for every prompt, or a list a prompt. None: no grounding.
            gligen_scheduled_sampling_beta: the share of the steps, from the first, that are grounded.
            gligen_max_boxes: the number of slots that the model was trained with.

        Raises:
            ConfigError: boxes and phrases of different number, a box outside [0, 1] or without area, too many boxes.
        """
        if not gligen_boxes and not gligen_phrases:
            return super().__call__(prompt, *args, **kwargs)
        prompts = self._prompt_count(prompt, kwargs)
        grounding = self._per_prompt(gligen_boxes, gligen_phrases, prompts, gligen_max_boxes)
        if not 0 <= gligen_scheduled_sampling_beta <= 1:
            raise ConfigError(f"gligen_scheduled_sampling_beta is {gligen_scheduled_sampling_beta}", "use 0 to 1")
        steps = int(gligen_scheduled_sampling_beta * self._step_count(kwargs))
        guided = kwargs.get("guidance_scale", 5.0) > 1 and self.unet.config.time_cond_proj_dim is None
        objs = self._grounding_tokens(grounding, gligen_max_boxes, kwargs.get("num_images_per_prompt") or 1, guided)
        user_callback = kwargs.pop("callback_on_step_end", None)
        shared = kwargs.pop("cross_attention_kwargs", None) or {}

        def after_step(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
            if step + 1 == steps:
                pipe._cross_attention_kwargs = shared or None
            return user_callback(pipe, step, timestep, tensors) if user_callback else {}

        grounded = {**shared, "gligen": {"objs": objs}} if steps > 0 else shared
        return super().__call__(
            prompt, *args, cross_attention_kwargs=grounded or None, callback_on_step_end=after_step, **kwargs
        )

    def _step_count(self, kwargs: dict[str, Any]) -> int:
        for name in ("timesteps", "sigmas"):
            if kwargs.get(name) is not None:
                return len(kwargs[name])
        return int(kwargs.get("num_inference_steps", 50))

    @staticmethod
    def _prompt_count(prompt: str | list[str] | None, kwargs: dict[str, Any]) -> int:
        if prompt is not None:
            return 1 if isinstance(prompt, str) else len(prompt)
        return len(kwargs["prompt_embeds"])

    @staticmethod
    def _per_prompt(
        boxes: Any, phrases: Any, prompts: int, max_boxes: int
    ) -> list[tuple[list[Sequence[float]], list[str]]]:
        """Boxes and phrases of each prompt, checked."""
        if not phrases or isinstance(phrases[0], str):
            boxes, phrases = [boxes] * prompts, [phrases] * prompts
        if len(boxes) != prompts or len(phrases) != prompts:
            raise ConfigError(
                f"{len(boxes)} lists of boxes and {len(phrases)} of phrases for {prompts} prompts",
                "give one list for all prompts, or one a prompt",
            )
        result = []
        for number, (own_boxes, own_phrases) in enumerate(zip(boxes, phrases, strict=True)):
            own_boxes, own_phrases = list(own_boxes or ()), list(own_phrases or ())
            if len(own_boxes) != len(own_phrases):
                raise ConfigError(
                    f"prompt {number} has {len(own_boxes)} boxes and {len(own_phrases)} phrases", "give a phrase a box"
                )
            if len(own_boxes) > max_boxes:
                raise ConfigError(
                    f"prompt {number} has {len(own_boxes)} boxes, more than {max_boxes}", "leave some out"
                )
            for box in own_boxes:
                if len(box) != 4 or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
                    raise ConfigError(
                        f"box {list(box)} of prompt {number} is not a box",
                        "give x0 < x1 and y0 < y1, all within 0 to 1",
                    )
            result.append((own_boxes, own_phrases))
        return result

    def _grounding_tokens(
        self, grounding: list[tuple[list[Sequence[float]], list[str]]], max_boxes: int, copies: int, guided: bool
    ) -> Tensor:
        """The position net's tokens of the whole (guided: unconditional first) batch, computed once a call."""
        device, dtype = self._execution_device, self.unet.dtype
        count = len(grounding)
        boxes = torch.zeros(count, max_boxes, 4, device=device)
        masks = torch.zeros(count, max_boxes, device=device)
        width = self.unet.position_net.null_positive_feature.shape[0]
        embeddings = torch.zeros(count, max_boxes, width, device=device, dtype=dtype)
        phrases = [phrase for _, own in grounding for phrase in own]
        encoded = self._encode_phrases(phrases).to(device, dtype) if phrases else embeddings[:0, 0]
        for row, (own_boxes, _) in enumerate(grounding):
            used = len(own_boxes)
            if used:
                boxes[row, :used] = torch.tensor(own_boxes, device=device)
                masks[row, :used] = 1
                embeddings[row, :used], encoded = encoded[:used], encoded[used:]
        objs = self.unet.position_net(boxes, masks, embeddings).repeat_interleave(copies, 0)
        if not guided:
            return objs
        null = self.unet.position_net(boxes[:1], masks[:1] * 0, embeddings[:1]).expand_as(objs)
        return torch.cat((null, objs))

    def _encode_phrases(self, phrases: list[str]) -> Tensor:
        """Phrase embeddings [N, W1 + P]: pooler output of encoder 1 beside the projected one of encoder 2."""
        states = []
        for tokenizer, encoder, name in (
            (self.tokenizer, self.text_encoder, "pooler_output"),
            (self.tokenizer_2, self.text_encoder_2, "text_embeds"),
        ):
            ids = tokenizer(
                phrases,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            states.append(getattr(encoder(ids.to(encoder.device)), name))
        return torch.cat(states, dim=-1)
