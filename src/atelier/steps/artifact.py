"""What a KFP artifact of ours holds: the manifest's JSON, nothing else.

Duck-typed (``path``, ``metadata``), so that nothing here imports KFP and a test can pass any object.
"""

from pathlib import Path
from typing import Any, Protocol

from atelier.errors import DataError
from atelier.storage.manifest import Manifest


class Artifact(Protocol):
    """The part of ``kfp.dsl.Artifact`` that is used here."""

    path: Any
    metadata: Any


def read_input(artifact: Artifact) -> Manifest:
    """The manifest that the step before handed on.

    Raises:
        DataError: the artifact's file is missing or is no manifest.
    """
    path = Path(artifact.path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"the input artifact {path} cannot be read: {error.strerror}",
            "run the pipeline again: the step before writes it anew (its data is cached)",
        ) from error
    return Manifest.parse(text)


def write_output(artifact: Artifact, manifest: Manifest) -> None:
    """Writes the manifest as the artifact; URI, digest and sizes are repeated as metadata for the Kubeflow page."""
    path = Path(artifact.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(manifest.to_json(), encoding="utf-8")
    scalars = {name: value for name, value in manifest.metadata.items() if isinstance(value, int | float | str)}
    artifact.metadata.update(
        scalars
        | {
            "kind": manifest.kind,
            "uri": manifest.uri,
            "digest": manifest.digest,
            "files": len(manifest.files),
            "bytes": manifest.total_bytes,
        }
    )


def write_metrics(artifact: Artifact, manifest: Manifest) -> None:
    """Repeats the manifest's ``metrics`` as scalars of a KFP ``Metrics`` artifact (the Kubeflow compare page)."""
    artifact.metadata.update({name: float(value) for name, value in manifest.metadata.get("metrics", {}).items()})
