"""What decides the annotations: models, thresholds, batches; a profile each for a laptop and the published set-up.

Source of the paper's numbers: the facts sheet of GLIGEN, section 3.1.
"""

from pydantic import BaseModel, ConfigDict, Field

from atelier.errors import ConfigError


class Config(BaseModel):
    """Everything that can be chosen; each profile below is one frozen instance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


def get(profile: str) -> Config:
    """The configuration of a profile.

    Raises:
        ConfigError: there is none.
    """
    if profile not in PROFILES:
        raise ConfigError(f"there is no profile {profile!r} of annotation", f"use one of {', '.join(PROFILES)}")
    return PROFILES[profile]
