from pathlib import Path

import pytest
import yaml

from overfitting_lab.cli.configurations import CONFIGS, find_config
from overfitting_lab.cli.wording import clear
from tests.conftest import Parse, Script


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["overfit", "overfit.yaml", "optimizer/adam", "optimizer/adam.yaml"])
def test_bare_name_is_found_from_any_folder(name: str) -> None:
    assert Path(find_config(name)) == (CONFIGS / name).with_suffix(".yaml")


@pytest.mark.parametrize("name", ["overfit", "overfit.yaml", "sub/mine.yaml"])
def test_existing_path_wins(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert find_config(name) == name
    assert find_config(str(path)) == str(path)


def test_a_folder_of_that_name_is_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "overfit").mkdir()
    assert find_config("overfit") == str(CONFIGS / "overfit.yaml")


@pytest.mark.parametrize(
    "words",
    [
        ["--config", "regularized"],
        ["--config=regularized"],
        ["-c", "regularized"],
        ["-c=regularized"],
        ["-cregularized"],
    ],
)
def test_every_way_to_say_config(words: list[str], parse: Parse) -> None:
    assert parse(*words).experiment == "regularized"


def test_later_configurations_and_flags_win(tmp_path: Path, parse: Parse) -> None:
    (tmp_path / "mine.yaml").write_text("data:\n  batch_size: 7\ntrainer:\n  max_epochs: 3\n")
    config = parse("-c", "overfit", "-c", "mine.yaml", "--data.batch_size=9")
    assert (config.data.batch_size, config.trainer.max_epochs, config.data.split) == (9, 3, "overfit")


@pytest.mark.parametrize("module", ["", "torch.optim.lr_scheduler.", "lightning.pytorch.cli."])
@pytest.mark.parametrize("in_file", [True, False])
def test_every_name_of_the_plateau_schedule_takes_a_monitor(
    module: str, in_file: bool, tmp_path: Path, parse: Parse
) -> None:
    schedule = f"{module}ReduceLROnPlateau"
    content = {"model": {"init_args": {"lr_scheduler": {"class_path": schedule, "init_args": {"monitor": "val_acc"}}}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    flags = (
        ("-c", "mine.yaml") if in_file else ("--model.lr_scheduler", schedule, "--model.lr_scheduler.monitor=val_acc")
    )
    found = parse("-c", "overfit", *flags).model.init_args.lr_scheduler
    assert found.class_path == "lightning.pytorch.cli.ReduceLROnPlateau"
    named = ("--experiment=ReduceLROnPlateau", "--data.root", "ReduceLROnPlateau")  # by other settings
    config = parse("-c", "overfit", *named)
    assert (config.experiment, config.data.root) == ("ReduceLROnPlateau", "ReduceLROnPlateau")
    assert found.init_args.monitor == "val_acc"


@pytest.mark.parametrize(("value", "raised", "match"), [("true", Exception, "many"), ("false", SystemExit, "2")])
def test_debug_variable_keeps_the_exception(
    value: str, raised: type[BaseException], match: str, monkeypatch: pytest.MonkeyPatch, parse: Parse
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEBUG", value)
    with pytest.raises(raised, match=match):
        parse("-c", "overfit", "--data.batch_size=many")


def test_help_begins_with_the_settings_of_the_project(run_script: Script) -> None:
    outcome = run_script("fit", "--help")
    places = [
        outcome.out.index(f"\n  --{name}") for name in ("experiment", "model ", "data.root", "trainer.max_epochs")
    ]
    assert places == sorted(places)
    assert "\nLightning's Trainer:\n" in outcome.out


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("plain", "plain"),
        (
            'Parser key "data.train_size":\n  Does not validate against any of the Union subtypes\n'
            "  Subtypes: [int, None]\n  Errors:\n    - Expected a <class 'int'>\n    - Expected a <class 'NoneType'>\n"
            "  Given value type: <class 'str'>\n  Given value: many",
            "Parser key \"data.train_size\":\n  Expected a <class 'int'>\n  Given value: many",
        ),
        (
            'Parser key "model":\n  - Expected a dot import path string: LeNet\n  Given value: LeNet',
            'Parser key "model":\n  Given value: LeNet\n  LeNet cannot be imported',
        ),
    ],
)
def test_clear_drops_the_noise(message: str, text: str) -> None:
    assert clear(message) == text


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--compile=defualt", "compile:\n  expected one of default, reduce-overhead, max-autotune"),
        ("--compile=defualt", "\ndid you mean default?\n"),
        ("--data.augment=flipcrop", "\ndid you mean flip_crop?\n"),
        ("--keep=both", "keep:\n  expected one of all, weights. Got value: both\n"),
        ("--data.train_size=1.5", "data.train_size:\n  expected a whole number\n"),
        ("--model.width=abc", "width:\n  expected a number. Got value: abc\n"),
        ("--model.dropout=0,5", "dropout:\n  expected a number. Got value: 0,5\ndid you mean 0.5?\n"),
        ("--trainer.gradient_clip_val=,5", "Given value: ,5\ndid you mean .5?\n"),
        ("--trainer.max_epochs=1,5", "Given value: 1,5\nhelp: "),
        ("--data.on_device=maybe", "data.on_device:\n  expected true or false\n"),
        ("--checkpoint_minutes=-1", "checkpoint_minutes:\n  expected a number above 0\n"),
        ("--checkpoint_steps=0", "checkpoint_steps:\n  expected a whole number above 0\n"),
    ],
)
def test_a_wrong_value_is_explained_without_names_of_types(flag: str, said: str, run_script: Script) -> None:
    outcome = run_script("fit", "--config=overfit", flag)
    assert outcome.status == 2
    assert said in outcome.err


@pytest.mark.parametrize("key", ["num_classes", "image_size"])
def test_what_the_data_decides_is_no_setting(key: str, run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"model:\n  init_args:\n    {key}: 64\n", encoding="utf-8")
    for flags in ((f"--model.{key}=64",), (f"--model.init_args.{key}", "64"), ("--config", tmp_path / "mine.yaml")):
        outcome = run_script("fit", "--config=overfit", *flags)
        assert outcome.status == 2
        assert f"error: --model.{key}: the " in outcome.err


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reference", "lightning_logs/reference is for published runs, which Git keeps: choose another name"),
        ("Reference", "lightning_logs/reference is for published runs"),
        ("con", "'con' is the name of a device on Windows: choose another name"),
        ("Aux.1", "is the name of a device on Windows"),
        ("a" * 101, "the name has 101 characters"),
        *(
            (name, "cannot be the name of a folder everywhere")
            for name in ("", "../up", "a/b", ".hidden", "dot.", "space ")
        ),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(
    name: str, reason: str, in_file: bool, tmp_path: Path, parse: Parse, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"experiment": name}))
    with pytest.raises(SystemExit) as caught:
        parse("-c", "overfit", *(("-c", str(tmp_path / "mine.yaml")) if in_file else (f"--experiment={name}",)))
    assert caught.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a", "a b", "v1.2-x_y", "Übung", "control", "a" * 100])
def test_other_names_are_taken(name: str, parse: Parse) -> None:
    assert parse("-c", "overfit", f"--experiment={name}").experiment == name
