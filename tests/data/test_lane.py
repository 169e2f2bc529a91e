"""One lane: what its encoder does wrong, that its stages overlap, and how it ends."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from atelier.data.channel import Channel, Stopped
from atelier.data.encoding import Encoding
from atelier.data.lane import Lane
from atelier.data.preprocess import Settings, preprocess
from atelier.data.quarantine import Quarantine
from atelier.data.shard_reader import ShardDataset
from atelier.data.shards import ShardWriter
from atelier.errors import DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import raw
from tests.data.encoders import BlendingEncoder

SETTINGS = Settings(res=64, samples_per_shard=8, batch=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw.make(tmp_path_factory.mktemp("raw"), 24)


def run(folder: Path, base: Path, encoder: BlendingEncoder, share: float = 0.5) -> Manifest:
    out = OutputFolder(str(base / "out"), base / "work")
    quarantine = Quarantine(share, out.path / "quarantine.jsonl")
    return out.finish("shards", preprocess(raw.source(folder), encoder, out, SETTINGS, quarantine, total=24), {})


def test_a_bad_latent_costs_its_sample_alone(folder: Path, tmp_path: Path) -> None:
    whole = ShardDataset(run(folder, tmp_path / "whole", BlendingEncoder()))
    damage = {
        "sa_2": "nan", "sa_3": "inf", "sa_5": "dtype", "sa_10": "shape", "sa_12": "rank", "sa_14": "missing",
        "sa_20": "object",
    }  # fmt: skip
    manifest = run(folder, tmp_path / "bad", BlendingEncoder(damage=damage))
    lines = (tmp_path / "bad" / "out" / "quarantine.jsonl").read_text()
    assert manifest.metadata["samples"] == 24 - len(damage)
    assert manifest.metadata["quarantined"] == {
        "wrong dtype": 2, "wrong shape": 2, "non-finite latent": 1, "non-finite pooled": 1, "wrong fields": 1,
    }  # fmt: skip
    assert '{"key": "sa_2", "reason": "non-finite latent"}' in lines
    assert "wrong dtype: latent is <f4, not <f2" in lines
    assert "wrong shape: latent is [3, 8, 16], not [3, 16, 16]" in lines
    by_key = {(sample := whole.sample(index))["key"]: sample for index in range(24)}
    left = ShardDataset(manifest)
    for index in range(len(left)):  # the others of the same batches are what they would have been
        sample = left.sample(index)
        assert (sample["latent"] == by_key[sample["key"]]["latent"]).all()
    with pytest.raises(DataError, match=r"already \d of 24 samples are unusable .*non-finite"):
        run(folder, tmp_path / "strict", BlendingEncoder(damage=damage), share=0.05)


def test_the_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    writer = ShardWriter(OutputFolder(str(tmp_path / "out"), tmp_path / "work"), "a.tar")
    writer.add("one", {"x": np.zeros((2, 3), np.float32)}, {})
    writer.add("two", {"x": np.zeros((5, 3), np.float32)}, {})
    assert writer.fields == {"x": ["<f4", [None, 3]]}
    with pytest.raises(DataError, match=r"a\.tar: sample three: wrong shape: x is \[2, 4\], not \[None, 3\]"):
        writer.add("three", {"x": np.zeros((2, 4), np.float32)}, {})
    writer.add("three", {"x": np.zeros((1, 3), np.float32)}, {})
    assert [sample[0] for sample in writer.close({})["samples"]] == ["one", "two", "three"]


class Meeting(BlendingEncoder):
    """Waits in its third batch until the first two's shard is committed: impossible unless stages overlap."""

    def __init__(self, work: Path) -> None:
        super().__init__()
        self.work, self.calls, self.met = work, 0, False

    def encode(self, images, examples):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls == 3:
            for _ in range(500):
                self.met = self.met or (self.work / "sa_000000-0000.tar.index.json").exists()
                time.sleep(0.01)
                if self.met:
                    break
        return super().encode(images, examples)


def test_writing_goes_on_while_the_encoder_works(folder: Path, tmp_path: Path) -> None:
    encoder = Meeting(tmp_path / "work")
    run(folder, tmp_path, encoder)
    assert encoder.met


def test_the_reader_waits_for_the_encoder(folder: Path, tmp_path: Path) -> None:
    """Memory stays bounded: with a slow encoder nearly nothing is read ahead of it."""
    read, ahead = 0, []
    out = OutputFolder(str(tmp_path / "out"), tmp_path / "work")
    source = raw.source(raw.make(tmp_path / "raw", 200))
    settings = Settings(res=64, samples_per_shard=200, batch=4)

    class Slow(BlendingEncoder):
        def encode(self, images, examples):  # type: ignore[no-untyped-def]
            time.sleep(0.01)
            ahead.append(read - 4 * len(ahead))
            return super().encode(images, examples)

    class Counting(Lane):
        def _prepared(self, item):  # type: ignore[no-untyped-def]
            nonlocal read
            read += 1
            return super()._prepared(item)

    Counting(Encoding(source, Slow(), settings), out, lambda images, bad, filtered: None, decoders=2).run(source.units)
    assert len(ahead) == 50
    assert max(ahead) <= 24


@pytest.mark.parametrize("stage", ["fetch", "read", "decode", "encode", "write", "report"])
def test_an_error_in_any_stage_ends_all_and_surfaces(
    folder: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = OutputFolder(str(tmp_path / "out"), tmp_path / "work")
    source, encoder = raw.source(folder), BlendingEncoder(fail_at="sa_9" if stage == "encode" else "")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(stage)

    places = {
        "fetch": "atelier.data.sa1b_source.SA1BSource.fetch",
        "read": "atelier.data.sa1b.image_id",
        "decode": "atelier.data.encoding.decode_squares",
        "write": "atelier.data.shards.ShardWriter.add",
    }
    before = threading.active_count()
    if stage in places:
        monkeypatch.setattr(places[stage], fail)
    report = fail if stage == "report" else lambda images, bad, filtered: None
    with pytest.raises(ZeroDivisionError):
        Lane(Encoding(source, encoder, SETTINGS), out, report).run(source.units)
    assert threading.active_count() == before


def test_channel() -> None:
    channel = Channel[int](2)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(channel))
    thread.start()
    for number in range(100):
        channel.put(number)
    channel.end()
    thread.join()
    assert got == list(range(100))
    failing = Channel[int](2)
    failing.put(1)
    failing.end(ZeroDivisionError())
    items = iter(failing)
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)
    full = Channel[int](1)
    full.put(1)
    threading.Timer(0.05, full.stop).start()
    with pytest.raises(Stopped):
        full.put(2)


def test_a_reader_does_not_wait_for_a_stopped_channel() -> None:
    """The lane's own thread stops a channel between two others; its writer meets ``Stopped`` and says nothing more."""
    channel = Channel[int](2)
    reader = threading.Thread(target=list, args=(channel,))
    reader.start()
    channel.stop()
    with pytest.raises(Stopped):
        channel.put(1)
    reader.join(5)
    assert not reader.is_alive()
