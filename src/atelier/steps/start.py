"""Where a training begins: a model that was made before, by registry address or by place."""

import fnmatch
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from atelier.errors import ConfigError, DataError
from atelier.storage.digest import sha256_json
from atelier.storage.manifest import FileEntry, Manifest

REGISTRY = "models:/"


@dataclass(frozen=True)
class Start:
    """A model to start from.

    Attributes:
        model: the folder that holds it.
        address: ``models:/name/version`` where it is registered, else its URI.
        files: what is read of it.
        training: the output of the training that made it, where that holds parts that an export leaves out.
    """

    model: Manifest
    address: str
    files: tuple[FileEntry, ...]
    training: Manifest | None = None

    @property
    def weights(self) -> str:
        """What is read, by content: the file's sha256, of several a digest of theirs."""
        if len(self.files) == 1 and self.training is None:
            return self.files[0].sha256
        read = {entry.path: entry.sha256 for entry in self.files}
        return sha256_json(read | ({"": self.training.digest} if self.training else {}))

    @property
    def inputs(self) -> dict[str, Manifest]:
        """Both folders that are read, for the lineage of what starts from them."""
        return {"start": self.model, **({"start_training": self.training} if self.training else {})}

    def lineage(self) -> dict[str, str]:
        """What a run that starts from it writes down."""
        return {"address": self.address, "model": self.model.digest, "weights": self.weights}


def starting_point(address: str, base: Manifest, recipe: Any, expected: str = "") -> Start:
    """Finds a model to start from.

    Args:
        address: ``models:/name@alias``, ``models:/name/version``, or the URI of a folder with a manifest.
        base: the frozen base that the new training is on.
        recipe: what is trained; its ``starting`` says what is read.
        expected: the recipe (with its stage) that the model must be of; "": any stage of the same recipe.

    Raises:
        ConfigError: there is none, it is of another recipe, or was trained on another base.
        DataError: the folder is not complete, holds no weights of the recipe, or is not what was registered.
        ServiceError: MLflow does not answer.
    """
    from atelier.storage.folder import existing

    place, digest = address, ""
    if address.startswith(REGISTRY):
        from atelier.tracking.registry import find

        found = find(address)
        if found is None:
            raise ConfigError(f"the registry has no {address}", "register a model of that name, or give a folder's URI")
        place, address, digest = found.source, found.uri, found.digest
    model = existing(place)
    if model is None:
        raise DataError(
            f"{place} holds no complete model: its manifest or a file that it names is missing",
            "give the URI of a step's output, or run the pipeline that makes it again",
        )
    if digest and model.digest != digest:
        raise DataError(
            f"{place} is not the model that {address} was registered with", "register it again, or restore it"
        )
    check_recipe(model, address, recipe, expected)
    starting = recipe.starting
    lacking = [pattern for pattern in starting.needed if not _matching(model.files, (pattern,))]
    if lacking:
        raise DataError(f"{place} holds no {' and no '.join(lacking)}", "give the output of the step convert")
    _check_base(model, address, base, starting.same_base)
    training = _training_of(model, address) if starting.training_only else None
    return Start(model, address, _matching(model.files, starting.files), training)


def check_recipe(model: Manifest, address: str, recipe: Any, expected: str = "") -> None:
    """Refuses a model of another recipe or profile.

    Args:
        recipe: what is trained.
        expected: as of ``starting_point``.

    Raises:
        ConfigError: says of which recipe or profile the model is.
    """
    own, name, profile = str(model.metadata.get("recipe", "")), recipe.name, model.metadata.get("profile")
    if own and own.partition(":")[0] != name:
        raise ConfigError(f"{address} is a model of {own}, this trains {name}", f"start from a model of {name}")
    if own and expected and own != expected:
        raise ConfigError(
            f"{address} is a model of {own}, not of {expected}",
            f"register one of {expected} under that name, or name this one as the start: {address}",
        )
    if profile and profile != recipe.profile:
        raise ConfigError(
            f"{address} is of the profile {profile}, not {recipe.profile}", "start from a model of the same profile"
        )


def _training_of(model: Manifest, address: str) -> Manifest | None:
    """The output of the training that made a model; None where it was converted from elsewhere, or where that output is
    gone, which is said."""
    from atelier.storage.folder import existing

    named = model.made_by.get("inputs", {}).get("training") or {}
    if not named.get("uri"):
        return None
    found = existing(str(named["uri"]))
    if found is not None and found.digest == named.get("digest"):
        return found
    what = "is not there any more" if found is None else "is another one now"
    print(
        f"warning: the training that made {address} {what} ({named['uri']}): parts that no export has begin afresh",
        file=sys.stderr,
        flush=True,
    )
    return None


def _matching(files: Iterable[FileEntry], patterns: tuple[str, ...]) -> tuple[FileEntry, ...]:
    return tuple(entry for entry in files if any(fnmatch.fnmatchcase(entry.path, pattern) for pattern in patterns))


def _check_base(model: Manifest, address: str, base: Manifest, patterns: tuple[str, ...]) -> None:
    if patterns:
        before, now = ({entry.sha256 for entry in _matching(each.files, patterns)} for each in (model, base))
        if before and now and before != now:
            raise ConfigError(
                f"{address} was trained with another {' and '.join(pattern.partition('/')[0] for pattern in patterns)} "
                "than the base has",
                "give base_model the base that it was trained on, or start from a model of this one",
            )
        return
    its_base = (model.made_by.get("inputs", {}).get("base") or {}).get("digest")
    if its_base and its_base != base.digest:
        raise ConfigError(
            f"{address} was trained on another base model ({its_base[:19]}…, this is {base.digest[:19]}…)",
            "give base_model its base, or start from a model of this one",
        )
