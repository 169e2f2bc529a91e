"""Whether a folder's language model is the one that a CrossFlow reads; imports no torch."""

import json
from pathlib import Path

from atelier.errors import ConfigError, DataError

CONFIG = "text_encoder/config.json"


def described(config: Path) -> tuple[str, int]:
    """Which language model a text encoder's ``config.json`` means, ``"clip"`` or ``"t5"``, and its states' width.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        found = json.loads(config.read_text())
        return "t5" if found["model_type"] == "t5" else "clip", int(found.get("d_model") or found["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{config} cannot be read ({error})", "give a folder with a text encoder") from error


def check_language_model(config: Path, width: int, name: str) -> None:
    """Compares the width of a text encoder's states with what is read.

    Args:
        config: its ``config.json``.
        width: of the states that are read.
        name: what reads them.

    Raises:
        ConfigError: they are of another width. DataError: the file cannot be read.
    """
    kind, own = described(config)
    if own != width:
        raise ConfigError(
            f"the text encoder of {config.parent.parent} ({kind}) gives states of width {own}, "
            f"CrossFlow {name} reads {width}",
            "give the language model that it is trained with: CLIP ViT-L/14 is 768 wide, T5-XXL 4096",
        )
