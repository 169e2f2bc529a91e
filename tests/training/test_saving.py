"""When saves begin and what they leave behind: a kill at any moment costs at most one interval, and no disk."""

import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from atelier.data.bad_samples import BadSample
from atelier.errors import TrainingError
from atelier.storage import s3
from atelier.training import checkpoint as checkpoints
from atelier.training import engine as engines
from atelier.training.callbacks import Callback
from atelier.training.callbacks.checkpoint import Interval
from atelier.training.callbacks.metrics_log import METRICS, read_lines
from atelier.training.engine import read_summary
from atelier.training.parts import part_name
from atelier.training.run import TrainingRun
from atelier.training.series import LocalSeries, S3Series
from tests.training.test_checkpoint import make, newest
from tests.training.toy import StopAt, ToyDataset, ToyObjective

EVERY: dict[str, Any] = {"steps": 40, "log_every": 1, "warmup_steps": 0, "micro_batch": None}


class SlowSeries(LocalSeries):
    """A disk that takes its time for a file."""

    takes = 0.05

    def deliver(self, step: int, rank: int, entries: list[dict[str, Any]]) -> None:
        time.sleep(self.takes)
        super().deliver(step, rank, entries)


class Uncovered(Callback):
    """After each step: how many a kill would cost now, seen from outside; and when saves began."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.began: list[int] = []

    def on_step(self, run: TrainingRun) -> None:
        self.steps.append(run.step - (LocalSeries(run.folder / engines.SCRATCH).steps() or [0])[0])

    def on_save(self, run: TrainingRun) -> None:
        self.began.append(run.step)


@pytest.mark.parametrize(("interval", "takes"), [(1, 0.0), (2, 0.05), (5, 0.05), (12, 0.02)])
def test_no_more_than_an_interval_is_ever_uncovered(
    one_rank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int, takes: float
) -> None:
    """Saves that take as long as many steps, one that takes longer than an interval too."""
    monkeypatch.setattr(engines, "open_series", lambda place, work: SlowSeries(Path(place)))
    monkeypatch.setattr(SlowSeries, "takes", takes)
    seen = Uncovered()
    one_rank(tmp_path, ToyObjective(delay=0.002), callbacks=[seen], **EVERY | {"checkpoint_every_steps": interval})
    assert len(seen.steps) == 40
    assert max(seen.steps) <= interval
    assert len(seen.began) >= 40 // interval


def test_quick_saves_are_no_more_often_than_they_must(one_rank: Any, tmp_path: Path) -> None:
    """The first comes after half an interval, when nothing is known yet; then one an interval, less a step or a few."""
    seen = Uncovered()
    one_rank(tmp_path, ToyObjective(delay=0.01), callbacks=[seen], **EVERY | {"checkpoint_every_steps": 20})
    first, second, *_ = seen.began
    assert first == 10
    assert 20 <= second <= 28
    assert max(seen.steps) <= 20


@pytest.mark.parametrize("seed", range(20))
def test_the_interval_holds_whatever_steps_and_saves_take(seed: int) -> None:
    """The clockwork alone, in seconds: no step begins when as much as may be lost is uncovered."""
    chance = random.Random(seed)
    limit, now, covered, begun = 10.0, 0.0, 0.0, 0.0
    interval, whole_at = Interval(limit, now), None
    waited = saves = 0.0
    for _ in range(2000):
        now += chance.uniform(0.01, 1.0)
        if whole_at is not None and whole_at <= now:
            interval.complete(now)
            covered, whole_at = begun, None
        if whole_at is None and interval.due(now):
            interval.begin(now)
            begun, whole_at = now, now + chance.uniform(0.1, (1.0, 4.0, 25.0)[seed % 3])
            saves += 1
        if interval.over(now):
            assert whole_at is not None, "nothing to wait for"
            waited += max(whole_at - now, 0.0)
            now = max(whole_at, now)
            interval.complete(now)
            covered, whole_at = begun, None
        # After a wait for a save that took longer than the interval, what is uncovered is no computing.
        assert now - covered < limit or seed % 3 == 2
    if seed % 3 == 0:
        assert waited < 0.02 * now, "a save of a tenth of an interval is not waited for"
        assert saves < 1.35 * now / limit


def test_waiting_for_checkpoints_is_told_once(
    one_rank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "open_series", lambda place, work: SlowSeries(Path(place)))
    monkeypatch.setattr(SlowSeries, "takes", 0.6)
    one_rank(tmp_path, **EVERY | {"steps": 10, "checkpoint_every_steps": 2})
    warnings = [line for line in capsys.readouterr().err.splitlines() if "take too long" in line]
    assert len(warnings) == 1
    for part in ("checkpoint_every_steps=2: that of step", "the training waited", "set checkpoint_every_steps to"):
        assert part in warnings[0]


def test_what_killed_saves_left_is_removed_by_the_next(one_rank: Any, tmp_path: Path) -> None:
    """They were of other steps: a resumed training need not come by the same ones."""
    folder = tmp_path / engines.SCRATCH
    for name in (".step-00000003.tmp", ".step-00000001.doomed.tmp"):
        (folder / name).mkdir(parents=True)
        (folder / name / "rank-00000.safetensors").write_bytes(b"half of one")
    one_rank(tmp_path, callbacks=[StopAt(4)], **EVERY | {"checkpoint_every_steps": None})
    assert [path.name for path in folder.iterdir()] == ["step-00000004"]


def test_what_killed_saves_left_on_s3_is_removed_too(s3_bucket: str, tmp_path: Path) -> None:
    place = f"{s3_bucket}/checkpoints"
    series = S3Series(place, tmp_path)
    left = {"step-00000003/rank-00000.safetensors", "step-00000003/rank-00000.safetensors.entry.json"}
    kept = {"step-00000006/manifest.json", "step-00000006/rank-00000.safetensors", "notes/of-another-kind"}
    for name in left | kept:
        s3.write_bytes(f"{place}/{name}", b"x")
    bucket, key = s3.split(f"{place}/step-00000004/rank-00000.safetensors")
    s3.client().create_multipart_upload(Bucket=bucket, Key=key)
    _, other = s3.split(f"{s3_bucket}/checkpoints-of-another/part")
    s3.client().create_multipart_upload(Bucket=bucket, Key=other)
    series.sweep()
    assert set(s3.sizes(place)) == kept
    try:
        uploads = s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    except Exception:  # s3rver knows no such list
        return
    assert [upload["Key"] for upload in uploads] == [other]


def test_the_end_of_a_shorter_training_stays_until_the_longer_ones_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it makes room for the new one, it has one of both."""
    folder = make(tmp_path, 10)

    def killed(*arguments: Any, **settings: Any) -> None:
        assert checkpoints.verified(folder) is not None, "killed here, neither would be left"

    scratch = checkpoints.scratch_of(folder)
    make(tmp_path, 20).rename(scratch)
    manifest = checkpoints.read(scratch)
    monkeypatch.setattr("atelier.training.checkpoint.shutil.rmtree", killed)
    checkpoints.publish(folder, checkpoints.manifest_of(20, manifest.files, {}))
    assert checkpoints.read(folder).step == 20


def test_a_lengthened_training_that_is_interrupted_goes_on_from_where_it_was(one_rank: Any, tmp_path: Path) -> None:
    constant = EVERY | {"schedule": "constant", "checkpoint_every_steps": None}
    one_rank(tmp_path / "cut", **constant | {"steps": 4})
    assert one_rank(tmp_path / "cut", callbacks=[StopAt(9)], **constant | {"steps": 12}).step == 9
    seen = Uncovered()
    one_rank(tmp_path / "cut", callbacks=[seen], **constant | {"steps": 12})
    assert len(seen.steps) == 3, "from step 9, not from the shorter one's end"
    assert newest(tmp_path / "cut" / engines.SCRATCH) is None


class Breaks(ToyObjective):
    """The gradient is no number from some step on, while the loss is still one."""

    def loss(self, model: Any, batch: Any, draws: Any, progress: float) -> dict[str, Any]:
        found = super().loss(model, batch, draws, progress)
        if progress >= 0.5:
            found["loss"] = found["loss"] + (model.gate * 0.0).sqrt()  # 0, and its derivative 0 · infinity
        return found


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_weights_that_are_no_numbers_push_no_good_checkpoint_out(
    one_rank: Any, tmp_path: Path, zero_stage: int
) -> None:
    """No log line comes in time to notice it."""
    settings = {"zero_stage": zero_stage, "steps": 20, "log_every": 20, "checkpoint_every_steps": 2}
    with pytest.raises(TrainingError, match="not finite at step"):
        one_rank(tmp_path, Breaks(), **EVERY | settings | {"keep_checkpoints": 1})
    (step,) = LocalSeries(tmp_path / engines.SCRATCH).steps()
    saved = load_file(tmp_path / engines.SCRATCH / checkpoints.folder_name(step) / part_name(0))
    assert all(bool(value.isfinite().all()) for value in saved.values())


def test_a_log_that_ends_too_early_comes_from_the_checkpoint(one_rank: Any, tmp_path: Path) -> None:
    """This machine was there first, another one went on, now it goes on here again."""
    one_rank(tmp_path / "first", callbacks=[StopAt(3)], **EVERY)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    one_rank(tmp_path / "second", callbacks=[StopAt(9)], **EVERY)
    shutil.rmtree(tmp_path / "first" / engines.SCRATCH)
    shutil.copytree(tmp_path / "second" / engines.SCRATCH, tmp_path / "first" / engines.SCRATCH)
    one_rank(tmp_path / "first", callbacks=[StopAt(12)], **EVERY)
    assert [line["step"] for line in read_lines(tmp_path / "first" / METRICS)] == list(range(1, 13))


def test_bad_samples_are_counted_once_whatever_was_resumed(
    one_rank: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of 200, met again in each epoch; the first part of the training ended after they were met."""

    class Flawed(ToyDataset):
        def sample(self, index: int) -> dict[str, Any]:
            if index in (3, 117):
                raise BadSample("a.tar", f"k{index}", "checksum")
            return super().sample(index)

    settings = EVERY | {"checkpoint_every_steps": None, "schedule": "constant"}
    one_rank(tmp_path / "cut", dataset=Flawed(), callbacks=[StopAt(20)], **settings)
    # Later only one of them is left to be met.
    one_rank(tmp_path / "cut", dataset=Flawed(), **settings | {"steps": 22})
    assert read_summary(tmp_path / "cut")["quarantined"] == {"checksum": 2}
    assert capsys.readouterr().err.count("quarantined: a.tar: sample k3 ") <= 2


def test_killed_when_only_tidying_up_was_left(one_rank: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end state is there: then the summary is there too, and the next try tidies up."""
    settings = EVERY | {"steps": 6, "checkpoint_every_steps": 2}
    with monkeypatch.context() as patch:
        save = engines.Saver.save_now

        def killed(*arguments: Any) -> None:
            save(*arguments)
            raise KeyboardInterrupt

        patch.setattr(engines.Saver, "save_now", killed)
        with pytest.raises(KeyboardInterrupt):
            one_rank(tmp_path, **settings)
    assert LocalSeries(tmp_path / engines.SCRATCH).steps()
    assert one_rank(tmp_path, **settings).outcome == "complete"
    assert read_summary(tmp_path)["steps"] == 6
    assert not (tmp_path / engines.SCRATCH).exists()
