"""Loggers of Lightning beside the run's own, with their real packages and without a network."""

import csv
import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import loggers

from overfitting_lab.callbacks.further_loggers import discard_rows
from tests import processes
from tests.conftest import FinishedRun, Flags, Outcome, Script, scalars_of, summary_of, timeless

RUN = Path("lightning_logs/overfit/version_0")
METRICS = {"train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc"}
Points = dict[str, dict[int, float]]  # by metric and step


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keep the packages from the network and from the home folder."""
    home = tmp_path_factory.mktemp("home")
    folders = {f"WANDB_{name}_DIR": str(home / name) for name in ("CONFIG", "CACHE", "DATA")}
    others = {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
    for name, value in (folders | others).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")  # W&B's logger sets it, and this restores it
    return folders | others


def wandb_records(file: Path) -> Iterator[Any]:
    """Read the records of a run that W&B wrote offline: LevelDB's log format after a header of 7 bytes."""
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    data, position, parts = file.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # the whole record, or its last part
            yield record.FromString(parts)
            parts = b""


def of_wandb(folder: Path) -> tuple[Points, dict[str, str]]:
    points: Points = {name: {} for name in METRICS}
    settings = {}
    for file in sorted(folder.glob("offline-run-*/*.wandb")):
        for record in wandb_records(file):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name in METRICS & row.keys():
                points[name][row["trainer/global_step"]] = row[name]
            for item in record.config.update:
                settings[item.key or item.nested_key[0]] = str(json.loads(item.value_json))
    return points, settings


def of_mlflow(store: Path) -> tuple[Points, dict[str, str]]:
    client = import_module("mlflow").MlflowClient(f"file:{store}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "lightning_logs"]
    (run,) = client.search_runs([experiment.experiment_id])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in METRICS}
    return {name: {each.step: each.value for each in values} for name, values in history.items()}, run.data.params


def of_csv(folder: Path) -> tuple[Points, dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = [(name, int(row["step"]), float(row[name])) for row in rows for name in METRICS if row[name]]
    assert len(points) == len({(name, step) for name, step, _ in points}), "a metric twice at a step"
    hyper_parameters = yaml.safe_load((folder / "hparams.yaml").read_text())
    return {name: {step: y for each, step, y in points if each == name} for name in METRICS}, hyper_parameters


def of_tensorboard(folder: Path) -> tuple[Points, dict[str, str]]:
    hyper_parameters = yaml.safe_load((folder / "hparams.yaml").read_text())
    return {tag: dict(curve) for tag, curve in scalars_of(folder).items() if tag in METRICS}, hyper_parameters


def check_loggers(loggers: list[tuple[Points, dict[str, str]]], epochs: dict[int, int], test_step: int) -> None:
    """Check that all have the metrics of the run's record, at the last steps of the epochs, and its settings."""
    record = {epochs[each.epoch]: each for each in timeless(RUN)}
    assert len(record) == len(epochs)
    summary = summary_of(RUN)
    for points, settings in loggers:
        for name in METRICS:
            test = {test_step: summary["test"][name.removeprefix("test_")]} if "test" in name else {}
            expected = test or {step: getattr(each, name) for step, each in record.items()}
            measured = {step: value for step, value in points[name].items() if step in expected}
            assert measured == pytest.approx(expected, abs=1e-6), name
            assert points[name].keys() == expected.keys()
        for name in ("model.optimizer.lr", "model.optimizer", "seed_everything", "data.fingerprint"):
            wanted = {"model.optimizer": summary["optimizer"]["class_path"], "seed_everything": 0}
            wanted |= {"model.optimizer.lr": 1e-4, "data.fingerprint": summary["data"]["fingerprint"]}
            assert str(settings[name]) == str(wanted[name])


@pytest.mark.long
def test_a_killed_run_resumes_the_runs_of_its_loggers(
    run_script: Script, quick: Flags, tmp_path: Path, environment: dict[str, str]
) -> None:
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    named: list[dict[str, Any]] = [
        {"class_path": "CSVLogger", "init_args": {"save_dir": "csv", "name": "mine"}},
        {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "tb", "name": "mine"}},
        {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"offline": True, "project": "x"}},
        {"class_path": "MLFlowLogger", "init_args": {}},
    ]
    kill = {"class_path": "tests.faults.KillOnce", "init_args": {"place": "step", "step": 13, "mark": "killed"}}
    config = {"trainer": {"logger": named, "callbacks": [kill], "check_val_every_n_epoch": 1}}
    (tmp_path / "loggers.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config=overfit", "--config=loggers.yaml", *quick, "--trainer.max_epochs=3", "--checkpoint_minutes=99"]
    process = processes.start("fit", flags, tmp_path, **environment)
    process.join()
    assert process.exitcode == -9, (tmp_path / "output.txt").read_text()
    outcome = run_script("fit", "--resume", RUN)
    assert outcome.status == 0, outcome.err
    places = (tmp_path / "csv/mine/version_0", tmp_path / "tb/mine/version_0")
    for name, place in zip(("CSVLogger", "TensorBoardLogger"), places, strict=True):
        assert f"logger     {name}, run 0 in {place}\n" in outcome.out
    wandb = tmp_path / "lightning_logs/wandb"
    assert len({file.name for file in wandb.glob("offline-run-*/*.wandb")}) == 1, "the name holds the run's id"
    got = [of_csv(places[0]), of_tensorboard(places[1]), of_wandb(wandb), of_mlflow(tmp_path / "lightning_logs/mlruns")]
    check_loggers(got, {0: 4, 1: 9, 2: 14}, 15)
    there = {"csv", "tb", "lightning_logs", "killed", "loggers.yaml", "output.txt"}
    assert {path.name for path in tmp_path.iterdir()} == there
    for folder in ("csv/mine", "tb/mine"):
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["version_0"]


def test_true_is_the_logger_of_the_run_alone(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=1", "--trainer.logger=true")
    assert outcome.status == 0, outcome.err
    assert list(tmp_path.iterdir()) == [tmp_path / "lightning_logs"]
    assert list((tmp_path / "lightning_logs").iterdir()) == [tmp_path / "lightning_logs/overfit"]


@pytest.mark.parametrize("flag", ["--trainer.fast_dev_run=true", "--check"])
def test_a_trial_leaves_no_files_of_a_logger(flag: str, run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ("--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv", flag)
    outcome = run_script("fit", "--config=overfit", *quick, "--trainer.max_epochs=1", *flags)
    assert outcome.status == 0, outcome.err
    assert list(tmp_path.iterdir()) == []


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.status == 2
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


PACKAGE = {"CometLogger": "comet-ml", "MLFlowLogger": "mlflow-skinny", "WandbLogger": "wandb"}
MODULES = {"CometLogger": "comet_ml", "MLFlowLogger": "mlflow", "WandbLogger": "wandb"}
WITHOUT_PACKAGE = {"CSVLogger": "required: save_dir", "TensorBoardLogger": "required: save_dir"}
WITHOUT_PACKAGE |= {"LitLogger": "does not work here", "Logger": "is abstract", "NeptuneLogger": "was shut down"}


@pytest.mark.parametrize("name", [*loggers.__all__, "NeptuneLogger"])
def test_a_logger_without_its_package_or_folder_is_refused(
    name: str, run_script: Script, quick: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in PACKAGE:
        monkeypatch.setitem(sys.modules, MODULES[name], None)  # as if it were not installed
    outcome = run_script("fit", "--config=overfit", *quick, f"--trainer.logger=lightning.pytorch.loggers.{name}")
    refused(outcome, f"pip install {PACKAGE[name]}\n" if name in PACKAGE else WITHOUT_PACKAGE[name])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("=nonsense", "accepts true, false, or a logger's class"),
        (".offline=true", "a logger's class before its settings"),
        ("=not_installed.Logger", "No module named 'not_installed'"),
        ("=CSVLogger --trainer.logger.save_dir=. --trainer.logger.version=0", "version_0 has another run's log"),
        ("=MLFlowLogger --trainer.logger.log_model=true", "--trainer.callbacks+=ModelCheckpoint"),
    ],
)
def test_a_setting_of_a_logger_that_cannot_be_honoured(
    flags: str, words: str, run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    if "MLFlow" in flags:
        pytest.importorskip("mlflow")
    earlier = tmp_path / "lightning_logs/version_0/metrics.csv"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("step,val_acc\n4,0.5\n")
    refused(run_script("fit", "--config=overfit", *quick, *f"--trainer.logger{flags}".split()), words)
    assert earlier.read_text() == "step,val_acc\n4,0.5\n"


@pytest.mark.parametrize("script", ["test", "export"])
def test_a_run_is_read_without_the_packages_of_its_loggers(
    script: str, finished_run: FinishedRun, run_script: Script, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run.folder, tmp_path / RUN))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["logger"] = [{"class_path": "not_installed.Logger", "init_args": {"project": "x"}}]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    flags = ["--formats=pth"] if script == "export" else []
    outcome = run_script(script, run, *flags)
    assert outcome.status == 0, outcome.err
    assert list(tmp_path.iterdir()) == [tmp_path / "lightning_logs"]


def test_a_resumed_run_logs_no_step_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = ["step,lr,train_loss", "3,0.1,", "4,,2.3", "5,0.1,", "6,0.1,", "7,0.1,"]  # Lightning counts steps from 0
    path.write_text("\n".join(rows) + "\n")
    discard_rows(path, since=7, of=())  # the checkpoint has seven steps
    assert path.read_text().splitlines() == rows[:-1]
