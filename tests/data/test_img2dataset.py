"""img2dataset's tars: what is read of them, what the filters and the quarantine say, and hostile ones."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atelier.data.filters import Filters
from atelier.data.img2dataset import read_tar
from atelier.data.img2dataset_source import Img2DatasetSource
from atelier.data.loader import ShardDataset
from atelier.data.preprocess import EncoderSpec, Settings, preprocess
from atelier.data.quarantine import Filtered, Quarantine, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import form
from atelier.data.raw_source import open_source
from atelier.errors import ConfigError, DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest
from tests.data import web_tars
from tests.data.web_tars import PlainEncoder, sample

Found = dict[str, Any]


def read(path: Path) -> tuple[dict[str, RawExample], dict[str, str]]:
    """Examples by key, and the reasons of the others."""
    examples, others = {}, {}
    for item in read_tar(path):
        if isinstance(item, RawExample):
            examples[item.key] = item
        else:
            others[item.key] = item.reason
    return examples, others


def run(raw: Manifest, place: Path, share: float = 0.0, workers: int = 1, **settings: Any) -> Manifest:
    out = OutputFolder(str(place), place.with_name(place.name + "-work"))
    encoder = EncoderSpec("tests.data.web_tars:PlainEncoder") if workers > 1 else PlainEncoder()
    chosen = Settings(**{"res": 32, "samples_per_shard": 8, "batch": 4, "filters": Filters(), "crop": "adm"} | settings)
    quarantine = Quarantine(share, out.path / "quarantine.jsonl")
    return out.finish("shards", preprocess(open_source(raw), encoder, out, chosen, quarantine, workers=workers), {})


def test_a_tar_as_it_is_written(tmp_path: Path) -> None:
    """Each image format, the txt before the json's caption, and a sample without json or without txt."""
    samples = [sample(number) for number in range(5)]
    samples[1] = {name.replace(".jpg", ".png"): data for name, data in samples[1].items()}
    samples[1]["000000001.png"] = web_tars.picture(1, kind="PNG")
    samples[2] = {name.replace(".jpg", ".webp"): data for name, data in samples[2].items()}
    samples[2]["000000002.webp"] = web_tars.picture(2, kind="WEBP")
    del samples[3]["000000003.txt"], samples[4]["000000004.json"]
    samples[0]["000000000.txt"] = "写真 лиса".encode()
    examples, others = read(web_tars.tar(tmp_path / "00000.tar", samples))
    assert others == {}
    captions = {int(key): example.caption for key, example in examples.items()}
    assert captions == {0: "写真 лиса", 1: "picture 1", 2: "picture 2", 3: "picture 3", 4: "picture 4"}
    assert examples["000000000"].facts["similarity"] == 0.33
    assert examples["000000004"].facts == {}
    assert {example.original_size for example in examples.values()} == {(32, 32)}


def test_a_caption_that_is_no_text_is_none(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(4)]
    for number, said in enumerate((float("nan"), None, 3, "a fox")):
        samples[number][f"{number:09d}.json"] = json.dumps(web_tars.facts(number, caption=said)).encode()
        del samples[number][f"{number:09d}.txt"]
    examples, _ = read(web_tars.tar(tmp_path / "00000.tar", samples))
    assert [example.caption for example in examples.values()] == ["", "", "", "a fox"]


DAMAGES: dict[str, tuple[Callable[[Found], object], str]] = {
    "no image": (lambda m: m.pop("000000001.jpg"), "no image for its json"),
    "no image, no json": (
        lambda m: (m.pop("000000001.jpg"), m.pop("000000001.json")), "no image for its caption",
    ),
    "not utf-8": (lambda m: m.update({"000000001.txt": b"caf\xe9 \xff"}), "caption is not Unicode text"),
    "no json": (
        lambda m: m.update({"000000001.json": b'{"NSFW": '}),
        "its json is not readable: JSONDecodeError: Expecting value: line 1 column 10 (char 9)",
    ),
    "a list": (lambda m: m.update({"000000001.json": b"[1]"}), "its json is not readable: list, not an object"),
    "deep": (lambda m: m.update({"000000001.json": b"[" * 200_000}), "its json is not readable: RecursionError"),
    "long json": (
        lambda m: m.update({"000000001.json": b" " * 2**21}),
        "its json is too large: 2,097,152 bytes, at most 1,048,576",
    ),
    "half a surrogate": (
        lambda m: (m.pop("000000001.txt"), m.update({"000000001.json": b'{"caption": "\\ud800"}'})),
        "caption is not Unicode text",
    ),
    "long caption": (
        lambda m: m.update({"000000001.txt": b"a" * 20_001}),
        "caption too long: 20,001 characters, at most 20,000",
    ),
    "no picture": (lambda m: m.update({"000000001.jpg": b"<html>404</html>"}), "not a readable image"),
    "bomb": (
        lambda m: m.update({"000000001.jpg": _bomb()}), "image bomb: ",
    ),
}  # fmt: skip


def _bomb() -> bytes:
    """A PNG of 3.6 billion pixels in its header."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_sample_is_quarantined_alone(tmp_path: Path, name: str) -> None:
    damage, why = DAMAGES[name]
    samples: list[Found] = [sample(number) for number in range(3)]
    damage(samples[1])
    examples, others = read(web_tars.tar(tmp_path / "00000.tar", samples))
    assert sorted(examples) == ["000000000", "000000002"]
    assert list(others) == ["000000001"]
    assert others["000000001"].startswith(why)


def test_members_that_are_nothing_to_use(tmp_path: Path) -> None:
    path = web_tars.tar(
        tmp_path / "00000.tar", [sample(0), {"000000000.cls": b"3"}, sample(1), sample(0), {"a b.jpg": b"x"}]
    )
    climbing, link = tarfile.TarInfo("../../etc/000000009.jpg"), tarfile.TarInfo("000000008.jpg")
    climbing.size, link.type, link.linkname = 4, tarfile.SYMTYPE, "/etc/passwd"
    web_tars.evil(path, [climbing, link])
    found = list(read_tar(path))
    assert [item.key for item in found if isinstance(item, RawExample)] == ["000000000", "000000001"]
    assert [(item.key, item.reason) for item in found if isinstance(item, Filtered)] == [
        ("000000000.cls", "unused kind of file: cls")
    ]
    assert sorted((item.key, item.reason) for item in found if isinstance(item, Quarantined)) == [
        ("../../etc/000000009.jpg", "its path leaves the folder"),
        ("000000000", "the sample is there twice"),
        ("000000008.jpg", "not a regular file"),
        ("a b.jpg", "unusable name: not 1 to 64 letters, digits, _ and -"),
    ]
    assert not (tmp_path.parent / "etc").exists()


def test_a_truncated_tar_keeps_what_comes_before(tmp_path: Path) -> None:
    path = web_tars.tar(tmp_path / "00000.tar", [sample(number) for number in range(6)])
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"000000004.txt") + 100])
    examples, others = read(path)
    assert sorted(examples) == [f"{number:09d}" for number in range(4)]
    assert others["000000004"] == "lost in a damaged tar: 00000.tar"
    assert others["00000.tar"].startswith("damaged tar: after 14 files")
    (tmp_path / "empty.tar").write_bytes(b"")
    assert list(read(tmp_path / "empty.tar")[1]) == ["empty.tar"]
    assert read(web_tars.tar(tmp_path / "none.tar", []))[1] == {"none.tar": "no files in the tar"}


@pytest.fixture
def raw(tmp_path: Path) -> Manifest:
    """Two tars of 13: every reason of the filters once or more, one damaged sample, one long caption."""
    folder = tmp_path / "tars"
    nsfw = [sample(2, NSFW="NSFW"), sample(3, NSFW="UNSURE")]
    scores = [sample(4, similarity=0.1), sample(5, similarity=float("nan")), sample(6, similarity=None)]
    shapes = [sample(7, (31, 60)), sample(8, (32, 65)), sample(9, (100, 200))]
    rest = [sample(10, caption=""), sample(11, status="failed_to_resize"), sample(12, caption="a very long caption")]
    broken = sample(13) | {"000000013.jpg": b"\xff\xd8\xff broken"}
    first = [sample(0), sample(1), *nsfw, *scores, *shapes, *rest, broken]
    web_tars.tar(folder / "tars" / "00000.tar", first)
    web_tars.tar(folder / "tars" / "00001.tar", [sample(20 + number) for number in range(12)])
    return web_tars.manifest(folder)


def test_filters_are_counted_and_are_no_flaws(raw: Manifest, tmp_path: Path) -> None:
    """Eight of twenty-six are dropped and one is damaged: 1 of 18 is a share of 5.6 %."""
    with pytest.raises(DataError, match=r"1 of 18 samples are unusable \(5\.6%"):
        run(raw, tmp_path / "strict", share=0.05)
    made = run(raw, tmp_path / "shards", share=0.06)
    assert made.metadata["samples"] == 17
    assert made.metadata["filtered"] == {
        "nsfw": 2, "similarity": 1, "unreadable score": 1, "too small": 1, "too long": 1, "empty caption": 1,
        "status": 1,
    }  # fmt: skip
    assert made.metadata["quarantined"] == {"not a readable image": 1}
    assert made.metadata["counts"] == {"captions_cut": 1}
    assert made.metadata["fields"]["moments_32"] == ["<f2", [4, 4]]
    record = ShardDataset(made).sample(0)["json"]
    assert record == {
        "key": "000000000", "caption": "picture 0", "original_size": [32, 32], "url": "https://example.org/0.jpg",
        "LICENSE": "?", "similarity": 0.33, "NSFW": "UNLIKELY",
    }  # fmt: skip
    [line] = (Path(made.uri) / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "000000013"


def test_what_is_dropped_is_not_decoded(raw: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atelier.data import encoding

    decoded, real = [], encoding.decode_squares

    def counted(data: bytes, *rest: Any) -> Any:
        decoded.append(data)
        return real(data, *rest)

    monkeypatch.setattr(encoding, "decode_squares", counted)
    run(raw, tmp_path / "shards", share=0.06)
    # A damaged header is found before; all others are those that are kept.
    assert len(decoded) == 17


def test_several_workers_and_a_second_run_give_the_same(raw: Manifest, tmp_path: Path) -> None:
    alone = run(raw, tmp_path / "alone", share=0.06, also=(16,))
    both = run(raw, tmp_path / "both", share=0.06, workers=2, also=(16,))
    assert both.digest == alone.digest
    assert alone.metadata["resolutions"] == [16, 32]
    fields = alone.metadata["fields"]
    assert (fields["moments_16"], fields["moments_32"]) == (["<f2", [2, 2]], ["<f2", [4, 4]])


def test_an_interrupted_run_goes_on(raw: Manifest, tmp_path: Path) -> None:
    whole = run(raw, tmp_path / "whole", share=0.06)

    class Failing(PlainEncoder):
        left = 2

        def encode_squares(self, squares: Any, examples: Any) -> Any:
            Failing.left -= 1
            if Failing.left < 0:
                raise KeyboardInterrupt
            return super().encode_squares(squares, examples)

    settings = Settings(res=32, samples_per_shard=8, batch=4, filters=Filters(), crop="adm")
    out = OutputFolder(str(tmp_path / "again"), tmp_path / "again-work")
    with pytest.raises(KeyboardInterrupt):
        preprocess(open_source(raw), Failing(), out, settings, Quarantine(0.06, out.path / "quarantine.jsonl"))
    assert run(raw, tmp_path / "again", share=0.06).digest == whole.digest


def test_facts_that_cannot_be_written_are_left_out(tmp_path: Path) -> None:
    """Numbers as JSON allows them: the samples are used all the same."""
    long = json.loads("1" + "0" * 400)
    facts: list[Found] = [
        {"LICENSE": long, "url": -long, "status": None},
        {"LICENSE": 2**63, "url": 2**63 - 1, "original_width": long},
        {"LICENSE": float("inf"), "url": float("nan"), "NSFW": None},
        {"LICENSE": [1], "url": {"a": 1}},
        {"LICENSE": "\ud800", "url": "a\nb"},
    ]
    samples = [sample(number, **found) for number, found in enumerate(facts)]
    rejected = [sample(5, similarity=long), sample(6, status=long), sample(7, NSFW=long)]
    web_tars.tar(tmp_path / "tars" / "tars" / "00000.tar", samples + rejected)
    made = run(web_tars.manifest(tmp_path / "tars"), tmp_path / "shards")
    assert made.metadata["filtered"] == {"unreadable score": 1, "status": 1, "nsfw": 1}
    dataset = ShardDataset(made)
    records = [dataset.sample(number)["json"] for number in range(5)]
    assert [{"LICENSE", "url"} & record.keys() for record in records] == [set(), {"url"}, set(), set(), set()]
    assert records[1]["url"] == 2**63 - 1


def test_filters_that_leave_nothing_are_an_error(raw: Manifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the filters left none of 26 samples: 24 × too small, 1 × status"):
        run(raw, tmp_path / "shards", share=1.0, filters=Filters(min_side=500, nsfw=("UNLIKELY",)))


def test_a_folder_without_tars(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match="no tars"):
        Img2DatasetSource(web_tars.manifest(tmp_path / "raw"))


def test_the_names_of_tars(tmp_path: Path) -> None:
    web_tars.tar(tmp_path / "raw" / "tars" / "00000.TAR", [sample(0)])
    assert Img2DatasetSource(web_tars.manifest(tmp_path / "raw")).units == ["tars/00000.TAR"]
    check = form("img2dataset").check
    check(["tars/00000.TAR", "tars/00001.tar"])
    with pytest.raises(ConfigError, match=r"tars/a\.tar and tars/a\.TAR would give shards of one name"):
        check(["tars/a.tar", "tars/a.TAR"])
