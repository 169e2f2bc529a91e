"""transformers' models from a folder or the hub: errors that name the model, nothing drawn at random."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from atelier.errors import ConfigError


def device() -> torch.device:
    """The accelerator where there is one; under torchrun this process's."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def named_device(name: str) -> torch.device:
    """A device as a person wrote it.

    Raises:
        ConfigError: torch knows none of this name, or there is none here.
    """
    try:
        found = torch.device(name)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"there is no device {name!r} here ({str(error).splitlines()[0][:200]})",
            "use cpu, or cuda where there is a GPU",
        ) from error
    return found


def load(kind: Any, name: str, revision: str = "", **arguments: Any) -> Any:
    """``kind.from_pretrained``, whatever ``kind`` is: a model, a tokenizer, an image processor.

    Args:
        name: a folder, or an id of the hub.

    Raises:
        ConfigError: it cannot be loaded.
    """
    chosen = {"revision": revision} if revision else {}
    try:
        return kind.from_pretrained(name, **chosen, **arguments)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{name}: cannot be loaded as {kind.__name__} ({why})",
            "give a folder of the model with safetensors, or an id of a hub that answers (HF_TOKEN, HF_ENDPOINT)",
        ) from error


def load_model(kind: Any, name: str, revision: str = "", dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    """A frozen model on the accelerator.

    Raises:
        ConfigError: as ``load``; also where weights are missing (which transformers would draw at random).
    """
    with _quiet():
        model, info = load(kind, name, revision, dtype=dtype, output_loading_info=True, **arguments)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{name}: {len(missing)} weights of a {kind.__name__} are missing, e.g. {missing[0]}",
            "it is another model, or an incomplete download",
        )
    return model.to(device()).eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' list of the weights that a part of a model leaves aside."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
