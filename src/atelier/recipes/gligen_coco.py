"""GLIGEN on COCO: grounded generation (arXiv 2301.07093) on a frozen Stable Diffusion 1.4, as diffusers' script has it.

``paper`` is the published run: 512 px, batch 64, lr 5e-5, 100,000 steps. ``parity`` is that with upstream's own
peculiarities kept. ``laptop`` is its twin: an SD 1.x of a few million parameters on canvases of real handwritten
digits; the same code path from COCO's folder and JSON to the exported folder, other numbers.

The objective: predict the noise of ready-made latents under one of the image's captions and up to ``max_boxes``
grounded phrases; only the fusers and the position net are trained. Source of the numbers: the facts sheet of GLIGEN,
section 2.1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atelier.evaluation.bars import Bars
from atelier.recipes.grounded_recipe import GroundedRecipe
from atelier.training.config import TrainConfig
from atelier.training.footprint import Footprint

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from atelier.recipes.gligen_coco_objective import Encoder, Objective
    from atelier.sampling.gligen_sd import StableDiffusionGLIGENPipeline


class Config(BaseModel):
    """Everything that can be chosen; each profile below is one frozen instance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(512, gt=0, description="pixels of the square that the model sees")
    base_model: str = Field("hf://CompVis/stable-diffusion-v1-4", description="SD 1.x folder; '' is shipped")
    max_boxes: int = Field(30, gt=0, description="the largest ones")
    min_area: float = Field(0.01, ge=0, le=1, description="least share of the square that a box covers")

    drop_boxes: float = Field(0.1, ge=0, le=1, description="chance of no boxes")
    drop_caption: float = Field(0.5, ge=0, le=1, description="chance of no caption, whatever becomes of the boxes")
    timestep_power: tuple[float, float] = Field((1.0, 1.0), description="t ∝ u^power, from first to last step")
    inside_weight: float = Field(1.0, gt=0, description="loss weight inside boxes, against 1 outside")

    reset: Literal["full", "upstream"] = Field(
        "full",
        description="full: a fresh adapter behind shut gates, exactly the base model at first; upstream: of a gated "
        "base only Linear and LayerNorm are drawn anew, gates and null features keep their values",
    )
    gate_start: float = Field(0.0, description="alpha at the start under reset=full; 0 is exactly the base model")
    gate_lr: float | None = Field(None, gt=0, description="learning rate of the gates, None: the common one")
    position_gain: float | None = Field(None, gt=0, description="orthogonal position net of this gain, None: default")
    fuser_gain: float | None = Field(None, gt=0, description="orthogonal fuser matrices of this gain, None: default")

    train: TrainConfig
    encode_batch: int = Field(8, gt=0)
    samples_per_shard: int = Field(1024, gt=0)
    max_quarantined: float = Field(0.02, ge=0, le=1)

    sample_steps: int = Field(50, gt=0)
    sample_count: int = Field(64, gt=0)
    sample_batch: int = Field(4, gt=0)
    guidance: float = Field(7.5, ge=0)
    beta: float = Field(1.0, ge=0, le=1, description="share of the sampling steps that are grounded")
    preview_steps: int = Field(50, gt=0)
    bars: Bars = Field(default_factory=dict, description="what metrics must reach for a model to pass")


_PAPER = Config(
    train=TrainConfig(
        steps=100_000,
        batch_size=64,
        processes=8,
        zero_stage=2,
        precision="bf16",
        lr=5e-5,
        weight_decay=1e-2,
        clip_norm=1.0,
        schedule="constant",
        warmup_steps=500,  # upstream asks for it too, but its "constant" schedule ignores it
        log_every=50,
        preview_every=1000,
        checkpoint_every_steps=1000,
        keep_checkpoints=10,
        loader_workers=4,
    ),
)

PROFILES = {
    "paper": _PAPER,
    "parity": _PAPER.model_copy(
        update={
            "base_model": "hf://masterful/gligen-1-4-generation-text-box",
            "reset": "upstream",
            "train": _PAPER.train.model_copy(update={"warmup_steps": 0, "precision": "fp16"}),
        }
    ),
    "laptop": Config(
        resolution=64,
        base_model="",
        max_boxes=4,
        drop_boxes=0.1,
        drop_caption=0.4,
        # As in igligen_xl's twin, where each of these was tried: see docs/laptop.md.
        timestep_power=(0.35, 0.6),
        inside_weight=4.0,
        gate_start=0.3,
        gate_lr=1e-2,
        position_gain=1.5,
        fuser_gain=1.0,
        train=TrainConfig(
            steps=2000,
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
        beta=1.0,
        preview_steps=20,
        bars={"layout_accuracy": 0.80, "layout_fill": 0.95, "ink_in_boxes": 0.95},
    ),
}


# A sample: the latent, five captions' 77 × 768 text states, seven phrases' embeddings, its record. The 118,287 images
# are 18 GB.
_PAPER_FOOTPRINT = Footprint(209_102_240, 859_520_964, 2.5986e12, 1.4125e9, 1.2e12, 637_000, 163_000, 118_287)
FOOTPRINTS = {
    "paper": _PAPER_FOOTPRINT,
    "parity": _PAPER_FOOTPRINT,
    "laptop": Footprint(1_296_142, 2_799_684, 5.8188e8, 5.350e6, 4.8e7, 14_000, 6_000),
}
"""By profile, see ``Footprint``."""


@dataclass(frozen=True)
class Recipe(GroundedRecipe):
    """One size of the recipe; knows no storage, no cluster.

    Its parts live in ``gligen_coco_objective``, which is imported when asked for: reading a configuration (which every
    step does, cached or not) costs no torch.
    """

    config: Config
    name: str = "gligen_coco"
    twin: str = "sd_twin"
    raw_forms: tuple[str, ...] = ("coco",)

    @property
    def sample_settings(self) -> dict[str, Any]:
        """The fields of ``data.settings.Settings`` that say which boxes are trained on."""
        return {"min_area": self.config.min_area, "max_boxes": self.config.max_boxes}

    @property
    def footprint(self) -> Footprint:
        """What a training of this size costs."""
        return FOOTPRINTS[self.profile]

    def encoder(self, base: Path) -> "Encoder":
        """Raw examples to training arrays, with the base's own autoencoder and text encoder."""
        from atelier.recipes.gligen_coco_objective import Encoder

        return Encoder(base)

    def objective(self, base: Path) -> "Objective":
        """What the engine trains."""
        from atelier.recipes.gligen_coco_objective import Objective

        return Objective(self, base)

    def pipeline(self, base: Path, unet: "UNet2DConditionModel | None" = None) -> "StableDiffusionGLIGENPipeline":
        """The sampler of a base folder, with ``unet`` in the place of the folder's own.

        Given an exported folder and no UNet, opens that.
        """
        from atelier.recipes.gligen_coco_objective import open_pipeline

        return open_pipeline(base, unet)
