import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from lightning_modules import AlexNet
from overfitting_lab.runs import Run
from tests.conftest import CLASSES, FinishedRun, Script
from tests.scripts.test_errors import check_one_message

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of overfit.yaml


@pytest.mark.pictures
def test_names_classes_with_their_probabilities_in_the_order_of_the_images(
    run_script: Script, finished_run: FinishedRun, image_folder: Path, tmp_path: Path
) -> None:
    names = ["cat/00002.png", "bird/00001.png", "airplane/00000.png", "cat/00005.png"]
    for name in names:
        shutil.copytree(image_folder / "test" / Path(name).parent, tmp_path / Path(name).parent, dirs_exist_ok=True)
    outcome = run_script("predict", finished_run.folder, *names)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "drawn to prediction.png"
    test = Run(finished_run.folder).summary.test
    assert test is not None
    assert (
        f"On 45 test images of tiny, this network's accuracy was {test.acc:.1%}, with a mean confidence of"
        in outcome.out
    )
    assert f"(calibration error {test.calibration_error:.3f})" in outcome.out
    assert "on an image unlike the training images, even a confident answer may be wrong" in outcome.out

    network = AlexNet(num_classes=3, hidden_features=16, dropout=0).network
    network.load_state_dict(torch.load(finished_run.folder / "weights.pth", weights_only=True))
    pixels = np.stack([np.asarray(Image.open(name)) for name in names])
    images = torch.tensor((pixels / 255 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
    expected = network(images).softmax(dim=1).tolist()

    rows = [line.split("│")[1:-1] for line in outcome.out.splitlines() if line.startswith("│")]
    assert [row[0].strip() for row in rows] == names
    for row, probabilities in zip(rows, expected, strict=True):
        said = [re.fullmatch(r" *(\w+) ([\d.]+)% *", cell) for cell in row[1:]]
        shares = {match[1]: float(match[2]) / 100 for match in said if match}
        assert shares == pytest.approx(dict(zip(CLASSES, probabilities, strict=True)), abs=0.0006)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert [row[1].split()[0] for row in rows] == ["cat", "bird", "airplane", "cat"], "the fixture's run learns these"


def test_images_with_long_names_are_told_apart(
    run_script: Script, finished_run: FinishedRun, image_folder: Path, tmp_path: Path
) -> None:
    deep = tmp_path / ("long" * 20) / ("longer" * 20)
    deep.mkdir(parents=True)
    for name in ("one.png", "other.png"):
        shutil.copy(next(image_folder.rglob("*.png")), deep / name)
    outcome = run_script("predict", finished_run.folder, deep / "one.png", deep / "other.png")
    said = "".join(line.split("│")[1].strip() for line in table(outcome.out))
    assert "/one.png" in said
    assert "/other.png" in said


def table(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("│")]


@pytest.mark.parametrize("name", ["model.pth", "model.pt2", "model.onnx"])
def test_an_exported_file_gives_the_runs_answer(
    name: str, run_script: Script, finished_run: FinishedRun, exported_run: FinishedRun, image_folder: Path
) -> None:
    images = [image_folder / "test" / "cat" / "00002.png", image_folder / "test" / "bird" / "00001.png"]
    of_run = run_script("predict", finished_run.folder, *images)
    of_file = run_script("predict", exported_run.folder / "export" / name, *images, "--output", "other/answer.png")
    assert (of_run.status, of_run.err, of_file.status, of_file.err) == (0, "", 0, "")
    assert len(table(of_run.out)) == 2
    assert table(of_file.out) == table(of_run.out)
    assert of_file.out.splitlines()[-3:-1] == of_run.out.splitlines()[-3:-1], "how far to trust the network"
    assert of_file.out.splitlines()[-1] == "drawn to other/answer.png"
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in ("prediction.png", "other/answer.png")]
    below_the_title = slice(70, None)
    assert (pictures[0][below_the_title] == pictures[1][below_the_title]).all()


@pytest.mark.pictures
def test_answers_are_drawn(run_script: Script, finished_run: FinishedRun, image_folder: Path, tmp_path: Path) -> None:
    colour = (250, 0, 250)  # of no bar
    Image.new("RGB", (40, 40), colour).save(tmp_path / "pink.png")
    images = [tmp_path / "pink.png"] * 3
    outcome = run_script("predict", finished_run.folder, *images)
    assert outcome.status == 0, outcome.err
    with Image.open(tmp_path / "prediction.png") as file:
        assert file.format == "PNG"
        picture = np.asarray(file.convert("RGB"))
    assert picture.shape == (round(120 * (0.5 + 3 * 1.1)), 840, 3)
    pink = (picture == colour).all(axis=2)
    starts = np.flatnonzero(np.diff(pink[:, pink.any(axis=0)].any(axis=1).astype(int)) == 1)
    assert len(starts) == 3, "three pictures, one below the other"
    rows, columns = np.nonzero(pink)
    assert rows.size / 3 > 80 * 80
    bars = (picture == (0x00, 0x72, 0xB2)).all(axis=2)
    assert bars.any()
    assert np.nonzero(bars)[1].min() > columns.max(), "the bars stand beside the pictures"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pink.png", "prediction.png"]
    again = run_script("predict", finished_run.folder, images[0])
    assert again.out.splitlines()[-1] == "drawn to prediction-2.png", "no picture is replaced"
    again = run_script("predict", finished_run.folder, images[0], "--output=prediction.png")
    assert again.out.splitlines()[-1] == "replaced prediction.png"


@pytest.mark.thorough
@pytest.mark.pictures
def test_of_many_images_the_first_are_drawn(
    run_script: Script, finished_run: FinishedRun, image_folder: Path, tmp_path: Path
) -> None:
    image = image_folder / "test" / "cat" / "00002.png"
    outcome = run_script("predict", finished_run.folder, *[image] * 51)
    assert outcome.status == 0, outcome.err
    assert len(table(outcome.out)) == 51
    assert outcome.out.splitlines()[-1] == "drawn to prediction.png (the first 50 of 51)"
    with Image.open(tmp_path / "prediction.png") as file:
        assert file.height == round(120 * (0.5 + 50 * 1.1))


@pytest.fixture(scope="module")
def unusable(exported_run: FinishedRun, finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that predict.py cannot use."""
    root, export = tmp_path_factory.mktemp("unusable"), exported_run.folder / "export"
    for kind in ("pth", "pt2", "onnx"):
        whole = (export / f"model.{kind}").read_bytes()
        (root / f"cut.{kind}").write_bytes(whole[: len(whole) // 2])
        (root / f"text.{kind}").write_text("no network")
        (root / f"empty.{kind}").touch()
    changed = bytearray((export / "model.pt2").read_bytes())
    changed[len(changed) // 2] ^= 0xFF
    (root / "changed.pt2").write_bytes(changed)
    shutil.copy(finished_run.folder / "weights.pth", root / "weights.pth")
    shutil.copy(finished_run.folder / "checkpoints" / "best.ckpt", root / "checkpoint.pth")
    program = torch.export.export(torch.nn.Flatten(), (torch.zeros(2, 3),))
    torch.export.save(program, root / "foreign.pt2")
    torch.save({"classes": ["cat"]}, root / "archive.pt2")
    model = onnx.load(export / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, root / "foreign.onnx")
    return root


@pytest.mark.parametrize(
    "name",
    [
        *(f"{name}.{kind}" for name in ("cut", "text", "empty") for kind in ("pth", "pt2", "onnx")),
        *("changed.pt2", "weights.pth", "checkpoint.pth", "foreign.pt2", "archive.pt2", "foreign.onnx"),
    ],
)
def test_a_file_that_is_damaged_or_foreign_is_refused(
    name: str, run_script: Script, unusable: Path, image_folder: Path, tmp_path: Path
) -> None:
    outcome = run_script("predict", unusable / name, image_folder / "test" / "cat" / "00002.png")
    check_one_message(outcome, 1)
    assert f"{name} is damaged, or was not written by scripts/export.py" in outcome.err
    assert "python scripts/export.py RUN" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_missing_is_named(run_script: Script, image_folder: Path, tmp_path: Path) -> None:
    outcome = run_script("predict", "none.onnx", image_folder / "test" / "cat" / "00002.png")
    check_one_message(outcome, 1)
    assert "none.onnx: no such file; make it from a run: python scripts/export.py RUN" in outcome.err


def test_onnx_without_the_extra_names_it(
    run_script: Script, exported_run: FinishedRun, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    outcome = run_script(
        "predict", exported_run.folder / "export" / "model.onnx", image_folder / "test" / "cat" / "00002.png"
    )
    check_one_message(outcome, 1)
    assert "pip install -e '.[onnx]'" in outcome.err


def test_a_pattern_that_no_shell_expands_names_files_and_transparent_images_are_laid_on_white(
    run_script: Script, finished_run: FinishedRun, tmp_path: Path
) -> None:
    for number in (10, 2):
        Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / f"{number}.png")
    Image.new("RGB", (32, 32), "white").save(tmp_path / "[a].png")
    outcome = run_script("predict", finished_run.folder, "*.png", "[a].png", "./1?.png")
    assert (outcome.status, outcome.err) == (0, "")
    rows = [line.split("│")[1:-1] for line in table(outcome.out)]
    assert [Path(row[0].strip()).name for row in rows] == ["2.png", "10.png", "[a].png", "[a].png", "10.png"]
    assert all(row[1:] == rows[0][1:] for row in rows), "what is transparent is white"
    assert "3 of 5 images are transparent in part: they are laid on white" in outcome.out
    outcome = run_script("predict", finished_run.folder, "*.jpg", "2.png")
    check_one_message(outcome, 1)
    assert "*.jpg: no such file" in outcome.err


def test_all_files_that_are_no_images_are_named_at_once(
    run_script: Script, finished_run: FinishedRun, tmp_path: Path
) -> None:
    for name in ("one.png", "two.txt"):
        (tmp_path / name).write_text("no image")
    outcome = run_script("predict", finished_run.folder, "one.png", "two.txt")
    check_one_message(outcome, 1)
    assert "2 files cannot be read as images: one.png, two.txt; the first: it begins with b'no image'" in outcome.err


def test_the_drawing_is_a_png(run_script: Script, finished_run: FinishedRun, image_folder: Path) -> None:
    image = next(image_folder.rglob("*.png"))
    outcome = run_script("predict", finished_run.folder, image, "--output=answer.jpg")
    assert outcome.status == 2
    assert "--output answer.jpg: the drawing is a PNG; let its name end in .png" in outcome.err
