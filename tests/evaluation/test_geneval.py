"""GenEval: its prompts' form, its rules on given boxes, colours, scores, and the command with a real small detector."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier.annotate.finders import GroundedFinder, open_finder
from atelier.cli import main
from atelier.errors import ConfigError, DataError
from atelier.evaluation.clip_score import ClipScore
from atelier.evaluation.geneval.colours import GREY, ClipColours, crop
from atelier.evaluation.geneval.objects import Found
from atelier.evaluation.geneval.rules import Thresholds, Verdict, judge, relations
from atelier.evaluation.geneval.scores import scores
from atelier.evaluation.geneval.tasks import COLOURS, Asked, Task, read_tasks
from tests.annotate import tiny
from tests.evaluation import text_models

LINES: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "a photo of two dogs",
    },
    {
        "tag": "position",
        "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a bench",
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "stop sign", "count": 1, "color": "red"},
            {"class": "tv remote", "count": 1, "color": "blue"},
        ],
        "prompt": "a photo of a red stop sign and a blue tv remote",
    },
]


def tasks_file(folder: Path, lines: Sequence[Any] = LINES) -> Path:
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def at(label: str, x: float, y: float, score: float = 0.95, side: float = 20) -> Found:
    return Found(label, score, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


def no_colours(objects: Sequence[Found]) -> list[str]:
    raise AssertionError("no colour was asked for")


def test_prompts_are_read(tmp_path: Path) -> None:
    single, counting, position, colours = read_tasks(tasks_file(tmp_path))
    assert single == Task("single_object", "a photo of a bench", (Asked("bench", 1),))
    assert counting.exclude == (Asked("dog", 3),)
    assert position.include[1] == Asked("dog", 1, relation="right of", of=0)
    assert [one.colour for one in colours.include] == ["red", "blue"]


def test_lines_end_at_a_newline_alone(tmp_path: Path) -> None:
    path, prompt = tmp_path / "prompts.jsonl", "a photo\u2028of a\x85bench\u2029"
    path.write_text(json.dumps(LINES[0] | {"prompt": prompt}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [task.prompt for task in read_tasks(path)] == [prompt]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a photo of a bench", "line 1"),
        ([1], "not an object"),
        ({"tag": "x", "prompt": "y"}, "no 'include'"),
        ({"tag": "x", "prompt": "y", "include": []}, "includes nothing"),
        ({"tag": "x", "include": [{"class": "dog"}]}, "no 'prompt'"),
        ({"tag": "x", "prompt": "y", "include": [{"class": "dog", "count": 0}]}, "count is 0"),
        ({"tag": "x", "prompt": "y", "include": [{"class": "dog", "color": "mauve"}]}, "color is 'mauve'"),
        ({"tag": "x", "prompt": "y", "include": [{"class": "dog", "position": ["near", 0]}]}, "position is"),
        ({"tag": "x", "prompt": "y", "include": [{"class": "dog", "position": ["above", 0]}]}, "number 0 of 1"),
    ],
)
def test_prompts_of_another_form(tmp_path: Path, line: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_tasks(tasks_file(tmp_path, [line]))


def test_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prompt"):
        read_tasks(tasks_file(tmp_path, []))


def test_presence_and_confidence() -> None:
    task = Task("single_object", "", (Asked("bench", 1),))
    assert judge(task, [at("bench", 50, 50, 0.3)], no_colours).correct
    missing = judge(task, [at("bench", 50, 50, 0.29), at("dog", 50, 50)], no_colours)
    assert missing.reasons == (("missing", "0 × bench, 1 wanted"),)


def test_counting_is_stricter_and_exact() -> None:
    task = Task("counting", "", (Asked("dog", 2),), (Asked("dog", 3),))
    two = [at("dog", 20, 50), at("dog", 80, 50)]
    assert judge(task, two, no_colours).correct
    assert judge(task, [*two, at("dog", 50, 50, 0.89)], no_colours).correct
    many = judge(task, [*two, at("dog", 50, 50, 0.9)], no_colours)
    assert many.reasons == (("too many", "3 × dog, fewer than 3 wanted"),)
    assert [kind for kind, _ in judge(task, two[:1], no_colours).reasons] == ["missing"]
    low = Thresholds(counting=0.3)
    assert not judge(task, [*two, at("dog", 50, 50, 0.4)], no_colours, low).correct


def test_colours_of_the_right_object() -> None:
    task = Task("color_attr", "", (Asked("bench", 1, "red"), Asked("dog", 1, "black")))
    found = [at("bench", 20, 50), at("bench", 20, 20, 0.5), at("dog", 80, 50)]

    def seen(*answers: str) -> Any:
        of = dict(zip(found, answers, strict=True))
        return lambda objects: [of[one] for one in objects]

    assert judge(task, found, seen("red", "green", "black")).correct
    doubtful = judge(task, found, seen("green", "red", "black"))  # the less sure bench is not asked
    assert doubtful.reasons == (("colour", "bench is green, red wanted"),)
    two = judge(Task("colors", "", (Asked("bench", 2, "red"),)), found, seen("red", "green", "black"))
    assert two.reasons == (("colour", "bench is red, green, red wanted"),)
    swapped = judge(task, found, seen("black", "black", "red"))
    assert swapped.reasons == (
        ("colour", "bench is black, red wanted"),
        ("colour", "dog is red, black wanted"),
    )


@pytest.mark.parametrize(
    ("x", "y", "seen"),
    [
        (60, 50, {"right of"}),
        (54.1, 50, {"right of"}),
        (54, 50, set()),  # 0.1 × (20 + 20) is not more than itself
        (40, 50, {"left of"}),
        (50, 40, {"above"}),
        (50, 60, {"below"}),
        (60, 40, {"right of", "above"}),
        (50, 50, set()),
    ],
)
def test_relations(x: float, y: float, seen: set[str]) -> None:
    assert relations(at("dog", x, y).box, at("bench", 50, 50).box) == seen


def test_position() -> None:
    task = Task("position", "", (Asked("bench", 1), Asked("dog", 1, relation="right of", of=0)))
    assert judge(task, [at("bench", 20, 50), at("dog", 80, 50)], no_colours).correct
    wrong = judge(task, [at("bench", 80, 50), at("dog", 20, 50)], no_colours)
    assert wrong.reasons == (("position", "dog is left of bench, right of wanted"),)
    near = judge(task, [at("bench", 50, 50), at("dog", 51, 50)], no_colours)
    assert near.reasons == (("position", "dog is beside bench, right of wanted"),)
    gone = judge(task, [at("dog", 51, 50)], no_colours)
    assert [kind for kind, _ in gone.reasons] == ["missing"]  # where to is not asked of what is not there


def test_scores_are_means_of_tags() -> None:
    right, wrong = Verdict(()), Verdict((("missing", "a"), ("missing", "b"), ("colour", "c")))
    found = scores(["counting", "colors", "colors", "colors", "new"], [right, right, wrong, wrong, wrong])
    third = pytest.approx(1 / 3)
    assert found["metrics"] == {
        "geneval_counting": 1.0, "geneval_colors": third, "geneval_new": 0.0, "geneval": pytest.approx(4 / 9),
    }  # fmt: skip
    assert found["failures"] == {
        "counting": {}, "colors": {"colour": 2, "missing": 2}, "new": {"colour": 1, "missing": 1},
    }  # fmt: skip
    assert found["pictures"] == {"counting": 1, "colors": 3, "new": 1}


def test_crops() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    assert (np.asarray(crop(picture, Found("a", 1, (10.2, 5.0, 19.5, 30)))) == pixels[5:30, 10:20]).all()
    assert crop(picture, Found("a", 1, (59.9, 39.9, 59.9, 39.9))).size == (1, 1)
    assert crop(picture, Found("a", 1, (-5, -5, 90, 90))).size == (60, 40)
    mask = np.zeros((40, 60), bool)
    mask[5:10, 10:12] = True
    masked = np.asarray(crop(picture, Found("a", 1, (10, 5, 14, 10), mask)))
    assert (masked[:, :2] == pixels[5:10, 10:12]).all()
    assert (masked[:, 2:] == GREY).all()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("geneval")
    text_models.crossflow(folder / "model")
    text_models.detector(folder / "detr")
    tiny.clip(folder / "clip")
    tiny.detector(folder / "dino")
    return folder


def test_colours_by_clip(here: Path) -> None:
    """The colour whose mean sentence is nearest, object by object as all at once."""
    clip = ClipScore(str(here / "clip"))
    reader = ClipColours(clip)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    objects = [at("dog", 20, 20), at("bench", 40, 20)]
    found = reader.read(picture, objects)
    assert found == [reader.read(picture, [one])[0] for one in objects]
    for one, colour in zip(objects, found, strict=True):
        seen = clip.pictures([crop(picture, one)])[0]
        near = [float(_unit(clip, name, one.label) @ seen) for name in COLOURS]
        assert COLOURS[int(np.argmax(near))] == colour
    assert reader.read(picture, []) == []


def _unit(clip: ClipScore, colour: str, label: str) -> Any:
    mean = clip.texts(
        [f"a photo of a {colour} {label}", f"a photo of a {colour}-colored {label}", f"a photo of a {colour} object"]
    ).mean(0)
    return mean / mean.norm()


def test_a_detector_of_closed_classes(here: Path) -> None:
    """DETR's boxes are those of its own post-processing; a class it lacks is refused; COCO's names are understood."""
    finder = open_finder(str(here / "detr"))
    finder.check(["bench", "tv remote", "Stop Sign"])
    with pytest.raises(ConfigError, match="no class for giraffe, sign"):
        finder.check(["giraffe", "dog", "sign"])
    pictures = [Image.fromarray(np.full((40, 60, 3), level, np.uint8)) for level in (30, 200)]
    first, second = finder.find(pictures, [["dog", "tv remote"], ["bench"]])
    assert {one.label for one in first} <= {"dog", "tv remote"}
    assert {one.label for one in second} <= {"bench"}
    assert first or second
    for objects in (first, second):
        assert [one.score for one in objects] == sorted((one.score for one in objects), reverse=True)


def test_the_projects_own_detector(here: Path) -> None:
    finder = open_finder(str(here / "dino"))
    assert isinstance(finder, GroundedFinder)
    finder.check(["anything"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    found = finder.find([Image.fromarray(one) for one in pixels], [["dog", "photo"], ["dog"]])
    assert [{one.label for one in objects} <= {"dog", "photo"} for objects in found] == [True, True]


def test_no_detector(here: Path) -> None:
    with pytest.raises(ConfigError, match="is a clip, no detector"):
        open_finder(str(here / "clip"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        open_finder(str(here / "nothing"))


def asked(here: Path, folder: Path, *more: str) -> list[str]:
    return [
        "geneval", str(here / "model"), "--prompts", str(tasks_file(folder)), "--detector", str(here / "detr"),
        "--steps", "1", "--out", str(folder / "out"), *more,
    ]  # fmt: skip


def test_the_command(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, in turn, draw; the first judges; again alone, nothing is drawn anew."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    chosen = ["--clip", str(here / "clip"), "--confidence", "0.05", "--counting", "0.06"]
    elsewhere = ["--detector", "/none", "--clip", "/none"]  # it opens neither
    assert main(asked(here, tmp_path, *chosen, *elsewhere)) == 0
    assert len(list(tmp_path.glob("out/images/000/*.png"))) == 8
    assert not (tmp_path / "out/geneval.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert main(asked(here, tmp_path, *chosen)) == 0
    result = json.loads((tmp_path / "out/geneval.json").read_text())
    assert result["pictures"] == {"single_object": 4, "counting": 4, "position": 4, "color_attr": 4}
    assert result["metrics"].keys() == {f"geneval_{tag}" for tag in result["pictures"]} | {"geneval"}
    assert len(result["per_picture"]) == 16
    assert len({line["seed"] for line in result["per_picture"]}) == 16
    wrong = sum(not line["correct"] for line in result["per_picture"])
    assert wrong == sum(bool(line["reasons"]) for line in result["per_picture"])
    assert "geneval " in capsys.readouterr().out
    assert (tmp_path / "out/geneval.html").read_text().count("<svg") == 16
    monkeypatch.delenv("WORLD_SIZE")
    assert main(asked(here, tmp_path, *chosen)) == 0
    assert json.loads((tmp_path / "out/geneval.json").read_text()) == result


def test_what_the_command_refuses(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(asked(here, tmp_path)) == 2
    assert "no CLIP was given" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "it is said before anything is drawn"
    assert main(asked(here, tmp_path, "--each", "0", "--clip", str(here / "clip"))) == 2
    assert "0 pictures a prompt" in capsys.readouterr().err
