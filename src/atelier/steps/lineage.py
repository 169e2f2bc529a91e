"""Where a model's data came from: its manifests, one after the other, back to the source."""

from typing import Any

from atelier.errors import AtelierError
from atelier.storage.manifest import Manifest

#: Manifests on the way from a model to its data (model → training → shards → raw → source), with room to spare.
LONGEST = 12


def source_of(model_uri: str) -> Manifest | None:
    """The manifest of the step ``source`` that a model was trained on; None where the way there is broken.

    Raises:
        ServiceError: storage does not answer.
    """
    seen: set[str] = set()
    waiting = [model_uri]
    while waiting and len(seen) < LONGEST * 4:
        uri = waiting.pop(0)
        if uri in seen:
            continue
        seen.add(uri)
        try:
            manifest = Manifest.load(uri)
        except AtelierError as error:
            if error.exit_code == 5:  # no answer is no broken way
                raise
            continue
        if manifest.made_by.get("step") == "source":
            return manifest
        inputs: dict[str, Any] = manifest.made_by.get("inputs", {})
        # Through data before models: a second stage's start has data of its own.
        order = ("training", "shards", "raw", "source")
        names = sorted(inputs, key=lambda name: order.index(name) if name in order else len(order))
        waiting += [str(inputs[name]["uri"]) for name in names if name in order]
    return None
