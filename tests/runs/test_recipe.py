from pathlib import Path

import numpy as np
import pytest
import yaml

from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.runs import Run
from overfitting_lab.runs.recipe import CIRCUMSTANTIAL, DECISIVE, LATER, decides, flat, recipe
from tests.made_runs import make_run


def test_every_setting_of_fit_is_classified(tiny: tuple[str, ...]) -> None:
    cli = ExperimentCLI(["--config=overfit", *tiny], keep=False)
    settings = {name for name in vars(cli.config.as_flat()) if not name.startswith("model.")}
    assert settings | {"model"} == {*DECISIVE, *CIRCUMSTANTIAL}
    assert len(DECISIVE) + len(CIRCUMSTANTIAL) == len(settings) + 1, "a setting is in both"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.dropout", True),
        ("model.optimizer.lr", True),
        ("data.root", False),
        ("data.augment", True),
        ("trainer.logger.save_dir", False),
        ("trainer.max_epochs", True),
        ("a_flag_of_tomorrow", True),
    ],
)
def test_settings_that_decide_the_result(setting: str, expected: bool) -> None:
    assert decides(setting) is expected


def test_a_class_stands_under_the_name_of_what_it_is() -> None:
    config = {"model": {"class_path": "m.Net", "init_args": {"lr": 1, "optimizer": {"class_path": "o.SGD"}}}, "seed": 0}
    assert flat(config) == {"model": "m.Net", "model.lr": 1, "model.optimizer": "o.SGD", "seed": 0}


def test_values_that_the_data_decides_are_part_of_the_recipe() -> None:
    settings = {"data.augment": None, "data.train_size": None, "data.root": "somewhere"}
    data = {"augment": "none", "train_size": 10, "val_size": 5, "name": "cats"}
    ours = {"model": "lightning_modules.AlexNet", **settings}
    expected = {"model": ours["model"], "data.augment": "none", "data.train_size": 10, "data.val_size": 5, **LATER}
    assert recipe(ours, data) == expected


def test_a_setting_that_an_earlier_version_lacks_has_the_value_of_that_version(short: tuple[str, ...]) -> None:
    cli = ExperimentCLI(["--config=overfit", *short], keep=False)
    now = flat(yaml.safe_load(cli.complete_config))
    before = {name: value for name, value in now.items() if name not in LATER}
    assert len(before) == len(now) - len(LATER)
    assert recipe(before) == recipe(now)
    assert recipe(before | {"data.mixup": 0.2}) != recipe(now)
    assert "model.width" not in recipe({"model": "mine.Net"}), "another network need not have this setting"


def test_a_class_that_has_moved_is_the_same_setting(tmp_path: Path) -> None:
    old, new = (make_run(tmp_path / "a" / f"version_{number}", np.array([True])) for number in (0, 1))
    paths = ("callbacks.plateau.StopAfterPlateaus", "overfitting_lab.callbacks.plateau.PlateauSchedule")
    for folder, path in zip((old, new), paths, strict=True):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["trainer"]["callbacks"] = [{"class_path": path, "init_args": {"reductions": 3}}]
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert Run(old).recipe == Run(new).recipe
