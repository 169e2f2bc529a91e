"""The files that are shipped with the package: each twin's frozen base, made by the step ``pretrain``."""

from importlib.resources import files
from pathlib import Path

from atelier.errors import ConfigError

#: The parts of each base's folder that training and sampling read, by the name of its twin.
PARTS = {
    "sdxl_twin": ("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae", "unet"),
    "sd_twin": ("scheduler", "tokenizer", "text_encoder", "vae", "unet"),
}


def shipped(name: str) -> Path:
    """The folder of a shipped base.

    Raises:
        ConfigError: the package holds none of that name.
    """
    folder = Path(str(files("atelier.recipes"))) / "assets" / name
    if not (folder / "model_index.json").is_file():
        raise ConfigError(f"the package ships no base named {name}", "make one: SET='pretrain=true'")
    return folder
