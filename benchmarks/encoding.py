"""Preprocessing beside the upstream way, in one run, on the same tars, models and threads."""

import functools
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from diffusers import AutoencoderKL
from PIL import Image

from atelier.data.digits_sa1b import write_sa1b
from atelier.data.preprocess import RawSource, Settings, open_source, preprocess
from atelier.data.quarantine import Quarantine, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.sa1b import image_sizes
from atelier.data.shard_reader import ShardDataset
from atelier.data.tar_bytes import add_bytes, open_for_writing
from atelier.recipes.twins.assets import shipped
from atelier.storage.digest import sha256_file
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import FileEntry, Manifest, sorted_entries
from benchmarks.harness import Bench, Result, side_by_side

BATCH = 32
CPU_PIXELS = 2**17
"""Pixels that the twin's autoencoder takes at once on a CPU: two images at 256, 32 at 64."""


class LatentEncoder:
    """The autoencoder alone, as upstream's pass has it; batched."""

    digest = "sha256:bench"

    def __init__(self, vae: AutoencoderKL, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.vae, self.device, self.dtype = vae, device, dtype

    @torch.inference_mode()
    def encode(self, images: np.ndarray, examples: list[RawExample]) -> list[dict[str, np.ndarray]]:
        """uint8 [B, res, res, 3] → ``latent`` fp16 [4, h, w] each."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2)
        # More at once than a CPU's caches hold is slower than one by one; a GPU takes all.
        at_once = max(1, CPU_PIXELS // images[0, :, :, 0].size) if self.device == "cpu" else len(images)
        latents = torch.cat([self._encoded(part) for part in pixels.split(at_once)])
        return [{"latent": latent} for latent in latents.cpu().numpy()]

    def _encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        scaled = (pixels.float() / 127.5 - 1).to(self.dtype)
        return (self.vae.encode(scaled).latent_dist.mean * self.vae.config.scaling_factor).half()


def one_by_one(tar: Path, vae: AutoencoderKL, res: int, target: Path, device: str = "cpu") -> np.ndarray:
    """Upstream's pass: one loader decodes ahead, each image is encoded alone in fp32, all are saved at the end."""

    def pixels(data: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        scale = res / min(image.size)
        width, height = (max(res, int(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - res) // 2, (height - res) // 2
        cropped = np.asarray(image.crop((left, top, left + res, top + res)))
        return torch.from_numpy(cropped.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1

    latents = []
    with tarfile.open(tar) as archive, ThreadPoolExecutor(1) as loader, torch.inference_mode():
        images = (archive.extractfile(m).read() for m in archive if m.name.endswith("jpg"))  # type: ignore[union-attr]
        ahead = [loader.submit(pixels, data) for data in islice(images, 2)]
        while ahead:
            x = ahead.pop(0).result().to(device)
            ahead += [loader.submit(pixels, data) for data in islice(images, 1)]
            latents.append((vae.encode(x).latent_dist.mean * vae.config.scaling_factor).half().cpu().numpy()[0])
    np.save(target, np.array({"latents": np.stack(latents)}, object), allow_pickle=True)
    return np.stack(latents)


def in_batches(source: RawSource, encoder: LatentEncoder, res: int, folder: Path, batch: int = BATCH) -> Manifest:
    """Ours: decoded, checked, encoded in batches, written with checksums and published."""
    place = Path(tempfile.mkdtemp(dir=folder))
    out = OutputFolder(str(place / "out"), place / "work")
    quarantine = Quarantine(0.0, out.path / "quarantine.jsonl")
    return out.finish("shards", preprocess(source, encoder, out, Settings(res, 512, batch), quarantine), {})


def photographs(count: int, size: tuple[int, int], seed: int = 0) -> Iterator[bytes]:
    """JPEGs of (H, W) with large shapes and grain: about 1 MB at SA-1B's size, as SA-1B's have."""
    rng = np.random.default_rng(seed)
    height, width = size
    drawn = []
    for _ in range(min(count, 6)):
        shapes = Image.fromarray(rng.integers(0, 256, (height // 50, width // 50, 3), np.uint8))
        pixels = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.normal(0, 6, (height, width, 1)).astype(np.int16)
        buffer = io.BytesIO()
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        drawn.append(buffer.getvalue())
    yield from (drawn[number % len(drawn)] for number in range(count))


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """``sa_000000.tar`` and ``captions.parquet`` in SA-1B's form, without boxes."""
    with (folder / "sa_000000.tar").open("wb") as file, open_for_writing(file) as archive:
        for number, jpeg in enumerate(photographs(count, size)):
            add_bytes(archive, f"sa_{number}.jpg", jpeg)
            image = {"image_id": number, "height": size[0], "width": size[1], "file_name": f"sa_{number}.jpg"}
            add_bytes(archive, f"sa_{number}.json", json.dumps({"image": image, "annotations": []}).encode())
    table = pyarrow.table({"key": [f"sa_{n}" for n in range(count)], "caption": ["a photograph"] * count})
    pyarrow.parquet.write_table(table, folder / "captions.parquet")


def source_of(folder: Path) -> RawSource:
    """The tars, boxes and captions in a folder."""
    files = [path for path in folder.rglob("*") if path.suffix in (".tar", ".npy", ".parquet")]
    entries = [FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_file(p)) for p in files]
    return open_source(Manifest("sa1b-raw", str(folder), sorted_entries(entries)))


def compare(
    name: str, folder: Path, images: int, res: int, bar: float, vae: AutoencoderKL, encoder: LatentEncoder,
    batch: int, device: str = "cpu", tolerance: float = 2e-2,
) -> Result:  # fmt: skip
    """Images a second of both ways over one tar, after a look that they agree."""
    tar, work = folder / "sa_000000.tar", folder / "work"
    work.mkdir()
    source = source_of(folder)
    theirs = functools.partial(one_by_one, tar, vae, res, work / "upstream.npy", device)
    ours = functools.partial(in_batches, source, encoder, res, work, batch)
    dataset, expected = ShardDataset(ours()), theirs()
    apart = max(float(abs(dataset.sample(n)["latent"] - expected[n]).max()) for n in range(images))
    difference = apart / float(expected.astype(np.float32).std())
    if len(dataset) != images or difference > tolerance:
        raise AssertionError(f"{name}: the two ways differ by {difference}")
    slow, fast = side_by_side(theirs, ours, rounds=3)
    rates = f"{images / fast:.1f} against {images / slow:.1f} images/s at {res} px"
    note = f"{rates}; latents differ by {difference:.1e} of their deviation at most"
    return Result(name, slow / fast, "x", bar, note=note)


def encode_vs_one_by_one() -> Result:
    """The twin: its autoencoder at 64 px over digit canvases."""
    with tempfile.TemporaryDirectory() as name:
        write_sa1b(Path(name), 600, 1, 0)
        vae = AutoencoderKL.from_pretrained(shipped("sdxl_twin") / "vae").eval()
        return compare("encode_vs_one_by_one", Path(name), 600, 64, 1.3, vae, LatentEncoder(vae), 64)


def encode_photographs_vs_one_by_one() -> Result:
    """The twin's autoencoder at 256 px over photographs of SA-1B's size: no slower, though a batch brings a CPU nothing
    there (decoding and the convolutions fill both cores either way)."""
    with tempfile.TemporaryDirectory() as name:
        write_photographs(Path(name), 64, (1500, 2000))
        vae = AutoencoderKL.from_pretrained(shipped("sdxl_twin") / "vae").eval()
        return compare("encode_photographs_vs_one_by_one", Path(name), 64, 256, 1.0, vae, LatentEncoder(vae), 8)


def sizes_vs_decoding() -> Result:
    """Original sizes of 60 photographs of SA-1B's size: from headers, and by decoding each as upstream does."""
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), (1500, 2000)
        write_photographs(folder, 60, size)
        tar = folder / "sa_000000.tar"

        def decoded() -> list[tuple[int, int]]:
            with tarfile.open(tar) as archive:
                images = (archive.extractfile(m).read() for m in archive if m.name.endswith("jpg"))  # type: ignore[union-attr]
                return [Image.open(io.BytesIO(data)).convert("RGB").size[::-1] for data in images]

        def read() -> list[tuple[int, int]]:
            return [item[1] for item in image_sizes(tar) if not isinstance(item, Quarantined)]

        if not read() == decoded() == [size] * 60:
            raise AssertionError("the two ways disagree")
        slow, fast = side_by_side(decoded, read)
        kilobytes = tar.stat().st_size / 60e3
        note = f"{1000 * fast / 60:.3f} against {1000 * slow / 60:.1f} ms an image of {kilobytes:.0f} kB"
        return Result("sizes_vs_decoding", slow / fast, "x", 20.0, note=note)


BENCHES: dict[str, Bench] = {
    "encode_vs_one_by_one": encode_vs_one_by_one,
    "encode_photographs_vs_one_by_one": encode_photographs_vs_one_by_one,
    "sizes_vs_decoding": sizes_vs_decoding,
}
