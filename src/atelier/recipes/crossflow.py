"""CrossFlow (arXiv 2412.15213): text to image by flow matching that starts from the text instead of noise.

Five published models, which differ in resolution, language model and backbone. ``PROFILES`` is the first, from scratch:
256 px, CLIP, DiMR, on LAION-400M and JourneyDB. The others are ``STAGES``, each begun with an earlier one's weights
(``PREDECESSORS``), and so are the three combinations that nobody published. ``paper`` is the published size, ``laptop``
a twin of under three million parameters on canvases of two real handwritten digits.

The objective: the velocity between a text's latent and an image's latent, a KL term and a contrastive term on the
text's latent. Guidance is trained by showing a share of the texts with another image and an indicator that says so.
Where the published training and ours differ, ``released`` brings back single rules of theirs and ``parity`` all.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atelier.data.filters import Filters
from atelier.errors import ConfigError
from atelier.evaluation.bars import Bars
from atelier.recipes.starting import Starting
from atelier.training.config import TrainConfig
from atelier.training.footprint import Footprint

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from PIL import Image
    from torch import Tensor

    from atelier.convert.weights import Weights
    from atelier.models.crossflow.configs import CrossFlowConfig
    from atelier.models.crossflow.model import CrossFlow
    from atelier.models.keys import Shape
    from atelier.recipes.crossflow_encoder import Encoder
    from atelier.recipes.crossflow_objective import Objective
    from atelier.recipes.layouts import Layout
    from atelier.sampling.crossflow import CrossFlowPipeline
    from atelier.storage.inputs import InputFolder


ReleasedRule = Literal["null_partners", "null_text", "temperature", "log_variance", "text_layers", "padding"]
"""A rule of the published training that ours mends.

``null_partners``: null samples swap images within the local batch, and nobody is null where fewer than two were drawn.
``null_text``: a null sample's loss, whose image is another's, trains the text encoder too.
``temperature``: that of the contrastive loss is the raw parameter, decayed, and its negatives are the local batch's.
``log_variance``: that of the text's posterior has no bounds. ``text_layers``: the text encoder's layers start as copies
of the first. ``padding``: stored and read.
"""


class Config(BaseModel):
    """Everything that can be chosen; each profile below is one frozen instance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolution: int = Field(256, gt=0, description="pixels of the square")
    language_model: Literal["clip", "t5"] = "clip"
    backbone: Literal["dimr", "dit"] = "dimr"
    miniature: bool = Field(False, description="the miniature network instead of the published one")
    base_model: str = Field("", description="folder with vae and, for CLIP, text_encoder and tokenizer; '' is shipped")
    t5_model: str = Field("", description="folder of T5's encoder and tokenizer; '' is the twin's, made on the spot")
    latent_scale: float | None = Field(None, gt=0, description="of the latents; None: the autoencoder's own")
    image_tower: Literal["latents", "pixels", "none"] = Field(
        "latents",
        description="what the contrastive loss sees: the latents that are there anyway, or pixels as upstream's, "
        "which must then be stored and decoded",
    )

    parity: bool = Field(False, description="every rule of the published training that is mended here")
    released: tuple[ReleasedRule, ...] = Field((), description="single ones of them")
    null_share: float = Field(0.1, ge=0, lt=1, description="samples shown with another image, for guidance")
    kl_weight: float = Field(1e-2, ge=0)
    contrastive_weight: float = Field(1.0, ge=0)
    gradient_checkpointing: bool = True

    train: TrainConfig
    encode_batch: int = Field(8, gt=0)
    crop: Literal["adm", "bilinear"] = Field("adm", description="of the training pictures, see data.squares.CROPS")
    filters: Filters = Field(Filters(), description="what is dropped before it is decoded")
    samples_per_shard: int = Field(1024, gt=0)
    max_quarantined: float = Field(0.02, ge=0, le=1)

    solver: str = Field("ab2", description="see sampling.flow_solvers")
    sample_steps: int = Field(25, gt=0)
    sample_count: int = Field(64, gt=0)
    sample_batch: int = Field(8, gt=0)
    guidance: float = Field(7.0, ge=0)
    preview_steps: int = Field(25, gt=0)
    preview_count: int = Field(8, gt=0)
    bars: Bars = Field(default_factory=dict, description="what metrics must reach for a model to pass")

    def keeps(self, rule: ReleasedRule) -> bool:
        """Whether the published training's rule holds, not ours."""
        return self.parity or rule in self.released

    def model(self) -> "CrossFlowConfig":
        """The networks' configuration.

        Raises:
            ConfigError: there is no network for this resolution.
        """
        from atelier.recipes.crossflow_networks import published, twin

        made = twin(self.resolution, self.language_model, self.backbone) if self.miniature else published(self)
        made = replace(made, text={**made.text, "zero_padding": not self.keeps("padding")})
        if self.image_tower == "none":
            return replace(made, tower=None)
        if self.image_tower == "latents":
            channels, side, _ = made.latent_shape
            read = {"channels": channels, "image_size": side, "patch": 2 if side <= 32 else 4}
            return replace(made, tower={**(made.tower or {}), **read})
        return made


_PUBLISHED = TrainConfig(
    steps=1_000_000,
    batch_size=1024,
    processes=8,
    micro_batch=16,
    zero_stage=2,
    precision="bf16",
    lr=1e-5,
    betas=(0.9, 0.9),
    weight_decay=0.03,
    warmup_steps=5000,
    clip_norm=1.0,  # upstream has none, and no guard against a step that breaks fourteen post-norm layers
    ema_decay=0.9999,
    seed=1234,
    log_every=50,
    preview_every=5000,
    checkpoint_every_steps=1000,
    keep_checkpoints=3,
    loader_workers=4,
)
_LAPTOP = TrainConfig(
    steps=1200,
    batch_size=64,
    processes=2,
    zero_stage=2,
    lr=2e-3,
    betas=(0.9, 0.95),
    weight_decay=0.03,
    schedule="flat_cosine",
    warmup_steps=100,
    clip_norm=1.0,
    ema_decay=0.995,
    log_every=20,
    preview_every=300,
    checkpoint_every_s=60,
    loader_workers=1,
)
_TWIN: dict[str, Any] = {
    "miniature": True,
    "gradient_checkpointing": False,
    "encode_batch": 64,
    "samples_per_shard": 512,
    "sample_steps": 20,
    "sample_count": 128,
    "sample_batch": 64,
    "guidance": 3.0,
    "preview_steps": 20,
    "bars": {"layout_accuracy": 0.8},
}

PROFILES = {
    "paper": Config(
        base_model="hf://stable-diffusion-v1-5/stable-diffusion-v1-5",
        latent_scale=0.2301,
        train=_PUBLISHED,
    ),
    "laptop": Config(resolution=32, train=_LAPTOP, **_TWIN),
}


_T5_XXL = "hf://DeepFloyd/t5-v1_1-xxl"
_DIT_RATE, _NULL_512_DIMR = 2e-5, 0.15


def _stage(resolution: int, language_model: str, backbone: str, lr: float) -> dict[str, Config]:
    """A later model: the first one's configuration but for what the name says, and the learning rate."""
    parts = {"language_model": language_model, "backbone": backbone}
    paper: dict[str, Any] = {"resolution": resolution, **({"t5_model": _T5_XXL} if language_model == "t5" else {})}
    if (resolution, backbone) == (512, "dimr"):
        paper["null_share"] = _NULL_512_DIMR
    small = {"resolution": resolution // 8}
    return {
        name: Config.model_validate(
            {**first.model_dump(), **parts, **changes, "train": {**first.train.model_dump(), **train}}
        )
        for name, first, changes, train in (
            ("paper", PROFILES["paper"], paper, {"lr": lr}),
            ("laptop", PROFILES["laptop"], small, {}),
        )
    }


STAGES = {
    "512_clip_dimr": _stage(512, "clip", "dimr", 1e-5),
    "512_t5_dimr": _stage(512, "t5", "dimr", 1e-5),
    "512_t5_dit": _stage(512, "t5", "dit", _DIT_RATE),
    "256_t5_dimr": _stage(256, "t5", "dimr", 5e-5),
    # Not published: their parts are, and the numbers are those of the nearest that is.
    "256_clip_dit": _stage(256, "clip", "dit", _DIT_RATE),
    "256_t5_dit": _stage(256, "t5", "dit", _DIT_RATE),
    "512_clip_dit": _stage(512, "clip", "dit", _DIT_RATE),
}
"""The other models; the first one, 256 px CLIP DiMR, is the recipe without a stage."""

PREDECESSORS = {
    "512_clip_dimr": "crossflow",
    "512_t5_dimr": "crossflow:512_clip_dimr",
    "512_t5_dit": "crossflow:512_clip_dimr",
    "256_t5_dimr": "crossflow",
    "256_clip_dit": "crossflow",
    "256_t5_dit": "crossflow:256_t5_dimr",
    "512_clip_dit": "crossflow:512_clip_dimr",
}
"""Which recipe's model each stage starts from: of the five the published chain. The first starts from none."""


def pipeline_of(recipe: str) -> str:
    """The pipeline that makes a model of the recipe, e.g. ``crossflow_512_t5_dit``; with hyphens the model's name."""
    return f"crossflow_{recipe.partition(':')[2] or '256_clip_dimr'}"


_JOURNEYDB, _LAION = 4_000_000, 400_000_000
"""Images, rounded as the paper has them; a raw picture of about 512 px is put down as 60 kB. A sample: the latent's
moments and a caption of 20 tokens."""

FOOTPRINTS = {
    # language model, backbone, resolution (the twins': 32 and 64)
    ("clip", "dimr", 256): Footprint(1_397_109_483, 0, 2.30611e12, 5.7668e8, 2.9e11, 48_000, 60_000, _LAION),
    ("clip", "dimr", 512): Footprint(1_419_960_571, 0, 2.79769e12, 9.1363e8, 1.15e12, 97_000, 60_000, _JOURNEYDB),
    ("t5", "dimr", 512): Footprint(1_464_908_955, 0, 2.81407e12, 9.2520e8, 1.33e12, 230_000, 60_000, _JOURNEYDB),
    ("t5", "dit", 512): Footprint(1_548_447_645, 0, 5.45889e12, 3.7174e8, 1.33e12, 230_000, 60_000, _JOURNEYDB),
    ("t5", "dimr", 256): Footprint(1_452_150_411, 0, 2.32255e12, 5.8825e8, 4.7e11, 181_000, 60_000, _JOURNEYDB),
    ("clip", "dit", 256): Footprint(1_514_325_489, 0, 1.63617e12, 2.8027e8, 2.9e11, 48_000, 60_000, _JOURNEYDB),
    ("t5", "dit", 256): Footprint(1_569_366_417, 0, 1.65261e12, 2.9185e8, 4.7e11, 181_000, 60_000, _JOURNEYDB),
    ("clip", "dit", 512): Footprint(1_503_499_261, 0, 5.44251e12, 3.6016e8, 1.15e12, 97_000, 60_000, _JOURNEYDB),
    ("clip", "dimr", 32): Footprint(1_751_227, 0, 1.28225e8, 1.89604e6, 1.2e7, 6_000, 3_000),
    ("clip", "dimr", 64): Footprint(4_410_791, 0, 2.10432e8, 3.69392e6, 4.8e7, 9_000, 6_000),
    ("clip", "dit", 32): Footprint(2_640_017, 0, 1.45060e8, 1.43337e6, 1.2e7, 6_000, 3_000),
    ("clip", "dit", 64): Footprint(5_258_897, 0, 5.11377e8, 4.57295e6, 4.8e7, 9_000, 6_000),
    ("t5", "dimr", 32): Footprint(1_505_099, 0, 1.16183e8, 1.81309e6, 1.2e7, 4_500, 3_000),
    ("t5", "dimr", 64): Footprint(3_771_447, 0, 1.96030e8, 3.61098e6, 4.8e7, 7_500, 6_000),
    ("t5", "dit", 32): Footprint(2_393_889, 0, 1.33018e8, 1.35042e6, 1.2e7, 4_500, 3_000),
    ("t5", "dit", 64): Footprint(4_619_553, 0, 4.96976e8, 4.49001e6, 4.8e7, 7_500, 6_000),
}
"""By what decides the networks, see ``Footprint``; activations with gradient checkpointing where the recipe has it."""


@dataclass(frozen=True)
class Recipe:
    """One model of the recipe at one size; knows no storage, no cluster."""

    profile: str
    config: Config
    name: str = "crossflow"
    twin: str = "sd_twin"
    raw_forms: tuple[str, ...] = ("captioned", "img2dataset")
    several_resolutions: bool = True
    control: str = "null"

    @property
    def sample_settings(self) -> dict[str, Any]:
        """How a picture is cut and what is dropped, see ``data.settings``; no boxes are trained on."""
        t5 = self.config.language_model == "t5"
        return {"crop": self.config.crop, "filters": replace(self.config.filters, for_t5=t5)}

    @property
    def encoding(self) -> dict[str, Any]:
        """What of the configuration decides the encoded samples beside the base, the resolutions and
        ``sample_settings``; recipes in which it is the same read one another's."""
        config = self.config
        return {
            "recipe": self.name,
            "language_model": config.language_model,
            "tokens": config.model().text.get("tokens", 77),
            "padding": config.keeps("padding"),
            "pixels": config.resolution if config.image_tower == "pixels" else None,
        }

    def features(self, base: Path) -> dict[str, Any]:
        """What a manifest of features says of the models that made them: ``language_model`` ("clip" or "t5") and
        ``text_width``; features of one cannot be read by a model of another."""
        from atelier.convert.language_model import CONFIG, described

        kind, width = described(base / CONFIG)
        return {"language_model": kind, "text_width": width}

    @property
    def footprint(self) -> Footprint:
        """What a training of this size costs."""
        config = self.config
        return FOOTPRINTS[config.language_model, config.backbone, config.resolution]

    @property
    def base_parts(self) -> tuple[str, ...]:
        """The subfolders of the base that are read."""
        return ("vae",) if self.text_model is not None else ("tokenizer", "text_encoder", "vae")

    @property
    def text_model(self) -> str | None:
        """Where the language model comes from, if not from the base: a URI, or "" for the twin's own."""
        return self.config.t5_model if self.config.language_model == "t5" else None

    def make_text_model(self, folder: Path) -> None:
        """The twin's T5, ``text_encoder`` and ``tokenizer``."""
        from atelier.recipes.crossflow_networks import T5_TWIN
        from atelier.recipes.twins.t5 import write

        write(folder, T5_TWIN)

    def check_base(self, fetch: "Callable[[str], Path]") -> None:
        """Sees that the base's language model is the one that is read.

        Args:
            fetch: a file of the base → a local path.

        Raises:
            ConfigError: it is another.
        """
        from atelier.convert.language_model import CONFIG, check_language_model

        config = self.config
        name = f"{config.resolution} px, {config.language_model}, {config.backbone}"
        check_language_model(fetch(CONFIG), config.model().text.get("width", 768), name, config.language_model)

    def check_features(self, metadata: "Mapping[str, Any]") -> None:
        """Sees that encoded samples are of the language model and the resolution that are trained.

        Args:
            metadata: of the shards' manifest: ``fields`` (name → [dtype, shape]), and what ``features`` said of them.

        Raises:
            ConfigError: they are of others.
        """
        config, networks = self.config, self.config.model()
        fields: Mapping[str, Any] = metadata.get("fields", {})
        width = networks.text.get("width", 768)
        kind, found = metadata.get("language_model", config.language_model), metadata.get("text_width")
        if found is None and "text" in fields:
            found = fields["text"][1][-1]
        if kind != config.language_model or found not in (None, width):
            raise ConfigError(
                f"the shards' text is of {kind}, {found} wide; this model reads {config.language_model}, {width} wide",
                f"preprocess with a recipe that reads {config.language_model}, or train one that reads {kind}",
            )
        channels, *sides = networks.latent_shape
        name = moments_field(fields, config.resolution) if fields else ""
        if fields and list(fields[name][1]) != [2 * channels, *sides]:
            raise ConfigError(
                f"the shards' {name} is {fields[name][1]}, this model reads {[2 * channels, *sides]}",
                f"use features of {config.resolution} px",
            )

    @property
    def starting(self) -> Starting:
        """A training may begin with what fits of another of the models, on the same autoencoder."""
        flow, text = "flow/*", "context_encoder/*"
        return Starting(
            files=(flow, text, "image_tower.safetensors"),  # the last: where convert-crossflow was told to keep it
            needed=(flow, text),
            same_base=("vae/*.safetensors",),
            parts=("flow", "context_encoder"),
            take=self._take,
            read=_read_folder,
            shapes=self._trained_shapes,
            training_only=("open_clip", "open_clip_output"),
        )

    def _take(self, source: Path, folder: Path, base: "InputFolder") -> list[str]:
        from atelier.convert.crossflow import unpack

        return unpack(source, folder, self.config.model())

    def _trained_shapes(self) -> "dict[str, Shape]":
        from atelier.convert.crossflow import expected_shapes
        from atelier.models.crossflow.model import fixed_parameters

        networks = self.config.model()
        fixed = fixed_parameters(networks)
        return {name: shape for name, shape in expected_shapes(networks).items() if name not in fixed}

    def encoder(self, base: Path) -> "Encoder":
        """Raw examples to training arrays, with the base's autoencoder and language model."""
        from atelier.recipes.crossflow_encoder import Encoder

        return Encoder(base, self.config)

    def objective(self, base: Path) -> "Objective":
        """What the engine trains."""
        from atelier.recipes.crossflow_objective import Objective

        return Objective(self, base)

    def pipeline(self, base: Path, model: "CrossFlow | None" = None) -> "CrossFlowPipeline":
        """The sampler of an exported folder, or of a base folder with ``model`` in it."""
        from atelier.sampling.crossflow import CrossFlowPipeline

        if model is None:
            opened = CrossFlowPipeline.from_pretrained(base)
            opened.set_progress_bar_config(disable=True)
            return opened
        return CrossFlowPipeline.around(base, model, self.config.latent_scale)

    def export(self, base: Path, state: "dict[str, Tensor]", folder: Path) -> dict[str, int]:
        """Writes what was trained as a diffusers-style folder with the base's parts; returns parameter counts.

        The contrastive loss's image tower is left out: the next model of the chain takes it from the training.
        """
        from atelier.convert.crossflow import write_folder
        from atelier.convert.weights import of_state
        from atelier.models.crossflow.model import fixed_parameters, released_name

        config = self.config.model()
        named = {
            released_name(name): tensor for name, tensor in state.items()
        }  # a checkpoint has the model's own names
        weights = of_state(fixed_parameters(config) | named)
        done = write_folder(weights, config, folder, base, latent_scale=self.config.latent_scale)
        return {"total": done.parameters}

    def layouts(self, count: int, seed: int) -> "list[Layout]":
        """Held-out prompts to sample, and for the twin where its digits must be, for the judge."""
        from atelier.recipes.crossflow_prompts import digit_layouts, published_layouts

        return digit_layouts(count, seed) if self.config.miniature else published_layouts()[:count]

    def sample(
        self,
        pipeline: "CrossFlowPipeline",
        layouts: "list[Layout]",
        steps: int,
        guidance: float,
        grounded: bool = True,
    ) -> "list[Image.Image]":
        """One picture a prompt, each from its own seed; ``grounded=False`` is the control: the null velocity, which
        leads from the same text's latent to any image."""
        import torch

        images: list[Image.Image] = pipeline(
            [layout.prompt for layout in layouts],
            num_inference_steps=steps,
            guidance_scale=guidance if grounded else 0.0,
            solver=self.config.solver,
            generator=[torch.Generator().manual_seed(layout.seed) for layout in layouts],
        ).images
        return images


def moments_field(known: "Collection[str]", resolution: int) -> str:
    """The field of a resolution's moments; shards of one resolution may call it ``moments`` alone.

    Raises:
        ConfigError: there are none of it.
    """
    own = f"moments_{resolution}"
    found = next((name for name in (own, "moments") if name in known), None)
    if found is None:
        there = sorted(name.removeprefix("moments_") for name in known if name.startswith("moments_"))
        raise ConfigError(
            f"the features are of {' and '.join(there) or 'no'} px, the model reads {resolution}",
            "preprocess with this resolution among resolutions",
        )
    return found


def _read_folder(folder: Path) -> "Weights":
    from atelier.convert.crossflow import folder_weights

    return folder_weights(folder)
