"""Where a result comes from: commit and command."""

import importlib.util
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from overfitting_lab.runs import provenance


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        (["--data.root=/home/me/x", "--seeds", "3"], ["--data.root=FOLDER", "--seeds", "3"]),
        (["--data.root", "/home/me/x"], ["--data.root", "FOLDER"]),
        (["--data.root"], ["--data.root"]),
        (
            ["--experiment", "two words", '--factor=a=1,{"b": 2}'],
            ["--experiment", "two words", '--factor=a=1,{"b": 2}'],
        ),
        (["--storage=postgresql://me:p@ss@host/db"], ["--storage=postgresql://me:PASSWORD@host/db"]),
        (["--storage=postgresql://host/db?password=x&a=1"], ["--storage=postgresql://host/db?password=PASSWORD&a=1"]),
        (["--storage=sqlite:///trials.db"], ["--storage=sqlite:///trials.db"]),
    ],
)
def test_a_command_can_be_typed_again(typed: list[str], shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/anywhere/scripts/ablate.py", *typed])
    assert shlex.split(provenance.command_line()) == ["python", "scripts/ablate.py", *shown]


def copied(folder: Path) -> ModuleType:
    """Import a copy of the module."""
    copy = Path(shutil.copy(str(provenance.__file__), folder))
    spec = importlib.util.spec_from_file_location("copied_provenance", copy)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_commit_is_of_the_repository_that_holds_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        author = ("-c", "user.name=me", "-c", "user.email=me@here")
        return subprocess.check_output(["git", *author, *arguments], cwd=tmp_path, encoding="utf-8").strip()

    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    module = copied(unpacked)
    assert module.git_commit() == ""
    git("init", "--quiet")
    (tmp_path / "homework.txt").touch()
    git("add", "homework.txt")
    git("commit", "--quiet", "-m", "Homework")
    assert module.git_commit() == "", "this repository only surrounds the project"
    git("add", ".")
    git("commit", "--quiet", "-m", "The project as a part of it")
    assert module.git_commit() == git("rev-parse", "HEAD")
    (unpacked / "provenance.py").write_text("changed")
    assert module.git_commit() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert module.git_commit().endswith("-dirty"), "as in a container whose files are somebody else's"
