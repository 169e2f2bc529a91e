"""One worker, four, a killed and resumed run, and parts merged: the same bytes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from atelier.data.parts import KIND, merge, preprocess_part
from atelier.data.preprocess import EncoderSpec, Settings, preprocess
from atelier.data.quarantine import Quarantine
from atelier.errors import AtelierError, ConfigError, DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import raw

SETTINGS = Settings(res=64, samples_per_shard=6, batch=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = raw.make(tmp_path_factory.mktemp("raw"), 60, 5)
    content = raw.members(folder / "sa_000002.tar")
    content["sa_30.jpg"] = b"none"
    raw.rewrite(folder / "sa_000002.tar", content)
    return folder


def run(folder: Path, place: Path, workers: int = 1, **encoder: Any) -> Manifest:
    out = OutputFolder(str(place), place.with_name(place.name + "-work"))
    metadata = preprocess(
        raw.source(folder),
        EncoderSpec("tests.data.encoders:BlendingEncoder", encoder),
        out,
        SETTINGS,
        Quarantine(0.1, out.path / "quarantine.jsonl"),
        total=60,
        workers=workers,
    )
    return out.finish("shards", metadata, {})


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return run(folder, tmp_path_factory.mktemp("alone") / "out")


def test_four_workers_give_the_bytes_of_one(
    folder: Path, alone: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    many = run(folder, tmp_path / "out", workers=4)
    assert many.digest == alone.digest
    assert many.metadata["quarantined"] == {"not a readable image": 1}
    assert (tmp_path / "out" / "quarantine.jsonl").read_text().count("sa_30") == 1
    last = [line for line in capfd.readouterr().err.splitlines() if line.startswith("encoding: ")][-1]
    assert re.fullmatch(r"encoding: 60/60 images 100%, [\d.,]+/s, ETA 0:00, quarantined 1, workers 4", last)


def start(folder: Path, place: Path, workers: int, delay_s: float) -> "subprocess.Popen[str]":
    arguments = [str(folder), str(place), str(place) + "-work", str(workers), str(delay_s)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.data.preprocess_job", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def committed(place: Path) -> int:
    journal = Path(f"{place}-work") / ".committed.jsonl"
    return journal.read_text().count("\n") if journal.exists() else 0


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_and_resumed(folder: Path, alone: Manifest, tmp_path: Path, workers: int) -> None:
    chance = random.Random(workers)
    place = tmp_path / "out"
    for kill in range(2):
        job = start(folder, place, workers, delay_s=0.15)
        # A random moment after some new work is committed; with more workers the parent alone dies.
        wanted = committed(place) + 1
        while committed(place) < wanted and job.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        assert job.poll() is None, f"ended before kill {kill}"
        job.kill()
        job.wait()
        assert not place.exists()
    job = start(folder, place, workers, delay_s=0)
    text, _ = job.communicate(timeout=120)
    assert text.strip() == alone.digest
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


def test_no_worker_outlives_its_parent(folder: Path, tmp_path: Path) -> None:
    import psutil

    job = start(folder, tmp_path / "out", 2, delay_s=0.2)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < deadline:
        children = psutil.Process(job.pid).children()
        time.sleep(0.05)
    assert len(children) == 2
    job.kill()
    job.wait()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_killed_worker_is_named_and_its_work_done_again(folder: Path, alone: Manifest, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r"preprocess worker \d \(pid \d+, at .*sa_000003\.tar.*killed by SIGKILL"):
        run(folder, tmp_path / "out", workers=2, kill_at="sa_41")
    assert run(folder, tmp_path / "out", workers=2).digest == alone.digest


def test_a_workers_own_error_is_raised_here(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match=r"ZeroDivisionError: the encoder's own error"):
        run(folder, tmp_path / "out", workers=2, fail_at="sa_41")
    (tmp_path / "bad").mkdir()
    damaged = raw.make(tmp_path / "raw", 12, 2)
    source = raw.source(damaged)
    tar = damaged / "sa_000001.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 1
    tar.write_bytes(data)
    out = OutputFolder(str(tmp_path / "bad" / "out"), tmp_path / "bad" / "work")
    with pytest.raises(DataError, match=r"sa_000001\.tar: its sha256 is .* changed or damaged"):
        preprocess(
            source,
            EncoderSpec("tests.data.encoders:BlendingEncoder"),
            out,
            SETTINGS,
            Quarantine(0.1, out.path / "quarantine.jsonl"),
            workers=2,
        )


def test_an_interrupt_ends_every_stage(folder: Path, alone: Manifest, tmp_path: Path) -> None:
    job = start(
        folder, tmp_path / "out", 1, delay_s=0.5
    )  # long enough that the signal comes in the middle on busy cores too
    while not committed(tmp_path / "out"):
        time.sleep(0.01)
    job.send_signal(signal.SIGINT)
    job.communicate(timeout=30)
    assert job.returncode != 0
    assert run(folder, tmp_path / "out").digest == alone.digest


def part(folder: Path, place: Path, index: int, count: int) -> Manifest:
    out = OutputFolder(str(place), place.with_name(place.name + "-work"))
    spec = EncoderSpec("tests.data.encoders:BlendingEncoder")
    return out.finish(KIND, preprocess_part(raw.source(folder), spec, out, SETTINGS, index, count), {})


def merged(parts: list[Manifest], place: Path, share: float = 0.1) -> Manifest:
    out = OutputFolder(str(place), place.with_name(place.name + "-work"))
    metadata = merge(parts, out, SETTINGS, Quarantine(share, out.path / "quarantine.jsonl"), place.with_name("cache"))
    return out.finish("shards", metadata, {})


@pytest.mark.parametrize("count", [1, 2, 7])
def test_parts_merge_to_the_bytes_of_one(folder: Path, alone: Manifest, tmp_path: Path, count: int) -> None:
    parts = [part(folder, tmp_path / f"part{index}", index, count) for index in range(count)]
    assert merged(parts[::-1], tmp_path / "out").digest == alone.digest
    with pytest.raises(DataError, match=r"1 of 60 samples are unusable .*sa_30"):
        merged(parts, tmp_path / "strict", share=0.001)


def test_parts_from_s3(folder: Path, alone: Manifest, s3_bucket: str, tmp_path: Path) -> None:
    parts = []
    for index in range(2):
        out = OutputFolder(f"{s3_bucket}/part{index}", tmp_path / f"work{index}")
        spec = EncoderSpec("tests.data.encoders:BlendingEncoder")
        parts.append(out.finish(KIND, preprocess_part(raw.source(folder), spec, out, SETTINGS, index, 2), {}))
    out = OutputFolder(f"{s3_bucket}/merged", tmp_path / "work")
    metadata = merge(parts, out, SETTINGS, Quarantine(0.1, out.path / "quarantine.jsonl"), tmp_path / "cache")
    manifest = out.finish("shards", metadata, {})
    assert manifest.digest == alone.digest
    assert Manifest.load(manifest.uri).digest == alone.digest


def test_parts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    first, second = (part(folder, tmp_path / f"part{index}", index, 2) for index in range(2))
    with pytest.raises(DataError, match=r"parts \[0\] of 2"):
        merged([first], tmp_path / "one")
    with pytest.raises(DataError, match=r"parts \[0, 0\] of 2"):
        merged([first, first], tmp_path / "twice")
    with pytest.raises(DataError, match="not of one run"):
        merged([first, part(raw.make(tmp_path / "raw", 60, 4), tmp_path / "other", 1, 2)], tmp_path / "mixed")
    with pytest.raises(ConfigError, match="part 2 of 2"):
        part(folder, tmp_path / "part2", 2, 2)
    shard = Path(second.uri) / second.files[1].path
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="not what its manifest says"):
        merged([first, second], tmp_path / "damaged")


def test_a_tar_that_is_done_is_not_opened_again(folder: Path, alone: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(folder, tmp_path / "out", fail_at="sa_60")
    copy = raw.make(tmp_path / "raw", 60, 5)
    source = raw.source(folder)
    # The same manifest over a folder without the first tar: nothing of it is asked for any more.
    for path in folder.glob("*.tar"):
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "sa_000000.tar").unlink()
    moved = Manifest("sa1b-raw", str(copy), source.manifest.files)
    out = OutputFolder(str(tmp_path / "out"), tmp_path / "out-work")
    spec = EncoderSpec("tests.data.encoders:BlendingEncoder")
    quarantine = Quarantine(0.1, out.path / "quarantine.jsonl")
    metadata = preprocess(type(source)(moved), spec, out, SETTINGS, quarantine)
    assert out.finish("shards", metadata, {}).digest == alone.digest
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text())["key"] == "sa_30"
