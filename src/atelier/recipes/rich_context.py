"""Rich-context layout-to-image (regional cross-attention, arXiv 2409.04847) on a frozen base: a sentence an object.

``paper`` is the published run: SDXL-512, batch 256, lr 1e-5, 100,000 steps. ``parity`` is that with upstream's own
peculiarities kept (how boxes fall on cells, how a region's descriptions are told apart, what is dropped together).
``laptop`` is its twin: an SDXL of a few million parameters on canvases of real handwritten digits whose boxes overlap.

``STAGES["sd15"]`` (recipe ``rich_context:sd15``) is the published variant on Stable Diffusion 1.5, the same in three
profiles; it starts from nothing, as the first does.

The picture is cut into regions by which boxes cover a cell; a cell looks at the descriptions of its own region alone.
The objective: predict the noise of ready-made latents under caption and regions; only the regional layers are trained.
Source of the numbers: the facts sheet, section 2.2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atelier.evaluation.bars import Bars
from atelier.models.regional.rules import ADAPTER, RegionRules
from atelier.recipes.grounded_recipe import GroundedRecipe
from atelier.recipes.starting import Starting
from atelier.training.config import TrainConfig
from atelier.training.footprint import Footprint

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from torch import Tensor

    from atelier.convert.weights import Weights
    from atelier.recipes.layouts import Layout
    from atelier.recipes.rich_context_objective import Encoder, Objective
    from atelier.sampling.regional_pipeline import RegionalMixin
    from atelier.storage.inputs import InputFolder


class Config(BaseModel):
    """Everything that can be chosen; each profile below is one frozen instance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(512, gt=0, description="pixels of the square that the model sees")
    base_model: str = Field("hf://hotshotco/SDXL-512", description="diffusers folder of the family; '' is shipped")
    family: Literal["sdxl", "sd"] = Field("sdxl", description="SDXL, or Stable Diffusion 1.x")
    fuser: Literal["ca", "casa"] = Field("ca", description="regional cross-attention, or with self-attention behind it")
    parity: bool = Field(
        False, description="upstream's peculiarities, which its released checkpoints were trained with"
    )
    max_boxes: int = Field(30, gt=0, description="objects; regions are as many as these make")
    min_area: float = Field(0.01, ge=0, le=1, description="least share of the square that a box covers")
    max_region_tokens: int = Field(
        1536, gt=0, description="region tokens of a training picture; of more, the smallest regions are left out"
    )
    iou_weight: float = Field(1.0, ge=0, description="how much a region favours the boxes that it is most of")

    drop_boxes: float = Field(0.1, ge=0, le=1, description="chance of no boxes")
    drop_caption: float = Field(0.1, ge=0, le=1, description="chance of no caption, whatever becomes of the boxes")
    timestep_power: tuple[float, float] = Field((1.0, 1.0), description="t ∝ u^power, from first to last step")
    inside_weight: float = Field(1.0, gt=0, description="loss weight inside boxes, against 1 outside")

    train: TrainConfig
    encode_batch: int = Field(8, gt=0)
    samples_per_shard: int = Field(1024, gt=0)
    max_quarantined: float = Field(0.02, ge=0, le=1)

    sample_steps: int = Field(50, gt=0)
    sample_count: int = Field(64, gt=0)
    sample_batch: int = Field(4, gt=0)
    guidance: float = Field(5.0, ge=0)
    beta: float = Field(1.0, ge=0, le=1, description="share of the sampling steps that see the regions")
    preview_steps: int = Field(20, gt=0)
    bars: Bars = Field(default_factory=dict, description="what metrics must reach for a model to pass")


_PAPER = Config(
    train=TrainConfig(
        steps=100_000,
        batch_size=256,
        processes=8,
        micro_batch=2,
        zero_stage=2,
        precision="bf16",
        lr=1e-5,
        weight_decay=1e-5,
        clip_norm=1.0,  # upstream asks for it too, and its engine leaves it out
        ema_decay=0.99,
        log_every=50,
        preview_every=1000,
        checkpoint_every_steps=1000,
        keep_checkpoints=5,
        loader_workers=4,
    ),
)
PROFILES = {
    "paper": _PAPER,
    "parity": _PAPER.model_copy(
        update={"parity": True, "train": _PAPER.train.model_copy(update={"precision": "fp16"})},
    ),
    "laptop": Config(
        resolution=64,
        base_model="",
        max_boxes=4,
        max_region_tokens=512,
        min_area=0.0,
        drop_caption=0.4,
        # As in igligen_xl's twin, where each of these was tried: see docs/laptop.md.
        timestep_power=(0.35, 0.6),
        inside_weight=4.0,
        train=TrainConfig(
            steps=1800,
            batch_size=48,
            processes=2,
            loader_workers=1,
            zero_stage=2,
            precision="fp32",
            lr=2e-3,
            schedule="flat_cosine",
            warmup_steps=50,
            clip_norm=1.0,
            log_every=10,
            preview_every=250,
            checkpoint_every_s=30,
            keep_checkpoints=2,
        ),
        encode_batch=64,
        samples_per_shard=512,
        sample_steps=20,
        sample_count=128,
        sample_batch=32,
        guidance=4.0,
        preview_steps=20,
        bars={"layout_accuracy": 0.80, "layout_fill": 0.90, "ink_in_boxes": 0.90},
    ),
}


def _on_sd(profile: Config, train: dict[str, Any] | None = None, **changes: Any) -> Config:
    """A profile on Stable Diffusion 1.x: the same but for these fields."""
    trained = profile.train.model_copy(update=train or {})
    return profile.model_copy(update={**changes, "family": "sd", "train": trained})


_SD15: dict[str, Any] = {
    "base_model": "hf://stable-diffusion-v1-5/stable-diffusion-v1-5",
    "guidance": 7.5,
    "train": {"batch_size": 512, "micro_batch": 4, "lr": 2e-5},
}
STAGES = {
    "sd15": {
        "paper": _on_sd(PROFILES["paper"], **_SD15),
        "parity": _on_sd(PROFILES["parity"], **_SD15),
        "laptop": _on_sd(PROFILES["laptop"]),
    }
}


REGION_TOKENS = {"paper": 512, "parity": 512, "laptop": 64}
"""Tokens of a picture's regions together, as a training step is assumed to see them: what a picture of ten objects of
twelve words makes, half of them overlapping, and the background's 77; of the twin counted. A picture of
``Config.max_region_tokens``, with which its micro-batch is filled up, has three times as many (the twin's eight)."""

_CC3M = 2_900_000
"""Images of Conceptual Captions, about, as far as their links still live; the paper does not say how many it took."""

# A sample: the latent, the caption's 77 text states (2048 wide, SD's 768), those of ``REGION_TOKENS`` but the
# background's (at the limit, ``max_region_tokens``, 6.3 MB of SDXL's, 2.4 of SD's). Encoding: the autoencoder, and the
# text encoders over the caption and twenty regions.
_SDXL_FOOTPRINT = Footprint(548_150_848, 2_567_463_684, 4.7452e12, 1.6887e9, 3.5e12, 2_140_000, 120_000, _CC3M)
_SD15_FOOTPRINT = Footprint(45_059_008, 859_520_964, 1.8165e12, 8.6067e8, 1.4e12, 838_000, 120_000, _CC3M)
FOOTPRINTS = {
    ("sdxl", "paper"): _SDXL_FOOTPRINT,
    ("sdxl", "parity"): _SDXL_FOOTPRINT,
    ("sdxl", "laptop"): Footprint(674_240, 2_836_804, 6.7492e8, 4.1976e6, 4.8e7, 22_700, 6_000),
    ("sd", "paper"): _SD15_FOOTPRINT,
    ("sd", "parity"): _SD15_FOOTPRINT,
    ("sd", "laptop"): Footprint(674_240, 2_799_684, 6.7478e8, 4.3287e6, 4.8e7, 21_700, 6_000),
}
"""By family and profile, see ``Footprint``."""


@dataclass(frozen=True)
class Recipe(GroundedRecipe):
    """One size of the recipe; knows no storage, no cluster.

    Its parts live in ``rich_context_objective``, which is imported when asked for: reading a configuration (which every
    step does, cached or not) costs no torch.
    """

    config: Config
    name: str = "rich_context"
    raw_forms: tuple[str, ...] = ("rich-context",)

    @property
    def twin(self) -> str:
        """The name of the shipped base."""
        return f"{self.config.family}_twin"

    @property
    def sample_settings(self) -> dict[str, Any]:
        """The fields of ``data.settings.Settings`` that say which boxes are trained on."""
        return {"min_area": self.config.min_area, "max_boxes": self.config.max_boxes}

    @property
    def encoding(self) -> dict[str, Any]:
        """What of the configuration decides the encoded samples beside the base and ``sample_settings``."""
        fields = ("parity", "iou_weight", "max_region_tokens")
        return {"recipe": self.name, **{name: getattr(self.config, name) for name in fields}}

    @property
    def rules(self) -> RegionRules:
        """By which boxes and descriptions become tokens."""
        return RegionRules(self.config.parity, self.config.iou_weight)

    @property
    def region_tokens(self) -> int:
        """See ``REGION_TOKENS``."""
        return REGION_TOKENS[self.profile]

    @property
    def footprint(self) -> Footprint:
        """What a training of this size costs."""
        return FOOTPRINTS[self.config.family, self.profile]

    @property
    def starting(self) -> Starting:
        """A training may begin with earlier layers, all of them, on the very same base, or with released ones."""
        return Starting(
            files=(ADAPTER,), needed=(ADAPTER,), same_base=(), parts=("unet",), take=_take, read=_read_adapter
        )

    def export(self, base: Path, adapter: "dict[str, Tensor]", folder: Path) -> dict[str, int]:
        """Writes what was trained beside a copy of the base; returns parameter counts."""
        from atelier.convert.regional_folder import export

        return export(base, adapter, folder, self.rules)

    def layouts(self, count: int, seed: int) -> "list[Layout]":
        """Held-out layouts to sample and judge; of the twin's, boxes overlap in most."""
        from atelier.recipes.rich_layouts import described_layouts, rich_layouts

        if self.profile == "laptop":
            return rich_layouts(count, seed, self.config.resolution)
        return described_layouts()[:count]

    def encoder(self, base: Path) -> "Encoder":
        """Raw examples to training arrays, with the base's own autoencoder and text encoders."""
        from atelier.recipes.rich_context_objective import Encoder

        return Encoder(base, self.config)

    def objective(self, base: Path) -> "Objective":
        """What the engine trains."""
        from atelier.recipes.rich_context_objective import Objective

        return Objective(self, base)

    def pipeline(self, base: Path, unet: "UNet2DConditionModel | None" = None) -> "RegionalMixin":
        """The sampler of a base folder of the family, with ``unet`` in the place of the folder's own.

        Given an exported folder and no UNet, opens that.
        """
        from atelier.recipes.rich_context_objective import open_pipeline

        return open_pipeline(base, self.config.family, unet, self.rules)


def _take(source: Path, folder: Path, base: "InputFolder") -> list[str]:
    from atelier.convert import unet_folder
    from atelier.convert.regional_folder import unpack

    return unpack(source, folder, unet_folder.read_config(base.fetch_all("unet/config.json") / "unet"))


def _read_adapter(folder: Path) -> "Weights":
    from atelier.convert.weights import of_safetensors

    return of_safetensors(folder / ADAPTER)
