"""Rich-context data: the twin's canvases in that form, and everything that the form may hold, read and refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer

from atelier.data import digits, digits_rich, rle
from atelier.data.geometry import decode_whole
from atelier.data.letterbox import content, cut
from atelier.data.quarantine import Filtered, Quarantined
from atelier.data.raw_example import RawExample
from atelier.data.raw_form import form
from atelier.data.raw_source import Examples, open_source
from atelier.data.rich_examples import frame_scale
from atelier.data.settings import Settings
from atelier.data.squares import decode_squares
from atelier.errors import ConfigError, DataError
from atelier.recipes.rich_layouts import rich_layouts
from atelier.recipes.twins.assets import shipped
from atelier.storage.folder import OutputFolder
from atelier.storage.manifest import Manifest

SETTINGS = Settings(res=64, samples_per_shard=8, batch=8)
IMAGES = "cc3m-images/00000"


def manifest(folder: Path) -> Manifest:
    """A copy of the folder, published."""
    place, work = folder.with_name("published"), folder.with_name("work")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, work)
    return OutputFolder(str(place), work).finish("rich-context-raw", {}, {})


def read(published: Manifest) -> Examples:
    source = open_source(published)
    return (example for unit in source.units for example in source.fetch(unit)())


def examples(folder: Path) -> dict[str, RawExample]:
    """All of a folder, of which nothing may be of no use."""
    found = {example.key: example for example in read(manifest(folder))}
    assert all(isinstance(example, RawExample) for example in found.values()), found
    return found  # type: ignore[return-value]


def reasons(folder: Path) -> dict[str, str]:
    return {bad.key: bad.reason for bad in read(manifest(folder)) if isinstance(bad, Quarantined)}


def picture(example: RawExample) -> Image.Image:
    whole = decode_whole(example.image, 1)
    return cut(whole, example.inner) if example.inner else whole


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    digits_rich.write_rich(tmp_path / "raw", 8, seed=1)
    return tmp_path / "raw"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def label(folder: Path, number: int = 1) -> Path:
    return folder / f"labels/label_{number:09d}.json"


def plain(folder: Path, pixels: np.ndarray, annotations: list[dict[str, Any]], caption: str = "two things") -> Path:
    """A folder of one picture ``a.png`` and its label, with no border."""
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "a.png")
    (folder / "label_a.json").write_text(json.dumps({"caption": caption, "annos": annotations}))
    return folder


def anno(bbox: list[int], text: str = "a thing that stands there", **more: Any) -> dict[str, Any]:
    return {"bbox": bbox, "caption": text, "category_name": "thing", **more}


def grey(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)


def test_canvases_come_back_without_their_border(raw: Path) -> None:
    found = examples(raw)
    assert sorted(found) == [f"{number:09d}" for number in range(1, 9)]
    for key, example in found.items():
        written = json.loads((raw / f"labels/label_{key}.json").read_text())
        beside = json.loads((raw / IMAGES / f"{key}.json").read_text())
        assert example.caption == written["caption"]
        assert example.captions == (example.caption,)
        assert example.phrases == tuple(each["caption"] for each in written["annos"])
        assert example.facts["categories"] == tuple(each["category_name"] for each in written["annos"])
        assert example.original_size == (beside["original_height"], beside["original_width"])
        with Image.open(raw / IMAGES / f"{key}.jpg") as bordered:
            assert bordered.width == bordered.height == max(example.original_size)
        assert example.inner is not None or example.original_size[0] == example.original_size[1]
        pixels = np.asarray(picture(example))
        assert pixels.shape[:2] == example.original_size
        assert min(pixels[[0, -1]].min(axis=2).max(), pixels[:, [0, -1]].min(axis=2).max()) < 250  # no white left


def test_ink_lies_in_the_chosen_boxes(raw: Path, tmp_path: Path) -> None:
    source = open_source(manifest(raw))
    for unit in source.units:
        for example in source.fetch(unit)():
            assert isinstance(example, RawExample)
            chosen = source.select(example, SETTINGS)
            bright = decode_squares(example.image, [64], inner=example.inner)[64].min(axis=2) > 130
            assert len(chosen.boxes) == len(chosen.phrases) == len(example.phrases)
            for box in chosen.boxes:
                left, top, right, bottom = (round(float(value) * 64) for value in box)
                assert bright[top:bottom, left:right].sum() > 20
                bright[top:bottom, left:right] = False
            assert not bright.any()
            record = source.record(chosen, 64)
            assert record["phrases"] == list(chosen.phrases)
            assert record["boxes"] == chosen.boxes.tolist()
            assert record["categories"] == [phrase.split()[-1] for phrase in chosen.phrases]


def test_masks_are_of_the_bordered_picture(raw: Path) -> None:
    for path in sorted((raw / "labels").iterdir()):
        for each in json.loads(path.read_text())["annos"]:
            mask = rle.decode(each["mask"])
            assert mask.shape[0] == mask.shape[1]
            x, y, width, height = each["bbox"]
            assert mask.sum() == mask[y : y + height, x : x + width].sum() == each["area"] > 20


def test_same_seed_same_bytes(raw: Path, tmp_path: Path) -> None:
    digits_rich.write_rich(tmp_path / "again", 8, seed=1)
    digits_rich.write_rich(tmp_path / "other", 8, seed=2)
    names = [path.relative_to(raw) for path in sorted(raw.rglob("*")) if path.is_file()]
    assert len(names) == 24
    assert all((raw / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    assert any((raw / name).read_bytes() != (tmp_path / "other" / name).read_bytes() for name in names)


def shared(a: digits.Placement, b: digits.Placement) -> float:
    """The share of the smaller box that lies in the other."""
    sides = [max(min(a.box[2 + i], b.box[2 + i]) - max(a.box[i], b.box[i]), 0) for i in range(2)]
    return float(sides[0] * sides[1] / min((box[2] - box[0]) ** 2 for box in (a.box, b.box)))


def test_the_first_two_boxes_overlap_in_a_share_of_layouts() -> None:
    rng, overlapping = np.random.default_rng(0), 0
    for _ in range(400):
        layout = digits_rich.layout(rng)
        assert 1 <= len(layout) <= 4
        assert all(min(box) >= 0 and max(box) <= 1 for box, _ in layout)
        common = {(i, j): shared(layout[i], layout[j]) for j in range(len(layout)) for i in range(j)}
        first = common.pop((0, 1), 0)
        assert first == 0 or digits_rich.SHARED[0] <= first + 1e-9 <= digits_rich.SHARED[1] + 2e-9
        assert not any(common.values())
        overlapping += first > 0
    assert 200 < overlapping < 280
    assert all(len(digits_rich.layout(rng, overlapping=1)) > 1 for _ in range(50))


def test_digits_that_share_a_place_hardly_touch() -> None:
    glyphs, rng = digits.split().canvas, np.random.default_rng(3)
    crossings = []
    for _ in range(100):
        layout = digits_rich.layout(rng, overlapping=1)[:2]
        inks = []
        for box, number in layout:
            left, top, right, bottom = digits.pixel_box(box, (64, 64))
            ink = np.zeros((64, 64))
            ink[top:bottom, left:right] = glyphs.ink(int(glyphs.by_label[number][0]), right - left)
            inks.append(ink)
        crossings.append((inks[0] * inks[1]).sum() / min(ink.sum() for ink in inks))
    assert np.mean(crossings) < digits_rich.CROSSING
    assert np.max(crossings) < 4 * digits_rich.CROSSING


def test_two_descriptions_and_the_sign_between_them_fit_the_twins_text_encoder() -> None:
    place = digits.Placement((0.0, 0.0, 0.3, 0.3), 7)
    assert digits_rich.describe(place) == "a tiny seven"
    assert digits_rich.describe(digits.Placement((0.1, 0.1, 0.6, 0.6), 8)) == "a big eight"
    assert digits_rich.describe(digits.Placement((0.0, 0.0, 0.25, 0.25), 8), 128) == "a big eight"
    for folder in ("tokenizer", "tokenizer_2"):
        tokenizer = CLIPTokenizer.from_pretrained(shipped("sdxl_twin") / folder)
        for word in digits.WORDS:
            text = f"a tiny {word}; a tiny {word}"
            assert len(tokenizer(text).input_ids) <= tokenizer.model_max_length
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids[1:-1]


def test_held_out_layouts() -> None:
    layouts = rich_layouts(40, 0)
    assert layouts == rich_layouts(40, 0) != rich_layouts(40, 1)
    assert len({layout.seed for layout in layouts}) == 40
    for layout in layouts:
        assert len(layout.boxes) == len(layout.phrases) == len(layout.labels)
        for phrase, number in zip(layout.phrases, layout.labels, strict=True):
            assert phrase.endswith(f" {digits.WORDS[number]}")
            assert phrase.startswith(("a big ", "a tiny "))
    assert all(len(layout.boxes) > 1 for layout in rich_layouts(20, 0, overlapping=1))


def test_labels_of_no_use_are_told_apart(raw: Path) -> None:
    label(raw, 1).write_text("{no json")
    label(raw, 2).unlink()
    edit(label(raw, 3), lambda it: it.pop("annos"))
    edit(label(raw, 4), lambda it: it.update(caption=" "))
    edit(label(raw, 5), lambda it: it["annos"][0].update(caption=7))
    edit(label(raw, 6), lambda it: it["annos"].append(it["annos"][0] | {"mask": {"size": [3, 4], "counts": "0"}}))
    edit(raw / IMAGES / "000000007.json", lambda it: it.update(original_width=0))
    edit(label(raw, 8), lambda it: it["annos"][0].update(bbox=[3, 4, 0, 5], mask=None))
    published = manifest(raw)
    found = {example.key[-1]: example for example in read(published)}
    # What is counted is the part before the colon.
    assert {key: bad.reason.split(":")[0] for key, bad in found.items() if isinstance(bad, Quarantined)} == {
        "1": "its label is no JSON",
        "2": "no label",
        "3": "its label lists no objects (annos)",
        "4": "no caption",
        "5": "its label's caption is no text",
        "6": "its label's masks are of several sizes",
        "7": "the file beside it states no size",
    }
    last = found["8"]
    assert isinstance(last, RawExample)
    assert last.dropped == 1


def test_bytes_that_the_manifest_does_not_state_are_damaged(raw: Path) -> None:
    published = manifest(raw)
    path = Path(published.uri) / "labels/label_000000001.json"
    path.write_text(path.read_text().replace("a ", "b ", 1))
    bad = next(iter(read(published)))
    assert bad == Quarantined("000000001", "damaged: its label is not the bytes that the manifest states")


def test_a_label_without_a_caption_takes_cocos(raw: Path) -> None:
    edit(label(raw, 1), lambda it: it.pop("caption"))
    annotations = [{"id": 1, "image_id": 1, "caption": "one"}, {"id": 2, "image_id": 1, "caption": "another"}]
    images = [{"id": 1, "file_name": "000000001.jpg"}]
    (raw / "captions_train.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    first = examples(raw)["000000001"]
    assert first.captions == ("one", "another")
    assert first.caption == "one"


def test_what_is_held_out_is_not_read(raw: Path) -> None:
    rows = [["cc/000000002.jpg", "labels/label_000000002.json"], "000000003.jpg"]
    (raw / "validation.json").write_text(json.dumps(rows))
    found = list(read(manifest(raw)))
    assert [each for each in found if isinstance(each, Filtered)] == [
        Filtered("000000002", "held out"),
        Filtered("000000003", "held out"),
    ]
    assert len([each for each in found if isinstance(each, RawExample)]) == 6
    (raw / "validation.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match=r"validation\.json: it lists no images"):
        list(read(manifest(raw)))


def test_boxes_are_of_the_picture_that_was_labelled(tmp_path: Path) -> None:
    pixels = grey(60, 90)
    mask = {"size": [64, 96], "counts": "0"}
    folder = plain(tmp_path / "a", pixels, [anno([0, 0, 48, 32], mask=mask), anno([32, 16, 32, 48], mask=mask)])
    example = examples(folder)["a"]
    assert example.boxes_px is not None
    assert example.boxes_px.tolist() == [[0, 0, 45, 30], [30, 15, 60, 60]]
    assert frame_scale((60, 90), (96, 96)) == 90 / 96  # a square with a border
    assert frame_scale((60, 90), None) == 1
    square = plain(tmp_path / "b", pixels, [anno([0, 0, 48, 32], mask={"size": [96, 64], "counts": "0"})])
    assert reasons(square) == {"a": "its label is of a picture of another shape: 96×64, it is 60×90"}


def test_of_a_box_that_the_crop_hides_nothing_is_said(tmp_path: Path) -> None:
    boxes = [[0, 16, 20, 20], [30, 0, 30, 60], [0, 0, 12, 60], [60, 0, 30, 60], [40, 20, 4, 4]]
    folder = plain(tmp_path / "a", grey(60, 90), [anno(box, f"thing {n}") for n, box in enumerate(boxes)])
    source = open_source(manifest(folder))
    (example,) = source.fetch(source.units[0])()
    assert isinstance(example, RawExample)
    chosen = source.select(example, SETTINGS)
    # A quarter of the first lies in the crop (x from 15), nothing of the third, and the last is too small.
    assert chosen.phrases == ("thing 1", "thing 3")
    assert np.allclose(chosen.boxes, [[0.25, 0, 0.75, 1], [0.75, 0, 1, 1]])
    assert chosen.dropped == 3
    few = source.select(example, Settings(res=64, samples_per_shard=8, batch=8, max_boxes=1))
    assert few.phrases == ("thing 1",)
    assert few.dropped == 4, "one for which there was no room"


def test_a_picture_that_was_cropped_square_has_no_border(tmp_path: Path) -> None:
    folder = plain(tmp_path / "a", grey(96, 96), [anno([0, 0, 48, 32])])
    (folder / "a.json").write_text(json.dumps({"original_width": 120, "original_height": 80}))
    example = examples(folder)["a"]
    assert example.inner == (0, 16, 96, 80)
    assert example.original_size == (64, 96)
    with pytest.raises(ValueError, match="no border: it was cropped or stretched"):
        picture(example)
    with pytest.raises(ValueError, match="no border"):
        decode_squares(example.image, [64], inner=example.inner)


def test_a_border_that_no_file_tells_of_is_not_trained_on_in_silence(raw: Path) -> None:
    """img2dataset's sizes left behind, as the pattern ``*.jpg`` does: what plainly has a border is of no use."""
    sizes = {
        path.stem: (it["original_height"], it["original_width"])
        for path in sorted((raw / IMAGES).glob("*.json"))
        for it in [json.loads(path.read_text())]
    }
    for path in sorted((raw / IMAGES).glob("*.json"))[:-1]:
        path.unlink()
    found = {example.key: example for example in read(manifest(raw))}
    plainly = {key for key, size in sizes.items() if max(size) - min(size) >= 4}
    assert len(plainly) > 3
    *bare, last = sizes
    assert {key for key, each in found.items() if isinstance(each, Quarantined)} == plainly & set(bare)
    assert {each.reason.split(":")[0] for each in found.values() if isinstance(each, Quarantined)} == {
        "a white border, and nothing says where the picture lies in it"
    }
    known = found[last]
    assert isinstance(known, RawExample)
    assert known.counts == {"pictures_unsized": 0}


def test_pictures_without_a_size_are_counted(tmp_path: Path) -> None:
    folder = plain(tmp_path / "a", grey(96, 96), [anno([0, 0, 48, 32])])
    assert examples(folder)["a"].counts == {"pictures_unsized": 1}
    (folder / "a.json").write_text(json.dumps({"original_width": 120, "original_height": 120}))
    assert examples(folder)["a"].counts == {"pictures_unsized": 0}


def test_a_line_within_a_border_is_no_picture(tmp_path: Path) -> None:
    folder = plain(tmp_path / "a", np.full((512, 512, 3), 255, np.uint8), [anno([0, 255, 512, 1])])
    (folder / "a.json").write_text(json.dumps({"original_width": 90_000, "original_height": 1}))
    example = examples(folder)["a"]
    assert example.original_size == (1, 512)
    with pytest.raises(ValueError, match="image bomb: 1×512 pixels"):
        decode_squares(example.image, [1024], inner=example.inner)


def test_where_a_picture_lies_in_its_border() -> None:
    assert content((96, 96), (80, 120)) == (0, 16, 96, 80)
    assert content((768, 768), (375, 500)) == (0, 96, 768, 672)
    assert content((80, 120), (80, 120)) == (0, 0, 120, 80)
    assert content((96, 96), (120, 79)) == (16, 0, 79, 96)  # 33 pixels: the odd one lies behind


def test_no_description_is_the_category(tmp_path: Path) -> None:
    folder = plain(tmp_path / "a", grey(64, 64), [anno([0, 0, 48, 32], ""), anno([0, 0, 32, 48], "", category_name="")])
    example = examples(folder)["a"]
    assert example.phrases == ("thing",)
    assert example.dropped == 1


def test_labels_of_one_image_are_one(raw: Path) -> None:
    (raw / "more").mkdir()
    shutil.copy(label(raw, 1), raw / "more")
    assert len(examples(raw)) == 8  # the same twice is no contradiction
    edit(raw / "more" / label(raw, 1).name, lambda it: it.update(caption="another"))
    with pytest.raises(DataError, match="are of one image"):
        open_source(manifest(raw))
    shutil.rmtree(raw / "more")
    shutil.rmtree(raw / "labels")
    with pytest.raises(DataError, match="no label of its images"):
        open_source(manifest(raw))


def test_what_a_download_must_bring() -> None:
    rich = form("rich-context")
    rich.check(["images/a.jpg", "annotations/label_a.json"])
    with pytest.raises(ConfigError, match=r"no label_<image>\.json"):
        rich.check(["images/a.jpg", "annotations/a.json"])
    with pytest.raises(ConfigError, match="no images"):
        rich.check(["annotations/label_a.json"])
    kinds = {name: rich.kind_of(name) for name in ("a.JPG", "x/label_captions.json", "captions_val.json", "a.txt")}
    assert kinds == {
        "a.JPG": "pictures",
        "x/label_captions.json": "boxes",
        "captions_val.json": "captions",
        "a.txt": None,
    }
