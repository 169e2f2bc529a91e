"""Where a training begins: the adapter of a model that was made before, by registry address or by place."""

from dataclasses import dataclass

from atelier.errors import ConfigError, DataError
from atelier.storage.manifest import Manifest

ADAPTER = "gligen_adapter.safetensors"
REGISTRY = "models:/"


@dataclass(frozen=True)
class Start:
    """A model to start from.

    Attributes:
        model: the folder that holds it; its file ``ADAPTER`` is what is read.
        address: ``models:/name/version`` where it is registered, else its URI.
    """

    model: Manifest
    address: str

    @property
    def adapter(self) -> str:
        """The adapter's sha256."""
        return self.model.file(ADAPTER).sha256

    def lineage(self) -> dict[str, str]:
        """What a run that starts from it writes down."""
        return {"address": self.address, "model": self.model.digest, "adapter": self.adapter}


def starting_point(address: str, base: Manifest) -> Start:
    """Finds a model to start from.

    Args:
        address: ``models:/name@alias``, ``models:/name/version``, or the URI of a folder with a manifest.
        base: the frozen base that the new training is on.

    Raises:
        ConfigError: there is none, or it was trained on another base.
        DataError: the folder is not complete, holds no adapter, or is not what was registered.
        ServiceError: MLflow does not answer.
    """
    from atelier.storage.folder import existing

    place, expected = address, ""
    if address.startswith(REGISTRY):
        from atelier.tracking.registry import find

        found = find(address)
        if found is None:
            raise ConfigError(f"the registry has no {address}", "register a model of that name, or give a folder's URI")
        place, address, expected = found.source, found.uri, found.digest
    model = existing(place)
    if model is None:
        raise DataError(
            f"{place} holds no complete model: its manifest or a file that it names is missing",
            "give the URI of a step's output, or run the pipeline that makes it again",
        )
    if expected and model.digest != expected:
        raise DataError(
            f"{place} is not the model that {address} was registered with", "register it again, or restore it"
        )
    if not any(entry.path == ADAPTER for entry in model.files):
        raise DataError(f"{place} holds no {ADAPTER}", "give the output of the step convert or stage1")
    its_base = (model.made_by.get("inputs", {}).get("base") or {}).get("digest")
    if its_base and its_base != base.digest:
        raise ConfigError(
            f"{address} was trained on another base model ({its_base[:19]}…, this is {base.digest[:19]}…)",
            "give base_model its base, or start from a model of this one",
        )
    return Start(model, address)
