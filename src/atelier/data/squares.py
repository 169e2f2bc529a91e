"""The two centre squares of CrossFlow's pictures: for training, and of COCO for validation."""

from PIL import Image


def training_square(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: halved by boxes while twice too large, then bicubic to the size, then the centre."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _centre(image, size)


def coco_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square, then Lanczos to the size."""
    return _centre(image, min(image.size)).resize((size, size), Image.Resampling.LANCZOS)


def _centre(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
