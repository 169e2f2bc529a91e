"""Whether a folder's language model is the one that a CrossFlow reads; imports no torch."""

import json
from pathlib import Path

from atelier.errors import ConfigError, DataError

CONFIG = "text_encoder/config.json"


def check_language_model(config: Path, width: int, name: str) -> None:
    """Compares the width of a text encoder's states with what is read.

    Args:
        config: its ``config.json``.
        width: of the states that are read.
        name: what reads them.

    Raises:
        ConfigError: they are of another width. DataError: the file cannot be read.
    """
    try:
        found = json.loads(config.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{config} cannot be read ({error})", "give a folder with a text encoder") from error
    own = found.get("hidden_size", found.get("d_model"))
    if own != width:
        raise ConfigError(
            f"the text encoder of {config.parent.parent} ({found.get('model_type')}) gives states of width {own}, "
            f"CrossFlow {name} reads {width}",
            "give the language model that it is trained with: CLIP ViT-L/14 is 768 wide, T5-XXL 4096",
        )
