"""The code digest follows imports, and only what could change an output changes it."""

import sys
from pathlib import Path

import pytest

from atelier.steps import code_digest as subject
from atelier.steps import code_facts


def test_reaches_imports_inside_functions_and_leaves_out_rooms_that_only_move_bytes() -> None:
    found = subject.reachable(("atelier.steps.report",))
    assert "atelier.steps.report" in found
    assert "atelier.evaluation.figures" in found
    assert "atelier.data.safe_npy" in found, "imported inside a function"
    assert not any(name.startswith(("atelier.storage", "atelier.tracking", "atelier.progress")) for name in found)
    assert "atelier.storage.digest" in subject.reachable(
        ("atelier.steps.report",), named=("atelier.storage.digest",)
    ) or ("atelier.storage.digest" in subject.reachable(("atelier.steps.report", "atelier.storage.digest")))


def test_relative_imports_and_packages(tmp_path: Path) -> None:
    module = tmp_path / "one.py"
    module.write_text("from . import errors\nfrom .storage.digest import sha256_json\nimport os\n")
    assert set(subject._imports(module, "atelier.one")) == {
        "atelier.errors",
        "atelier.storage",
        "atelier.storage.digest",
    }


def test_comments_docstrings_and_formatting_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "probe_step.py"

    def digest(source: str) -> str:
        module.write_text(source)
        return subject.code_digest("probe_step")

    first = digest("def run(x):\n    return x + 1\n")
    assert digest('"""Docs."""\n\ndef run( x ):\n    """Docs."""\n    # why\n    return (x + 1)\n') == first
    assert digest("def run(x):\n    return x + 2\n") != first
    sys.modules.pop("probe_step", None)


def test_what_was_parsed_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".atelier").mkdir()
    monkeypatch.setenv("ATELIER_PROJECT", str(tmp_path))
    monkeypatch.setattr(code_facts, "_known", None)
    source = tmp_path / "probe.py"
    source.write_text("import atelier.errors\n")
    first = code_facts.facts(source)
    code_facts.remember()
    assert (tmp_path / ".atelier" / "code.json").exists()

    monkeypatch.setattr(code_facts, "_known", None)
    with monkeypatch.context() as patch:
        patch.setattr(code_facts, "_parse", None)
        assert code_facts.facts(source) == first, "another process need not parse it"
    source.write_text("import atelier.errors, os\n")
    assert code_facts.facts(source) != first

    (tmp_path / ".atelier" / "code.json").write_text("{damaged")
    monkeypatch.setattr(code_facts, "_known", None)
    source.write_text("import atelier.errors\n")
    assert code_facts.facts(source) == first
    monkeypatch.setattr(code_facts, "_known", None)


def test_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        subject.code_digest("atelier.steps.source", ("atelier.recipes.no_such_recipe",))
