"""What decides the annotations: models, thresholds, batches; a profile each for a laptop and the published set-up.

Source of the papers' numbers: the facts sheets of GLIGEN, section 3.1, and of rich-context, section 3.4.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from atelier.errors import ConfigError

PROMPT = (
    "In one sentence, say what this picture shows: every object in detail, and where the objects are in relation to"
    " each other. Answer with that sentence and nothing else."
)
CAPTION_PROMPT = "In one sentence, say what this picture shows. Answer with that sentence and nothing else."


class Config(BaseModel):
    """Everything that can be chosen; each profile below is one frozen instance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    makes: ClassVar[str] = "coco-annotations"
    """The kind of the manifest of what is made."""
    work: ClassVar[str] = "atelier.annotate.work:open_work"
    """What makes it, see ``data.work.WorkSpec``."""
    models: ClassVar[tuple[str, ...]] = ("detector", "captioner", "phrase_encoder", "tagger")
    """The roles that models play."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Those that may be left empty."""

    tagger: str = Field("", description='"ram", "ram:<weights>" or a CLIP or SigLIP model; "": see places.resolve')
    vocabulary: str = Field("coco", description="words of a CLIP or SigLIP tagger: a text file, coco or digits")
    detector: str = Field("", description="Grounding DINO")
    captioner: str = Field("", description="BLIP-2")
    phrase_encoder: str = Field("", description='CLIP text encoder; "none" leaves the phrases to be encoded later')

    tag_threshold: float = Field(0.02, ge=0, le=1, description="least probability of a vocabulary's word")
    tag_limit: int = Field(10, gt=0, description="most words of an image")
    box_threshold: float = Field(0.25, ge=0, le=1)
    text_threshold: float = Field(0.2, ge=0, le=1)
    nms_iou: float = Field(0.5, gt=0, le=1, description="class-agnostic; of two boxes above it the better one stays")
    caption_tokens: int = Field(20, gt=0, description="most new tokens of a box's caption")

    batch: int = Field(16, gt=0, description="images annotated at once")
    detect_batch: int = Field(8, gt=0, description="images that the detector sees at once")
    caption_batch: int = Field(32, gt=0, description="crops that are captioned at once")
    images_per_shard: int = Field(512, gt=0)
    max_quarantined: float = Field(0.02, ge=0, le=1)

    @property
    def numbers(self) -> dict[str, Any]:
        """Everything but the models that decides a box or a word. Batches are among it: sums of floating-point numbers
        depend on their order."""
        return self.model_dump(exclude={*self.models, "vocabulary", "images_per_shard", "max_quarantined"})


class RichConfig(Config):
    """Of labels that describe every object at length."""

    makes: ClassVar[str] = "rich-context-labels"
    work: ClassVar[str] = "atelier.annotate.rich_work:open_work"
    models: ClassVar[tuple[str, ...]] = ("detector", "captioner", "segmenter", "clip", "tagger")
    optional: ClassVar[tuple[str, ...]] = ("segmenter", "clip")

    captioner: str = Field("", description="any image-to-text model of transformers")
    segmenter: str = Field("", description='SAM; "" or "none" leaves the masks out')
    clip: str = Field("", description='CLIP that scores descriptions; "" or "none" leaves the scores out')
    prompt: str = Field(PROMPT, description='what the captioner is asked about an object; "none": nothing')
    caption_prompt: str = Field(CAPTION_PROMPT, description="and about a whole picture that has no caption")
    caption_tokens: int = Field(80, gt=0, description="most new tokens of a description")
    described_area: int = Field(32 * 32, ge=0, description="pixels of a box from which it is described")
    crop_side: int = Field(512, gt=0, description="most pixels of a crop's shorter side")


PROFILES = {
    "paper": Config(
        detector="IDEA-Research/grounding-dino-base",
        captioner="Salesforce/blip2-flan-t5-xxl",
        phrase_encoder="openai/clip-vit-large-patch14",
    ),
    # No hub on a laptop: its models are folders, which must be given. The twin that is trained encodes the phrases.
    "laptop": Config(
        vocabulary="digits",
        phrase_encoder="none",
        batch=8,
        detect_batch=4,
        caption_batch=8,
        images_per_shard=64,
    ),
}

RICH_PROFILES = {
    # The published Qwen-VL-Chat runs code from the hub, and what followed it wants torchvision to be opened.
    "paper": RichConfig(
        detector="IDEA-Research/grounding-dino-tiny",
        captioner="llava-hf/llava-v1.6-mistral-7b-hf",
        segmenter="facebook/sam-vit-huge",
        caption_batch=16,  # a crop is up to 2,880 tokens
    ),
    "laptop": RichConfig(
        vocabulary="digits",
        caption_tokens=20,
        described_area=8 * 8,  # its pictures' short side has 64 pixels
        batch=8,
        detect_batch=4,
        caption_batch=8,
        images_per_shard=64,
    ),
}

OF_RECIPES: dict[str, Mapping[str, Config]] = {"gligen_coco": PROFILES, "rich_context": RICH_PROFILES}
"""What is annotated for a recipe, by profile."""


def get(profile: str, recipe: str = "gligen_coco") -> Config:
    """The configuration of a profile.

    Raises:
        ConfigError: there is none.
    """
    if recipe not in OF_RECIPES:
        raise ConfigError(f"nothing is annotated for {recipe!r}", f"use one of {', '.join(OF_RECIPES)}")
    profiles = OF_RECIPES[recipe]
    if profile not in profiles:
        raise ConfigError(f"there is no profile {profile!r} of annotation", f"use one of {', '.join(profiles)}")
    return profiles[profile]
