"""Source: the URIs of published data, or canvases of real handwritten digits where none are given."""

from typing import Any

from atelier.errors import ConfigError
from atelier.steps.runtime import StepContext, run_step
from atelier.storage.manifest import Manifest

VERSION = 1


def run(*, tars: str, captions: str, boxes: str, images: int, seed: int, artifacts: str) -> Manifest:
    """A manifest of kind ``sa1b-source`` (files of drawn digits) or ``source-uris`` (metadata alone).

    Raises:
        ConfigError: tars without captions or boxes, or these without tars.
    """
    uris = {"tars": tars, "captions": captions, "boxes": boxes}
    if not any(uris.values()):
        from atelier.steps.digits import run as draw

        return draw(images=images, seed=seed, artifacts=artifacts)
    missing = [name for name, uri in uris.items() if not uri]
    if missing:
        raise ConfigError(f"no URI for {' and '.join(missing)}", "give tars, captions and boxes together, or none")

    def produce(ctx: StepContext) -> tuple[str, dict[str, Any]]:
        return "source-uris", dict(uris)

    return run_step(
        name="source", version=VERSION, module=__name__, produce=produce, inputs={}, params=uris, artifacts=artifacts
    )
