import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from overfitting_lab.runs import Run, RunError
from tests.conftest import CLASSES, Flags, Outcome, Script, summary_of

NAMES = (b"caf\xe9", b"a\nb\x1b[31m", b"[b]Ba$$^ <i>&%s")  # no text; controls of a terminal; marks of other languages
SHOWN = [r"a\nb\x1b[31m", r"caf\xe9", "[b]Ba$$^ <i>&%s"]


def folder(root: Path, name: bytes) -> Path:
    return Path(os.fsdecode(os.path.join(os.fsencode(root), name)))  # noqa: PTH118


def is_plain(outcome: Outcome) -> bool:
    text = outcome.out + outcome.err
    return outcome.status == 0 and "\x1b[31m" not in text and "note " not in text and r"\udc" not in text


@pytest.mark.thorough
def test_names_that_are_no_text_are_shown_in_every_figure_file_and_page(
    run_script: Script, quick: Flags, image_folder: Path, tmp_path: Path
) -> None:
    data = folder(tmp_path, "dé $x^ [b] x: y\n".encode())
    shutil.copytree(image_folder, data)
    for split in ("train", "test"):
        for before, after in zip(CLASSES, NAMES, strict=True):
            (data / split / before).rename(folder(data / split, after))
    flags = ("--config", "overfit", *quick, "--trainer.max_epochs=1", f"--data.root={data}")
    root = folder(tmp_path, "runs é\n[b] $".encode())
    outcomes = [
        run_script("fit", *flags, f"--trainer.default_root_dir={root}", f"--seed_everything={n}") for n in (0, 1)
    ]
    runs = [root / "lightning_logs" / "overfit" / f"version_{n}" for n in (0, 1)]
    assert all(map(is_plain, outcomes)), outcomes
    assert summary_of(runs[0])["data"]["classes"] == sorted(SHOWN)
    assert summary_of(runs[0])["data"]["name"] == r"dé $x^ [b] x: y\n"
    assert Run(runs[0]).settings["data.root"] == str(data)

    image = folder(tmp_path, b"\xe9\n[b]\x1b[31m.png")
    Image.new("RGB", (32, 32)).save(image)
    outcome = run_script("predict", runs[0], image, "--output", folder(tmp_path, b"\xe9.png"))
    assert is_plain(outcome), outcome
    assert r"\xe9\n[b]\x1b[31m.png" in outcome.out.replace("\n", "")
    assert folder(tmp_path, b"\xe9.png").is_file()

    outcome = run_script("compare", *runs, "--output", folder(tmp_path, b"report \xe9"))
    assert is_plain(outcome), outcome
    page = (folder(tmp_path, b"report \xe9") / "report.html").read_text(encoding="utf-8")
    assert r"caf\xe9" in page
    assert "[b]Ba$$^ &lt;i&gt;&amp;%s" in page

    outcome = run_script("fit", "--resume", runs[0], "--trainer.max_epochs=2")
    assert is_plain(outcome), outcome


@pytest.mark.parametrize("flag", ["--data.root", "--trainer.default_root_dir"])
def test_a_folder_whose_name_is_not_text_is_refused(flag: str, run_script: Script, quick: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, f"{flag}=x \udce9")
    assert outcome.status == 2
    assert r"x \xe9" in outcome.err
    assert "its name is not text: rename it, or set PYTHONUTF8=1" in outcome.err


def test_the_message_about_a_file_does_not_control_the_terminal(
    run_script: Script, finished_run: Any, tmp_path: Path
) -> None:
    outcome = run_script("predict", finished_run.folder, folder(tmp_path, b"none \xe9\x1b[31m.png"))
    assert outcome.status == 1
    assert r"none \xe9\x1b[31m.png: no such file" in outcome.err


def test_commands_that_a_run_prints_can_be_pasted(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    root = tmp_path / "my runs"
    flags = (*quick, "--trainer.max_epochs=1", f"--trainer.default_root_dir={root}")
    outcome = run_script("fit", "--config=overfit", *flags)
    assert f"tensorboard --logdir '{root}/lightning_logs' --host" in outcome.out
    run = Run(root / "lightning_logs" / "overfit" / "version_0")
    run.files.best.unlink()
    with pytest.raises(RunError, match=re.escape(f"python scripts/fit.py --config '{run.files.config}'")):
        _ = run.best_checkpoint
