"""Annotators: the models that annotate, found and known by their content before anything else starts."""

from typing import Any

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
    phrase_encoder: str,
    artifacts: str,
) -> Manifest:
    """A manifest of kind ``annotators`` without files: ``models``, see ``atelier.annotate.places``.

    Args:
        profile: laptop or paper.
        tagger, vocabulary, detector, captioner, phrase_encoder: see ``annotate.config``; "" is the profile's own.

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
    }
    chosen = config.get(profile).model_copy(update={name: value for name, value in given.items() if value})
    models = places.resolve(chosen)

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        for role, model in models.items():
            if role != "words":
                print(f"{role}: {model['name']} {model['revision'] or model['digest'][:12]}", flush=True)
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
