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


def check_language_model(config: Path, width: int, name: str, kind: str = "") -> None:
    """Compares a text encoder with what is read.

    Args:
        config: its ``config.json``.
        width: of the states that are read.
        name: what reads them.
        kind: ``"clip"`` or ``"t5"``, whose states are read; "" where the width alone is known. T5-base is as wide as
            CLIP ViT-L/14.

    Raises:
        ConfigError: it is of another kind or width. DataError: the file cannot be read.
    """
    found, own = described(config)
    if own != width or kind not in ("", found):
        raise ConfigError(
            f"the text encoder of {config.parent.parent} ({found}) gives states of width {own}, "
            f"CrossFlow {name} reads {width}{f' ({kind})' if kind else ''}",
            "give the language model that it is trained with: CLIP ViT-L/14 is 768 wide, T5-XXL 4096",
        )
