"""Pictures listed in JSON lines: joined by name, and every unusable line or picture counted with its reason."""

import json
import shutil
from pathlib import Path

import pytest

from atelier.data import digits
from atelier.data.captioned_source import CaptionedSource
from atelier.data.digit_pairs import boxes, caption
from atelier.data.digits_captioned import LIST, write_captioned
from atelier.data.filters import Filters, reason
from atelier.data.quarantine import Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import form
from atelier.data.raw_source import open_source
from atelier.errors import ConfigError, DataError
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest


def manifest(folder: Path) -> Manifest:
    """A copy of the folder, published."""
    place, work = folder.with_name("published"), folder.with_name("work")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, work)
    return OutputFolder(str(place), work).finish("captioned-raw", {}, {})


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_captioned(tmp_path / "raw", 6, seed=1, size=32)
    return tmp_path / "raw"


def read(folder: Path) -> list[RawExample | Quarantined]:
    source = open_source(manifest(folder))
    return [example for unit in source.units for example in source.fetch(unit)()]


def test_pictures_and_prompts(raw: Path) -> None:
    listed = {Path(line["img_path"]).stem: line["prompt"] for line in map(json.loads, (raw / LIST).open())}
    found = read(raw)
    assert {example.key: example.caption for example in found if isinstance(example, RawExample)} == listed
    assert len(listed) == 6
    assert all(" above " in prompt for prompt in listed.values())


def test_the_same_arguments_give_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    write_captioned(tmp_path / "again", 6, seed=1, size=32)
    for path in raw.rglob("*.jpg"):
        assert (tmp_path / "again" / path.relative_to(raw)).read_bytes() == path.read_bytes()


def test_bad_lines_are_counted(raw: Path) -> None:
    lines = (raw / LIST).read_text().splitlines()
    lines[0] = "{no json"
    lines[1] = json.dumps({"img_path": "imgs/00000001.jpg"})
    lines[2] = json.dumps({"img_path": "imgs/00000002.jpg", "prompt": " "})
    lines.insert(3, "")
    (raw / LIST).write_text("\n".join(lines))
    found = read(raw)
    reasons = {bad.key: bad.reason for bad in found if isinstance(bad, Quarantined)}
    assert reasons == {
        "img_text_pair-line-1": "the line is no JSON",
        "img_text_pair-line-2": "the line has no img_path and prompt",
        "00000000": "no prompt names it",
        "00000001": "no prompt names it",
    }
    good = [example for example in found if isinstance(example, RawExample)]
    assert len(good) == 4
    # An empty prompt is no flaw of the list; the filters drop it.
    assert [reason(example, Filters(), 32) for example in good] == ["empty caption", "", "", ""]


def test_two_lines_that_disagree_are_said(raw: Path) -> None:
    lines = (raw / LIST).read_text().splitlines()
    first = json.loads(lines[0])
    lines += [lines[0], json.dumps(first | {"prompt": "another"})]
    (raw / LIST).write_text("\n".join(lines))
    found = read(raw)
    assert [bad for bad in found if isinstance(bad, Quarantined)] == [
        Quarantined("img_text_pair-line-8", "another line has another prompt for it")
    ]
    assert next(e.caption for e in found if isinstance(e, RawExample) and e.key == "00000000") == first["prompt"]


def test_a_list_of_no_use_is_an_error(raw: Path) -> None:
    (raw / LIST).write_text("[1]\n")
    with pytest.raises(DataError, match=r"no line of its list can be used \(the line has no img_path and prompt\)"):
        read(raw)
    (raw / LIST).unlink()
    with pytest.raises(DataError, match=r"no \.jsonl of prompts"):
        CaptionedSource(manifest(raw))


def test_what_a_download_must_bring() -> None:
    captioned = form("captioned")
    captioned.check(["images/a.jpg", "annotations/list.jsonl"])
    with pytest.raises(ConfigError, match="no list of prompts"):
        captioned.check(["images/a.jpg"])
    assert captioned.kind_of("x/list.jsonl") == "captions"
    assert captioned.kind_of("notes.txt") is None


def test_captions_and_places() -> None:
    assert caption(8, 1) == "an eight above a one"
    upper, lower = boxes()
    assert upper[3] <= lower[1]
    assert len(digits.WORDS) == 10
