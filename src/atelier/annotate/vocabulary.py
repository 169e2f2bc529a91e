"""The words that a vocabulary's tagger chooses from; light to import."""

from atelier.data import digits
from atelier.errors import ConfigError
from atelier.storage.atomic import os_errors
from atelier.storage.uri import is_local, local_path

MAX_LETTERS = 100

#: COCO's 80 categories.
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip


def words(name: str) -> list[str]:
    """``coco``, ``digits``, or a UTF-8 text file with a word (or a few) a line; each once, in their order.

    Raises:
        ConfigError: no such file, no words, or a line that is too long.
    """
    if name == "coco":
        return list(COCO)
    if name == "digits":
        return [digits.phrase(label) for label in range(len(digits.WORDS))]
    if not name or not is_local(name):
        raise ConfigError(f"vocabulary={name!r}: no file here", "give a text file with a word a line, coco or digits")
    path = local_path(name)
    with os_errors(path):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text ({error})", "give a text file with a word a line") from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    long = next((word for word in found if len(word) > MAX_LETTERS), "")
    if not found or long:
        raise ConfigError(
            f"{path}: {f'a line of {len(long)} letters' if long else 'no words'}", "give a word, or a few, a line"
        )
    return found
