"""Every golden case that lies with the tests passes, and the runner can fail."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.parity.__main__ import OWN, main
from tests.parity.case import Case
from tests.parity.runner import cases, judge


@pytest.mark.parametrize("case", cases([OWN]), ids=lambda case: case.name)
def test_golden(case: Case) -> None:
    verdict = judge(case)
    assert verdict.passed, str(verdict)


def test_a_changed_output_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "gligen"
    folder.mkdir()
    shutil.copy(OWN / "gligen/fourier_a.json", folder)
    tensors = load_file(OWN / "gligen/fourier_a.safetensors")
    tensors["out.emb8"][0, 0, 0] += 1e-3
    save_file(tensors, folder / "fourier_a.safetensors")
    assert main([str(folder)]) == 1
    assert capsys.readouterr().out.startswith("FAIL gligen/fourier_a emb8: max_abs=0.001")


def test_an_unknown_kind_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gligen").mkdir()
    (tmp_path / "gligen" / "sorcery_a.json").write_text(json.dumps({"tolerance": "atol 1e-5, rtol 1e-5"}))
    assert main([str(tmp_path)]) == 1
    assert "unknown kind gligen/sorcery" in capsys.readouterr().out


def test_nothing_to_run_fails(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "absent")]) == 1
