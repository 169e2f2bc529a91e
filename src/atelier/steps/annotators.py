"""Annotators: the models that annotate, found and known by their content before anything else starts."""

from typing import Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(
    *,
    profile: str,
    tagger: str,
    vocabulary: str,
    detector: str,
    captioner: str,
    phrase_encoder: str = "",
    segmenter: str = "",
    clip: str = "",
    recipe: str = "gligen_coco",
    artifacts: str,
) -> Manifest:
    """A manifest of kind ``annotators`` without files: ``models``, see ``atelier.annotate.places``.

    Args:
        profile: laptop or paper.
        tagger, vocabulary, detector, captioner, phrase_encoder, segmenter, clip: see ``annotate.config``; "" is the
            profile's own.
        recipe: what is annotated for.

    Raises:
        ConfigError: models are not given, missing or of another kind; all of them are named. ServiceError: the hub
            does not answer.
    """
    from atelier.annotate import config, places

    given = {
        "tagger": tagger,
        "vocabulary": vocabulary,
        "detector": detector,
        "captioner": captioner,
        "phrase_encoder": phrase_encoder,
        "segmenter": segmenter,
        "clip": clip,
    }
    own = config.get(profile, recipe)
    given = {name: value for name, value in given.items() if value}
    if strange := sorted(given.keys() - {*own.models, "vocabulary"}):
        raise ConfigError(f"{strange[0]} given, which annotating for {recipe} does not use", "leave it out")
    chosen = own.model_copy(update=given)
    models = places.resolve(chosen)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        for role, model in models.items():
            if role != "words":
                print(f"{role}: {model['name']} {model['revision'] or model['digest'][:12]}", flush=True)
        for role in [role for role in chosen.optional if role not in models]:
            print(f"{role}: none given, its part is left out", flush=True)
        return "annotators", {"models": models}

    return run_step(
        name="annotators",
        version=VERSION,
        module=__name__,
        produce=produce,
        inputs={},
        params={"models": models},
        artifacts=artifacts,
    )
