"""What Rich-context's regional layers (arXiv 2409.04847) add to a diffusers pipeline, whatever the base model."""

import inspect
import itertools
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from atelier.errors import ConfigError
from atelier.models.grounded_unet import blocks
from atelier.models.regional.batches import RegionLayout, collate, layout
from atelier.models.regional.fusers import InstDiffSelfAttention, RegionalCrossAndSelfAttention
from atelier.models.regional.grounding import Grounding
from atelier.models.regional.position_net import RegionTextNet
from atelier.models.regional.reading import Reader, read_regions
from atelier.models.regional.rules import ADAPTER, RegionRules, read_rules
from atelier.models.regional_unet import adopt_regional, kind_of, require_drawn
from atelier.sampling.layout_input import Boxes, Names, PromptLayout, read_layouts
from atelier.sampling.layout_pipeline import LayoutMixin, prompt_count
from atelier.sampling.region_text import region_reader

_NAMES = Names(phrase="label", phrases="labels", room="leave some out, or raise max_objs")
"""What a caller calls his descriptions here."""


class RegionalMixin(LayoutMixin):
    """Sampling from boxes and descriptions for a subclass of a stock pipeline, which it precedes among the bases.

    The call's arguments are the stock pipeline's, in its order, and the layout's by name. A folder that holds
    ``regional_adapter.safetensors`` beside a stock base opens with ``from_pretrained``.
    """

    default_beta = 1.0
    #: By which rules the model's regions are made.
    rules = RegionRules()

    @classmethod
    def from_pretrained(cls: Any, folder: Any, **kwargs: Any) -> Any:
        """As diffusers'; with the folder's adapter on the UNet.

        Raises:
            ConfigError: the folder has no adapter, or one that does not fit its UNet, or that nothing draws with.
        """
        place = Path(folder) / ADAPTER
        if not place.is_file():
            raise ConfigError(f"{folder} has no {ADAPTER}", "give the folder of an exported Rich-context model")
        pipeline = super().from_pretrained(folder, **kwargs)  # type: ignore[misc]
        pipeline.rules = adopt_drawn(pipeline.unet, place)
        return pipeline

    @torch.no_grad()
    def __call__(
        self: Any,
        prompt: str | list[str] | None = None,
        *args: Any,
        boxes: Boxes | Sequence[Boxes | None] | Tensor | None = None,
        labels: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        box_unit: str = "share",
        scheduled_sampling_beta: float = 1.0,
        attention_weight_scale: float | None = None,
        max_objs: int = 30,
        parity: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the stock pipeline, with a layout.

        Args:
            boxes: xyxy, one list for every prompt, or a list a prompt. None, or a prompt's None: the base model alone.
            labels: a description a box; the prompt beside them may be empty, which is then no prompt at all.
            box_unit: "share" of the picture, within 0 to 1, or "px" of the picture that is drawn, as upstream's.
            scheduled_sampling_beta: the share of the steps, from the first, that see the layout.
            attention_weight_scale: how much a region favours the boxes that it is most of; None: as it was trained.
            max_objs: more boxes than these are refused, none is left out in silence.
            parity: regions, descriptions and the empty prompt as upstream has them, for its released checkpoints; None:
                as the model was trained.

        Raises:
            ConfigError: boxes, labels or shares that cannot be; names which.
        """
        given = inspect.signature(self._stock.__call__).bind_partial(self, prompt, *args, **kwargs)
        named = {name: value for name, value in given.arguments.items() if name not in ("self", "kwargs")}
        arguments = {**named, **given.arguments.get("kwargs", {})}
        height, width = self._size(arguments)
        if box_unit not in ("share", "px"):
            raise ConfigError(f"box_unit is {box_unit!r}", "use share or px")
        if box_unit == "px":
            boxes = _shares(boxes, height, width)
        parity = self.rules.parity if parity is None else parity
        iou_weight = self.rules.iou_weight if attention_weight_scale is None else attention_weight_scale
        layouts = read_layouts(boxes, labels, None, prompt_count(arguments), max_objs, _NAMES)
        cells = (height // self.vae_scale_factor, width // self.vae_scale_factor)
        copies = arguments.get("num_images_per_prompt") or 1

        def ground(guided: bool) -> tuple[Grounding, None]:
            own = self._region_layouts(layouts, cells, iou_weight, parity)
            rows = [each for each in own for _ in range(copies)]
            made = self._tokens([None] * len(rows) + rows if guided else rows, cells)
            if None in own:
                told = torch.tensor([each is not None for each in rows], device=made.cells.device)
                made = made._replace(grounded=told.repeat(2 if guided else 1))
            return (made._replace(keep_small=False) if parity else made), None

        if not any(each.boxes for each in layouts):
            return self._layout_call(arguments, None, scheduled_sampling_beta)
        dropped = tuple(bool(each.boxes) and not parity for each in layouts)
        return self._layout_call(arguments, ground, scheduled_sampling_beta, _as_dropped=dropped)

    def layout_arguments(
        self,
        boxes: Sequence[Boxes],
        labels: Sequence[Sequence[str]],
        *,
        beta: float,
        decay: float = 0.0,
        max_boxes: int | None = None,
    ) -> dict[str, Any]:
        """The call's own arguments for one layout a prompt, as of ``GLIGENMixin.layout_arguments``.

        Raises:
            ConfigError: ``decay`` is not 0: these layers know no strength between all and nothing.
        """
        if decay:
            raise ConfigError(f"decay is {decay}", "regional layers are on or off: leave decay out")
        given = {"boxes": boxes, "labels": labels, "scheduled_sampling_beta": beta}
        return given if max_boxes is None else {**given, "max_objs": max_boxes}

    def _text_parts(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Tokenizers, and their encoders."""
        raise NotImplementedError

    def _reader(self) -> Reader:
        """How the text encoders read descriptions."""
        return region_reader(*self._text_parts())

    def _region_layouts(
        self: Any, layouts: Sequence[PromptLayout], cells: tuple[int, int], iou_weight: float, parity: bool
    ) -> list[RegionLayout | None]:
        """Each prompt's regions and their tokens; None where it has no boxes."""
        fusers = [block.fuser for _, block in blocks(self.unet)]
        if any(isinstance(fuser, InstDiffSelfAttention) for fuser in fusers):
            require_drawn("instdiff")
        unions = any(isinstance(fuser, RegionalCrossAndSelfAttention) for fuser in fusers)
        given = [(each.boxes, each.phrases) for each in layouts if each.boxes]
        read = iter(read_regions(given, *cells, self._reader(), iou_weight=iou_weight, legacy=parity))
        return [layout(*next(read), with_unions=unions) if each.boxes else None for each in layouts]

    def _tokens(self: Any, rows: Sequence[RegionLayout | None], cells: tuple[int, int]) -> Grounding:
        net = self.unet.position_net
        assert isinstance(net, RegionTextNet)
        # Where its weights lie now, which with offloading is not where the UNet will run.
        weight = net.null_text_feature
        known = next(each for each in rows if each is not None)
        batch = collate(rows, *cells, known.tokens.text.shape[-1], with_unions=known.unions is not None)
        given = {name: torch.from_numpy(array).to(weight.device) for name, array in batch.items()}
        made: Grounding = net(**given)
        return made


def adopt_drawn(unet: UNet2DConditionModel, adapter: Path) -> RegionRules:
    """Gives a UNet a file's layers to draw with.

    Returns:
        the rules that they were trained by; ours where the file states none.

    Raises:
        ConfigError: these are no regional layers, or they do not fit the UNet, or nothing draws with them.
    """
    state, rules = load_file(adapter), read_rules(adapter) or RegionRules()
    require_drawn(kind_of(state))
    adopt_regional(unet, state, keep_small=not rules.parity)
    return rules


def _shares(boxes: Any, height: int, width: int) -> Any:
    """Boxes in pixels, however nested, as shares of the picture; what is no box stays as it is, to be named later."""
    if boxes is None or isinstance(boxes, str | Real):
        return boxes
    if not len(boxes):
        return []
    if isinstance(boxes, Tensor | np.ndarray):
        boxes = boxes.tolist()
    if not all(
        isinstance(value, Real) or (isinstance(value, Tensor | np.ndarray) and not value.ndim) for value in boxes
    ):
        return [_shares(each, height, width) for each in boxes]
    return [float(value) / side for value, side in zip(boxes, itertools.cycle((width, height)), strict=False)]
