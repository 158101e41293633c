import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from datamodules import CIFAR10DataModule
from lightning_modules import ImageClassifier
from overfitting_lab.runs import Run
from tests.conftest import CLASSES, FinishedRun, Flags, Script, write_images


def result(out: str) -> str:
    (line,) = re.findall(r"^test  .*$", out, re.MULTILINE)
    return str(line)


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_repeats_the_runs_result_and_leaves_its_folder(
    run_script: Script, finished_run: FinishedRun, tmp_path: Path
) -> None:
    before = contents(finished_run.folder)
    outcome = run_script("test", finished_run.folder)
    assert outcome.status == 0, outcome.err
    assert result(outcome.out) == result(finished_run.out)
    summary = Run(finished_run.folder).summary
    assert summary.test is not None
    assert f"accuracy {summary.test.acc:.2%}" in outcome.out
    assert "changed" not in outcome.out
    assert contents(finished_run.folder) == before
    assert list(tmp_path.iterdir()) == []


def test_takes_another_checkpoint_and_other_settings(run_script: Script, finished_run: FinishedRun) -> None:
    last = finished_run.folder / "checkpoints" / "last.ckpt"  # the fixture's worst
    outcome = run_script("test", finished_run.folder, "--ckpt_path", last, "--data.batch_size=7")
    assert outcome.status == 0, outcome.err
    assert "on 45 test images of tiny" in outcome.out
    assert result(outcome.out) != result(finished_run.out)
    assert "changed    data.batch_size: 20 -> 7\n" in outcome.out


def test_other_images_are_noted(
    run_script: Script, finished_run: FinishedRun, image_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(image_folder, tmp_path / "other"))
    next((other / "test").rglob("*.png")).unlink()
    outcome = run_script("test", finished_run.folder, f"--data.root={other}")
    assert outcome.status == 0, outcome.err
    assert "note       other has other images than those that the run was tested on\n" in outcome.out


def test_images_of_other_classes_are_refused_before_their_sizes(
    run_script: Script, finished_run: FinishedRun, tmp_path: Path
) -> None:
    other = write_images(tmp_path / "other", 6, 6)
    for split in ("train", "test"):
        (other / split / CLASSES[0]).rename(other / split / "zebra")
    outcome = run_script("test", finished_run.folder, f"--data.root={other}")
    assert outcome.status == 1
    assert re.search(rf"error: \S+ tells apart .*{CLASSES[0]}.*; other has .*zebra", outcome.err), outcome.err


def test_a_folder_does_not_replace_synthetic_images_in_silence(
    run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    run = tmp_path / "lightning_logs/overfit/version_0"
    config = (run / "config.yaml").read_text()
    assert "source: folder" in config
    (run / "config.yaml").write_text(config.replace("source: folder", "source: synthetic"))
    outcome = run_script("test", run, "--data.root=photos")
    assert outcome.status == 2
    assert "which come from no folder; to use your own images, add --data.source folder" in outcome.err
    assert not (tmp_path / "photos").exists()


def test_the_mirror_image_is_averaged(run_script: Script, finished_run: FinishedRun) -> None:
    outcome = run_script("test", finished_run.folder, "--tta", "flip")
    assert outcome.status == 0, outcome.err
    run = Run(finished_run.folder)
    settings = {name.removeprefix("data."): value for name, value in run.settings.items() if name.startswith("data.")}
    data = CIFAR10DataModule(**settings)
    data.prepare_data()
    data.setup("test")
    pixels = data.images.test_images.permute(0, 3, 1, 2)
    network = ImageClassifier.from_checkpoint(run.best_checkpoint)
    with torch.inference_mode():
        logits = (network(data.network_input(pixels)) + network(data.network_input(pixels.flip(3)))) / 2
    loss = float(cross_entropy(logits, data.images.test_labels))
    said = re.search(r"loss ([\d.]+) on 45", outcome.out)
    assert said
    assert float(said[1]) == pytest.approx(loss, abs=2e-4)


def test_several_runs_are_tested_together(run_script: Script, finished_run: FinishedRun, tmp_path: Path) -> None:
    other = Path(shutil.copytree(finished_run.folder, tmp_path / "other"))
    copied = run_script("test", finished_run.folder, other)
    assert copied.status == 1
    assert f"{other} has the same answers as {finished_run.folder}: a copy adds nothing; leave it out" in copied.err
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**summary, "seed": 1}))
    outcome = run_script("test", finished_run.folder, other)
    assert outcome.status == 0, outcome.err
    assert len(re.findall(r"^test  .*$", outcome.out, re.MULTILINE)) == 2
    assert "together   2 runs, answering by the mean of their probabilities: test accuracy " in outcome.out
    assert "Two of them agree on 100% of the images." in outcome.out
    assert run_script("test", other, other, "--ckpt_path", "any").status == 2
