import os
import re
from pathlib import Path

import pytest

from overfitting_lab.cli.configurations import checked_config
from tests.conftest import Flags, Parse, Script

OFF = "doctor: off\nexperiment: no\ncheck: no\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"data:\n  seed: 1\ntrainer:\n  max_epochs: 1\ndata:\n  seed: 2\n", ("key data", "line 1 and in line 5")),
        (b"trainer:\n  max_epochs: 1\n  max_epochs: 2\n", ("key max_epochs", "line 2 and in line 3")),
        (b"a:\n- b:\n    c: 1\n    d: 2\n    c: 3\n", ("key c", "line 3 and in line 5")),
        (b'{"trainer": {"devices": 1, "devices": 2}}', ("key devices", "line 1 and in line 1")),
        (b"data:\n  root: caf\xe9\n", ("line 2", "byte 0xe9 is not UTF-8")),
        (b"trainer:\n\tmax_epochs: 1\n", ("line 2", "cannot start any token")),
        (b"a: 1\n---\nb: 2\n", ("line 2", "single document")),
        (b"a: &x\n  b: *x\n", ("line 1", "contains itself")),
        (b"a: \0\n", ("unacceptable character",)),
        (b"a: " + 5000 * b"[", ("too deeply",)),
        (b"a:\n  b: !!python/object/apply:os.getcwd []\n", ("line 2", "python/object")),
        (b"- a\n", ("holds no settings",)),
        (b"a: 1\ntrainer:\n- max_epochs: 3\n", ("line 2", "trainer needs settings below it")),
        *(
            (b"check: " + value + b"\n", ("line 1", "check needs true or false"))
            for value in (b"[a]", b"{}", b"word", b"")
        ),
        *(
            (b"model:\n  class_path: " + value + b"\n", ("line 2", "class_path needs the name of a class"))
            for value in (b"null", b"[]", b"{}", b"3", b"")
        ),
        (b"data: 3\n", ("line 1", "data needs settings below it")),
        (b"trainer:\n", ("line 1", "trainer needs settings below it")),
        (b"trainer:\n  max_epochs: 010\n", ("line 2", "YAML reads 010 as 8")),
        (b"model:\n", ("line 1", "model needs settings below it")),
        (b"experiment: 007\n", ("line 1", "YAML reads 007 as 7", "in quotes")),
        (b"", ("holds no settings",)),
    ],
)
def test_what_yaml_would_lose_names_the_file_and_the_line(
    content: bytes, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.name) as error:
        checked_config(path)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "mine"])
def test_a_key_that_stands_twice_is_refused_before_any_work(name: str, run_script: Script, tmp_path: Path) -> None:
    (tmp_path / name).write_text("data:\n  batch_size: 10\ndata:\n  val_size: 40\n", encoding="utf-8")
    outcome = run_script("fit", "--config=overfit", f"--config={tmp_path / name}")
    assert outcome.status == 2
    assert f"{name}: the key data stands twice, in line 1 and in line 3" in outcome.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "trainer: {max_epochs: 3}\ntrainer.max_epochs: 5\n",
            "trainer.max_epochs stands twice, in line 1 and in line 2",
        ),
        (
            "trainer.max_epochs: 5\ntrainer:\n  max_epochs: 3\n",
            "trainer.max_epochs stands twice, in line 1 and in line 3",
        ),
        (
            "trainer:\n  callbacks: [{class_path: LearningRateMonitor}]\n  callbacks+: [{class_path: ModelSummary}]\n",
            "has callbacks and callbacks+, of which",
        ),
        (
            "model:\n  class_path: AlexNet\n  width: 0.1\n",
            "line 3: width stands beside class_path: put the settings of",
        ),
    ],
)
def test_a_setting_that_would_be_lost_is_refused(text: str, words: str, run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    outcome = run_script("fit", "--config=overfit", "--config=mine.yaml")
    assert outcome.status == 2
    assert words in outcome.err


@pytest.mark.parametrize("key", ["trainer:\n  callbacks", "trainer.callbacks"])
def test_callbacks_that_a_later_configuration_would_replace(
    key: str, run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    for name, sign in (("one", "+"), ("two", "")):
        (tmp_path / f"{name}.yaml").write_text(f"{key}{sign}: [{{class_path: LearningRateMonitor}}]\n")
    outcome = run_script("fit", "--config=overfit", "--config=one.yaml", "--config=two.yaml", *quick)
    assert outcome.status == 2
    assert "two.yaml would replace the callbacks of one.yaml: give --config two.yaml first" in outcome.err


def test_a_pipe_is_no_configuration(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/null", "-"):
        outcome = run_script("fit", "--config=overfit", "--config", path, *quick)
        assert outcome.status == 2
        assert (
            f"--config {path} is a pipe or a terminal, which can be read only once: write it to a file" in outcome.err
        )


def test_a_typed_callback_that_a_later_configuration_would_replace(run_script: Script, quick: Flags) -> None:
    typed = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss")
    outcome = run_script("fit", "--config=overfit", *quick, *typed, "--config=vgg16_32")
    assert outcome.status == 2
    assert "vgg16_32.yaml would replace the callbacks of --trainer.callbacks+: give --config " in outcome.err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_words_stay_words_in_every_encoding(encoding: str, tmp_path: Path, parse: Parse) -> None:
    (tmp_path / "mine.yaml").write_text(f"{OFF}data:\r\n  root: 猫/é\n", encoding=encoding)
    config = parse("--config=overfit", f"--config={tmp_path / 'mine.yaml'}")
    assert (config.doctor, config.experiment, config.check, config.data.root) == ("off", "no", False, "猫/é")


def test_a_time_is_no_number_of_sixties(run_script: Script, tmp_path: Path) -> None:
    path = written(tmp_path, "trainer: {max_time: 1:30, max_epochs: 0}\n")
    outcome = run_script("fit", "--config=overfit", f"--config={path}")
    assert outcome.status == 2
    assert "--trainer.max_time 1:30: must be above zero, as DD:HH:MM:SS" in outcome.err


@pytest.mark.parametrize(
    "setting",
    [
        *("data: {root: ~}", "data: {batch_size: null}", "trainer: {num_nodes: null}", "doctor: null"),
        "experiment: null\nmonitor: val_acc",
        *("model: {init_args: {dropout: null}}", "model: {init_args: {optimizer: null}}"),
    ],
)
def test_null_where_a_value_is_needed(setting: str, run_script: Script, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", f"--config={written(tmp_path, setting)}")
    assert outcome.status == 2
    assert re.search(r"error: --[\w.]+: null, which YAML also writes as ~, is no value here", outcome.err), outcome.err


def test_null_where_it_is_a_value(tmp_path: Path, parse: Parse) -> None:
    content = "trainer: {limit_val_batches: null, precision: null}\ndata: {seed: null}\nresume: null\n"
    content += "model: {init_args: {lr_scheduler: null}}\n"
    assert parse("--config=overfit", f"--config={written(tmp_path, content)}").trainer.limit_val_batches is None


def written(folder: Path, content: str) -> Path:
    (path := folder / "mine.yaml").write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("root", ["x: y", "null", "1e3", "[a]", "{b: c}", "a,b", "# c", "-", "é"])
def test_a_folder_may_have_any_name(root: str, parse: Parse) -> None:
    assert parse("--config=overfit", f"--data.root={root}").data.root == root


def test_numbers_for_words_are_answered_with_quotes(run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("experiment: 007\n", encoding="utf-8")
    outcome = run_script("fit", "--config=overfit", f"--config={tmp_path / 'mine.yaml'}")
    assert outcome.status == 2
    assert "experiment" in outcome.err
    assert "put it in quotes" in outcome.err


def test_the_home_folder_is_expanded_in_every_path(
    tmp_path: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(
        "data:\n  root: ~/images\ntrainer:\n  default_root_dir: ~/runs\n  callbacks:\n"
        "  - class_path: ModelCheckpoint\n    init_args: {dirpath: ~/kept}\n",
        encoding="utf-8",
    )
    logger = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=~/csv")
    config = parse("--config=overfit", "--config=~/mine.yaml", *logger, "--ckpt_path=~/a.ckpt")
    home = str(tmp_path)
    assert (config.data.root, config.ckpt_path) == (f"{home}/images", f"{home}/a.ckpt")
    assert config.trainer.default_root_dir == f"{home}/runs"
    assert config.trainer.logger.init_args.save_dir == f"{home}/csv"
    assert config.trainer.callbacks[0].init_args.dirpath == f"{home}/kept"
    assert os.path.expanduser("~") == home  # noqa: PTH111


def test_a_key_may_replace_what_is_merged(parse: Parse, tmp_path: Path) -> None:
    """An alias may stand beside class_path, and a word such as ``on`` is text in a merged value too."""
    (tmp_path / "merged.yaml").write_text(
        "model:\n  init_args:\n    optimizer: &sgd\n      class_path: torch.optim.SGD\n"
        "      init_args: &rates {momentum: 0.5, lr: 0.01}\n",
        encoding="utf-8",
    )
    (tmp_path / "replaced.yaml").write_text(
        "model:\n  init_args:\n    optimizer:\n      class_path: torch.optim.SGD\n"
        "      init_args:\n        <<: {momentum: 0.5, lr: 0.01}\n        lr: 0.05\n",
        encoding="utf-8",
    )
    config = parse("--config=overfit", f"--config={tmp_path / 'replaced.yaml'}")
    rates = config.model.init_args.optimizer.init_args
    assert (rates.momentum, rates.lr) == (0.5, 0.05)
    config = parse("--config=overfit", f"--config={tmp_path / 'merged.yaml'}")
    assert config.model.init_args.optimizer.init_args.momentum == 0.5
