import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_modules import AlexNet
from tests.conftest import CLASSES, FinishedRun, Outcome

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of overfit.yaml


def test_names_classes_with_their_probabilities_in_the_order_of_the_images(
    run_script: Callable[..., Outcome], finished_run: FinishedRun, image_folder: Path, tmp_path: Path
) -> None:
    names = ["cat/00002.png", "bird/00001.png", "airplane/00000.png", "cat/00005.png"]
    for name in names:
        shutil.copytree(image_folder / "test" / Path(name).parent, tmp_path / Path(name).parent, dirs_exist_ok=True)
    outcome = run_script("predict", finished_run.folder, *names)
    assert outcome.status == 0, outcome.err

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
