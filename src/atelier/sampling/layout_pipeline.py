"""What a layout adds to a diffusers pipeline, whatever the base model and the layers that read it.

The stock loop is not copied. A call makes a shallow copy of the pipeline with a scheduler of its own and views of the
UNet and VAE (``parts``), and lets the stock ``__call__`` run on that copy. So a pipeline, its UNet and its scheduler
are after a call what they were before, and threads may share one.
"""

import copy
import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atelier.errors import ConfigError
from atelier.sampling.inpainting import Inpainting
from atelier.sampling.parts import RunUNet, RunVAE
from atelier.sampling.schedule import grounding_scales
from atelier.sampling.sharing import for_a_run

TOKENIZING = threading.Lock()
"""A fast tokenizer keeps padding and truncation as state from one call to the next: one thread at a time."""


Ground = Callable[[bool], tuple[Any, Tensor | None]]
"""Whether the batch has an unconditional half, which comes first → what the UNet's layers are given of the whole batch,
and how strongly each sample takes it in [B, 1, 1] where that differs."""


class LayoutMixin:
    """Sampling from layouts for a subclass of a stock pipeline, which it precedes among the bases."""

    #: The stock pipeline class whose loop runs.
    _stock: type[Any]
    #: The share of the steps that are grounded where nobody says.
    default_beta = 0.3
    #: Set on a run's own copy when it inpaints.
    _inpainting: Inpainting | None = None

    def _layout_call(
        self: Any,
        arguments: dict[str, Any],
        ground: Ground | None,
        beta: float,
        decay: float = 0.0,
        inpainting: Inpainting | None = None,
        channels: Tensor | None = None,
        **own: Any,
    ) -> Any:
        """Runs the stock pipeline with these arguments, grounded.

        Args:
            arguments: of the stock ``__call__``, by name.
            ground: None: nothing is grounded.
            beta, decay: as in ``grounding_scales``.
            inpainting: what is kept of a picture.
            channels: [B, C, h, w] that the UNet takes behind the latents.
            own: attributes of the run's copy of the pipeline.
        """
        grounding_scales(1, beta, decay)
        run = copy.copy(self)
        vars(run).update(own)
        # Freeing hooks is the shared pipeline's business: its modules are the real ones.
        vars(run)["maybe_free_model_hooks"] = self.maybe_free_model_hooks
        vars(run)["scheduler"] = scheduler = copy.deepcopy(self.scheduler)
        if self.vae is not None:
            vars(run)["vae"] = RunVAE(self.vae)
        guided = self._default(arguments, "guidance_scale") > 1 and self.unet.config.time_cond_proj_dim is None
        if channels is not None and guided:
            channels = torch.cat((channels, channels))
        tokens = rows = None
        if ground is not None and beta + decay > 0:
            tokens, rows = ground(guided)
        vars(run)["unet"] = RunUNet(for_a_run(self.unet), scheduler, tokens, rows, beta, decay, channels)
        if inpainting is not None:
            inpainting.watch(scheduler)
            run._inpainting = inpainting
        return self._stock.__call__(run, **arguments)

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As the stock pipeline, one thread at a time."""
        with TOKENIZING:
            return self._stock.encode_prompt(self, *args, **kwargs)

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As the stock pipeline; a run that inpaints starts with the picture outside the boxes."""
        latents: Tensor = self._stock.prepare_latents(self, *args, **kwargs)
        return latents if self._inpainting is None else self._inpainting.start(latents, self.scheduler)

    def _default(self: Any, arguments: dict[str, Any], name: str) -> Any:
        if name in arguments:
            return arguments[name]
        return inspect.signature(self._stock.__call__).parameters[name].default

    def _size(self: Any, arguments: dict[str, Any]) -> tuple[int, int]:
        """Height and width in pixels, the stock pipeline's own where none are given."""
        height, width = arguments.get("height"), arguments.get("width")
        if height and width:
            return int(height), int(width)
        sample = self.unet.config.sample_size
        rows, columns = (sample, sample) if isinstance(sample, int) else sample
        return rows * self.vae_scale_factor, columns * self.vae_scale_factor


def prompt_count(arguments: dict[str, Any]) -> int:
    """How many prompts a call has.

    Raises:
        ConfigError: there is none.
    """
    prompt = arguments.get("prompt")
    if prompt is not None:
        return 1 if isinstance(prompt, str) else len(prompt)
    if arguments.get("prompt_embeds") is None:
        raise ConfigError("there is neither prompt nor prompt_embeds", "give one of the two")
    return len(arguments["prompt_embeds"])
