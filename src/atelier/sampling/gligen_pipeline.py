"""What GLIGEN adds to a diffusers pipeline, whatever the base model: phrases as tokens, and inpainting in boxes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.sampling.inpainting import Inpainting, encode, keep_mask
from atelier.sampling.layout_input import Boxes, PromptLayout, read_layouts
from atelier.sampling.layout_pipeline import TOKENIZING, LayoutMixin, prompt_count


class GLIGENMixin(LayoutMixin):
    """Grounded sampling for a subclass of a stock pipeline, which it precedes among the bases.

    A subclass says how phrases become embeddings and which stock pipeline does the work.
    """

    def layout_arguments(
        self,
        boxes: Sequence[Boxes],
        phrases: Sequence[Sequence[str]],
        *,
        beta: float,
        decay: float = 0.0,
        max_boxes: int | None = None,
    ) -> dict[str, Any]:
        """The call's own arguments for one layout a prompt.

        Args:
            beta, decay: as in ``grounding_scales``.
            max_boxes: slots of the model; None: as many as the call's own default.
        """
        given = {
            "gligen_boxes": boxes,
            "gligen_phrases": phrases,
            "gligen_scheduled_sampling_beta": beta,
            "gligen_decay": decay,
        }
        return given if max_boxes is None else {**given, "gligen_max_boxes": max_boxes}

    def _embed_phrases(self, phrases: list[str]) -> Tensor:
        """Phrase embeddings [N, width]."""
        raise NotImplementedError

    def _grounded_call(
        self: Any,
        arguments: dict[str, Any],
        *,
        boxes: Any,
        phrases: Any,
        embeddings: Any,
        beta: float,
        decay: float,
        max_boxes: int,
        inpaint_image: Any = None,
    ) -> Any:
        """Runs the stock pipeline with these arguments, grounded.

        Args:
            arguments: of the stock ``__call__``, by name.
            boxes, phrases, embeddings: as in ``read_layouts``.
            beta, decay: as in ``grounding_scales``.
            max_boxes: slots of the model.
            inpaint_image: a PIL image, or one a prompt.
        """
        prompts = prompt_count(arguments)
        copies = arguments.get("num_images_per_prompt") or 1
        layouts = read_layouts(boxes, phrases, embeddings, prompts, max_boxes)
        inpainting = self._prepare_inpainting(inpaint_image, layouts, prompts, copies, arguments)
        channels = self._inpainting_channels(inpainting)

        def ground(guided: bool) -> tuple[Tensor, Tensor | None]:
            tokens = self._grounding_tokens(layouts, max_boxes, copies, guided)
            if all(layout.boxes for layout in layouts):
                return tokens, None
            rows = torch.tensor([float(bool(layout.boxes)) for layout in layouts]).repeat_interleave(copies)
            return tokens, rows.repeat(2 if guided else 1)[:, None, None]

        grounded = any(layout.boxes for layout in layouts)
        return self._layout_call(arguments, ground if grounded else None, beta, decay, inpainting, channels)

    def _grounding_tokens(self: Any, layouts: list[PromptLayout], max_boxes: int, copies: int, guided: bool) -> Tensor:
        """The position net's tokens of the whole batch (guided: null tokens for the unconditional half first)."""
        net = self.unet.position_net
        # Where its weights lie now, which with offloading is not where the UNet will run.
        device, dtype = net.null_positive_feature.device, net.null_positive_feature.dtype
        width = net.null_positive_feature.shape[0]
        boxes = torch.zeros(len(layouts), max_boxes, 4, device=device)
        masks = torch.zeros(len(layouts), max_boxes, device=device)
        states = torch.zeros(len(layouts), max_boxes, width, device=device, dtype=dtype)
        known = self._embeddings(layouts, width)
        for row, layout in enumerate(layouts):
            used = len(layout.boxes)
            if used:
                boxes[row, :used] = torch.tensor(layout.boxes, device=device)
                masks[row, :used] = 1
                own = layout.embeddings
                states[row, :used] = (torch.stack([known[p] for p in layout.phrases]) if own is None else own).to(
                    states
                )
        objs: Tensor = net(boxes, masks, states).repeat_interleave(copies, 0)
        if not guided:
            return objs
        null = net(boxes[:1], masks[:1] * 0, states[:1]).expand_as(objs)
        return torch.cat((null, objs))

    def _embeddings(self: Any, layouts: list[PromptLayout], width: int) -> dict[str, Tensor]:
        """Each different phrase's embedding, all encoded at once."""
        for number, layout in enumerate(layouts):
            if layout.embeddings is not None and layout.boxes and layout.embeddings.shape[-1] != width:
                raise ConfigError(
                    f"phrase embeddings of prompt {number} are {layout.embeddings.shape[-1]} wide, the model's {width}",
                    "use the embeddings of this base model's text encoders",
                )
        phrases = list(dict.fromkeys(phrase for layout in layouts for phrase in layout.phrases))
        if not phrases:
            return {}
        embedded: Tensor = self._embed_phrases(phrases)
        if embedded.shape[-1] != width:
            raise ConfigError(
                f"this text encoder's phrase embeddings are {embedded.shape[-1]} wide, the UNet's {width}",
                "use the text encoder that the UNet was trained with",
            )
        return dict(zip(phrases, embedded, strict=True))

    def _prepare_inpainting(
        self: Any,
        image: Any,
        layouts: Sequence[PromptLayout],
        prompts: int,
        copies: int,
        arguments: dict[str, Any],
    ) -> Inpainting | None:
        latent_channels = self.unet.config.out_channels
        extra = self.unet.config.in_channels - latent_channels
        if image is None:
            if extra:
                raise ConfigError(
                    f"the UNet takes {extra} channels besides the latents: it is an inpainting model",
                    "give gligen_inpaint_image, or use a text-to-image model",
                )
            return None
        if extra not in (0, latent_channels + 1):
            raise ConfigError(
                f"the UNet takes {self.unet.config.in_channels} channels", "inpainting knows 4 and GLIGEN's own 9"
            )
        if not any(layout.boxes for layout in layouts):
            raise ConfigError("gligen_inpaint_image is given without boxes", "boxes say where to paint")
        images = list(image) if isinstance(image, list | tuple) else [image] * prompts
        if len(images) != prompts:
            raise ConfigError(f"{len(images)} inpainting images for {prompts} prompts", "give one, or one a prompt")
        height, width = self._size(arguments)
        encoded = {id(one): encode(self.vae, one, height, width) for one in images}
        latents = torch.cat([encoded[id(one)] for one in images])
        masks = torch.stack([keep_mask(layout.boxes, *latents.shape[-2:]) for layout in layouts]).to(latents)
        return Inpainting(latents.repeat_interleave(copies, 0), masks.repeat_interleave(copies, 0))

    def _inpainting_channels(self: Any, inpainting: Inpainting | None) -> Tensor | None:
        wants = self.unet.config.in_channels > self.unet.config.out_channels
        return inpainting.channels if inpainting is not None and wants else None


def pooled_states(tokenizer: Any, encoder: Any, phrases: list[str], output: str) -> Tensor:
    """One text encoder's end-of-text state of each phrase [N, width]; longer phrases are cut to its length.

    No more padding than the longest phrase needs: the encoders are causal, so that what follows a phrase's end does
    not reach it.

    Args:
        output: the encoder's output to take: ``pooler_output`` or ``text_embeds``.

    Raises:
        ConfigError: the pipeline has no such encoder.
    """
    if tokenizer is None or encoder is None:
        raise ConfigError("the pipeline has no text encoder for phrases", "give gligen_phrase_embeds")
    with TOKENIZING:
        ids = tokenizer(
            phrases, padding="longest", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
    state: Tensor = getattr(encoder(ids.to(encoder.device)), output)
    return state
