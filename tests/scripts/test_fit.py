import filecmp
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]

from datamodules import CIFAR10DataModule
from lightning_modules import AlexNet
from overfitting_lab.cli import ExperimentCLI
from overfitting_lab.runs import Run
from overfitting_lab.runs.provenance import git_commit, versions
from tests.conftest import ROOT, FinishedRun, Outcome, events_of, scalars_of

EXPERIMENTS = ("overfit", "random_labels", "regularized", "vgg11", "vgg16", "vgg16_32", "vgg16_bn_32", "vgg16_notebook")
OPTIMIZER, SCHEDULER = "model.init_args.optimizer", "model.init_args.lr_scheduler"
RUN = Path("lightning_logs/overfit/version_0")
TIMEOUT = 240  # seconds for a training of two processes
TOLERANCE = 1e-4  # between one process and two, of a loss; measured: 5e-6


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def test_folder_holds_what_is_documented_and_nothing_else(finished_run: FinishedRun) -> None:
    files = {path.relative_to(finished_run.folder).as_posix() for path in finished_run.folder.rglob("*.*")}
    assert {re.sub(r"tfevents\..*", "tfevents", name) for name in files} == {
        "config.yaml",
        "summary.json",
        "metrics.csv",
        "curves.png",
        "weights.pth",
        "images.npz",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "events.out.tfevents",
        "train/events.out.tfevents",
        "val/events.out.tfevents",
    }


def test_summary_has_exactly_the_documented_keys(finished_run: FinishedRun, image_folder: Path) -> None:
    summary = summary_of(finished_run.folder)
    row = {"epoch", "train_loss", "train_acc", "val_loss", "val_acc"}
    assert summary.keys() == {
        *("experiment", "status", "diagnosis", "seed", "versions", "git_commit", "data", "model", "optimizer"),
        *("device", "precision", "world_size", "epochs", "global_step", "seconds", "train_images_per_second"),
        *("best", "last", "generalization_gap", "test"),
    }
    data = {key: value for key, value in summary["data"].items() if key not in ("fingerprint", "identity")}
    assert data == {
        "source": "folder",
        "name": image_folder.name,
        "split": "overfit",
        "train_size": 100,
        "val_size": 50,
        "test_size": 45,
        "augment": "none",
        "label_noise": 0.0,
        "classes": ["airplane", "bird", "cat"],
    }
    assert re.fullmatch("[0-9a-f]{64}", summary["data"]["fingerprint"])
    network = AlexNet(num_classes=3, hidden_features=16)
    assert summary["model"] == {
        "class_path": "lightning_modules.AlexNet",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    assert summary["optimizer"].items() >= {"class_path": "torch.optim.Adam", "lr": 1e-4, "weight_decay": 0.0}.items()
    assert summary["best"].keys() == summary["last"].keys() == row
    assert summary["test"].keys() == {"checkpoint", "loss", "acc", "images"}
    plain = {key: summary[key] for key in ("experiment", "status", "epochs", "global_step", "device", "world_size")}
    assert plain == {
        "experiment": "overfit",
        "status": "finished",
        "epochs": 3,
        "global_step": 15,
        "device": "cpu",
        "world_size": 1,
    }
    assert summary["seed"] == 0
    (found,) = summary["diagnosis"]  # the fixture's rate jumps
    assert (found["code"], found["severity"], found["step"]) == ("learning_rate_too_high", "warning", 15)
    assert found.keys() == {"code", "severity", "what", "evidence", "remedy", "layers", "epoch", "step"}
    assert summary["versions"] == versions()
    assert summary["git_commit"].removesuffix("-dirty") == git_commit().removesuffix("-dirty")
    assert summary["seconds"] > 0
    assert 0 < summary["train_images_per_second"] < 1e5


def test_summary_agrees_with_metrics(finished_run: FinishedRun) -> None:
    summary, rows = summary_of(finished_run.folder), Run(finished_run.folder).records
    assert [(row.epoch, row.step) for row in rows] == [(0, 5), (1, 10), (2, 15)]
    kept = [asdict(row.metrics) for row in rows]
    assert summary["best"] == max(kept, key=lambda row: row["val_acc"] or 0)
    assert summary["last"] == kept[-1]
    assert summary["best"]["val_acc"] > summary["last"]["val_acc"], "the fixture is to end with its worst epoch"
    assert summary["generalization_gap"] == summary["last"]["train_acc"] - summary["last"]["val_acc"]
    assert summary["test"]["images"] == 45
    assert summary["test"]["checkpoint"] == "best"
    assert summary["test"]["acc"] > summary["last"]["val_acc"], "the last checkpoint was tested, not the best"


def test_rate_of_an_epoch_is_the_one_it_was_trained_at(finished_run: FinishedRun) -> None:
    rates = [1e-4, 1e-4, 1e-1]  # the fixture's schedule
    assert [row.learning_rate for row in Run(finished_run.folder).records] == pytest.approx(rates)
    shown = scalars_of(finished_run.folder)["steps/learning rate"]
    steps = len(shown) // len(rates)
    assert shown == [(step, pytest.approx(rates[(step - 1) // steps])) for step in range(1, len(rates) * steps + 1)]


def test_tensorboard_has_both_curves_in_one_chart(finished_run: FinishedRun) -> None:
    rows = Run(finished_run.folder).records
    for split in ("train", "val"):
        assert scalars_of(finished_run.folder / split) == {
            f"curves/{tag}": [(row.epoch, pytest.approx(getattr(row, f"{split}_{metric}"), rel=1e-6)) for row in rows]
            for tag, metric in (("loss", "loss"), ("accuracy", "acc"))
        }


def test_tensorboard_has_images_confusion_and_settings_with_results(
    finished_run: FinishedRun, image_folder: Path
) -> None:
    events, curves = events_of(finished_run.folder), scalars_of(finished_run.folder)
    for image in ("training images of tiny", "confusion, validation images", "confusion, test images"):
        assert any(image in tag for tag in events.Tags()["images"]), image
    assert [step for step, _ in curves["steps/loss"]] == list(range(1, 16))
    ((_, accuracy),) = curves["result/test_acc"]
    assert accuracy == pytest.approx(summary_of(finished_run.folder)["test"]["acc"])
    started = HParamsPluginData.FromString(events.PluginTagToContent("hparams")["_hparams_/session_start_info"])
    settings = {
        key: value.string_value or value.number_value for key, value in started.session_start_info.hparams.items()
    }
    assert settings["model.optimizer"] == "torch.optim.Adam"
    assert settings["model.optimizer.lr"] == 1e-4
    assert settings["data.batch_size"] == 20
    assert settings["data.root"] == str(image_folder)
    assert settings.get("model.num_classes", 3) == 3


def test_weights_are_those_of_the_best_checkpoint(finished_run: FinishedRun) -> None:
    weights = torch.load(finished_run.folder / "weights.pth", weights_only=True)
    AlexNet(num_classes=3, hidden_features=16).network.load_state_dict(weights)
    same = {}
    for name in ("best", "last"):
        theirs = torch.load(finished_run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        same[name] = all(torch.equal(theirs[f"network.{key}"], value) for key, value in weights.items())
    assert same == {"best": True, "last": False}


def test_what_a_run_prints_to_a_file(finished_run: FinishedRun) -> None:
    summary, out = summary_of(finished_run.folder), finished_run.out
    assert out.startswith("AlexNet, 2,317,459 parameters")
    assert "64 x 32 x 32" in out
    assert (
        "tiny, split overfit: 100 training, 50 validation, 45 test images; augmentation none\n"
        f"           fingerprint {summary['data']['fingerprint'][:16]}"
    ) in out
    assert re.search(rf"^precision  {summary['precision']} \(this CPU .*bf16\)$", out, re.MULTILINE)
    epochs = re.findall(r"^epoch +(\d)/3  training loss .* accuracy .* validation loss .* accuracy .*$", out, re.M)
    assert epochs == ["1", "2", "3"]
    assert f"on 45 test images of {summary['data']['name']}" in out
    assert f"{summary['test']['acc']:.2%}" in out
    assert str(RUN) in out
    assert not re.search(r"[\r\x1b]|it/s", out), "signs of a progress bar"
    assert "Traceback" not in out


def test_config_replays_the_run_bit_for_bit(
    run_script: Callable[..., Outcome], finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_run.folder.parents[2])
    outcome = run_script("fit", "--config", finished_run.folder / "config.yaml")
    assert outcome.status == 0, outcome.err
    again = finished_run.folder.with_name("version_1")
    timeless = [[replace(row, seconds=0) for row in Run(folder).records] for folder in (finished_run.folder, again)]
    assert timeless[0] == timeless[1]
    assert summary_of(again)["test"] == summary_of(finished_run.folder)["test"]
    ours, theirs = (torch.load(folder / "weights.pth", weights_only=True) for folder in (again, finished_run.folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert filecmp.cmp(again / "config.yaml", finished_run.folder / "config.yaml", shallow=False)


class Parsed(ExperimentCLI):
    def instantiate_classes(self) -> None:
        """Leaves it at the configuration."""


def settings_of(*configs: str) -> dict[str, Any]:
    """All settings that the configurations come to, by dotted name."""
    config = Parsed([word for name in configs for word in ("--config", name)]).config
    return {key: value for key, value in config.as_flat().__dict__.items() if key != "config"}


ALEXNET = {
    "model.class_path": "lightning_modules.AlexNet",
    "model.init_args.hidden_features": 4096,
    "model.init_args.initialization.class_path": "lightning_modules.initialization.He",
    "model.init_args.initialization.init_args.fan": "fan_out",
    f"{OPTIMIZER}.class_path": "torch.optim.Adam",
    f"{OPTIMIZER}.init_args.lr": 1e-4,
    SCHEDULER: None,
    "data.source": "cifar10",
    "data.batch_size": 128,
    "data.image_size": 32,
    "data.std": (0.2023, 0.1994, 0.2010),
    "data.train_size": None,
    "data.val_size": None,
    "trainer.max_epochs": 40,
    "seed_everything": 0,
}
VGG = {
    "model.class_path": "lightning_modules.VGG",
    "model.init_args.configuration": "D",
    "model.init_args.batch_norm": False,
    "model.init_args.dropout": 0.5,
    "model.init_args.hidden_features": 4096,
    f"{OPTIMIZER}.class_path": "torch.optim.SGD",
    f"{OPTIMIZER}.init_args.lr": 0.01,
    f"{OPTIMIZER}.init_args.momentum": 0.9,
    f"{OPTIMIZER}.init_args.weight_decay": 5e-4,
    f"{SCHEDULER}.class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
    f"{SCHEDULER}.init_args.monitor": "val_acc",
    f"{SCHEDULER}.init_args.mode": "max",
    f"{SCHEDULER}.init_args.factor": 0.1,
    "data.source": "cifar10",
    "data.split": "full",
    "data.stand_in": False,
    "trainer.max_epochs": 74,
    "seed_everything": 0,
}
RECIPES: dict[str, dict[str, Any]] = {
    "overfit": {
        **ALEXNET,
        "model.init_args.dropout": 0.0,
        f"{OPTIMIZER}.init_args.weight_decay": 0.0,
        "data.split": "overfit",
        "data.augment": None,
        "data.stand_in": True,
    },
    "random_labels": {
        **ALEXNET,
        "model.init_args.dropout": 0.0,
        f"{OPTIMIZER}.init_args.weight_decay": 0.0,
        "data.split": "overfit",
        "data.augment": None,
        "data.label_noise": 1.0,
        "data.stand_in": True,
    },
    "regularized": {
        **ALEXNET,
        "model.init_args.dropout": 0.5,
        f"{OPTIMIZER}.init_args.weight_decay": 1e-4,
        "data.split": "full",
        "data.augment": None,
        "data.stand_in": False,
    },
    "vgg11": {
        **VGG,
        "model.init_args.configuration": "A",
        "data.augment": "vgg",
        "data.image_size": 224,
        "data.batch_size": 256,
    },
    "vgg16": {**VGG, "data.augment": "vgg", "data.image_size": 224, "data.batch_size": 256},
    "vgg16_32": {**VGG, "data.augment": "flip_crop", "data.image_size": 32, "data.batch_size": 128},
    "vgg16_bn_32": {
        **VGG,
        "model.init_args.batch_norm": True,
        "model.init_args.initialization.class_path": "lightning_modules.initialization.Normal",
        "model.init_args.initialization.init_args.std": 0.01,
        "data.augment": "flip_crop",
        "data.image_size": 32,
        "data.batch_size": 128,
    },
    "vgg16_notebook": {
        **{key: value for key, value in VGG.items() if not key.startswith(SCHEDULER)},
        "model.init_args.softmax": True,
        "model.init_args.initialization.class_path": "lightning_modules.initialization.Normal",
        "model.init_args.initialization.init_args.std": 0.1,
        f"{SCHEDULER}.class_path": "torch.optim.lr_scheduler.StepLR",
        f"{SCHEDULER}.init_args.step_size": 25,
        f"{SCHEDULER}.init_args.gamma": 0.1,
        "data.augment": "notebook",
        "data.image_size": 224,
        "data.batch_size": 32,
        "data.mean": (0.4914, 0.4822, 0.4465),
        "data.std": (0.247, 0.243, 0.261),
        "trainer.max_epochs": 5,
    },
}


@pytest.fixture
def no_seed_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it: have it restored


@pytest.mark.usefixtures("no_seed_left")
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_recipe(name: str) -> None:
    settings = settings_of(f"{name}.yaml")
    assert settings["experiment"] == name
    assert {key: settings.get(key) for key in RECIPES[name]} == RECIPES[name]
    callbacks = settings["trainer.callbacks"] or []
    assert [(callback.class_path, callback.init_args.reductions) for callback in callbacks] == (
        [("overfitting_lab.callbacks.plateau.PlateauSchedule", 3)]
        if name in ("vgg11", "vgg16", "vgg16_32", "vgg16_bn_32")
        else []
    )


@pytest.mark.usefixtures("no_seed_left")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("He", {"fan": "fan_in"}),
        ("He --model.initialization.fan fan_out", {"fan": "fan_out"}),
        ("Glorot", {}),
        ("Normal --model.initialization.std 0.05", {"std": 0.05}),
        ("SmallOutput --model.initialization.hidden Glorot", {"std": 0.01}),
    ],
)
def test_initialization_is_a_flag(flags: str, expected: dict[str, Any]) -> None:
    config = Parsed(["--config", "vgg16_32.yaml", "--model.initialization", *flags.split()]).config
    chosen = config.model.init_args.initialization
    assert chosen.class_path == f"lightning_modules.initialization.{flags.split()[0]}"
    assert vars(chosen.init_args).items() >= expected.items()


@pytest.mark.parametrize(("split", "augment"), [("overfit", "none"), ("full", "flip_crop")])
def test_augmentation_that_the_recipes_leave_to_the_split(split: Any, augment: str) -> None:
    assert CIFAR10DataModule(split=split).augment == augment


@pytest.mark.usefixtures("no_seed_left")
@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize(
    ("overlay", "optimizer"),
    [
        ("adam", {"class_path": "torch.optim.Adam", "init_args.lr": 1e-4, "init_args.momentum": None}),
        ("sgd_momentum", {"class_path": "torch.optim.SGD", "init_args.lr": 0.001, "init_args.momentum": 0.9}),
    ],
)
def test_overlay_changes_the_optimizer_alone(name: str, overlay: str, optimizer: dict[str, Any]) -> None:
    before, after = settings_of(f"{name}.yaml"), settings_of(f"{name}.yaml", f"optimizer/{overlay}.yaml")
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {key for key in changed if not key.startswith(f"{OPTIMIZER}.")} == set()
    assert {key: after.get(f"{OPTIMIZER}.{key}") for key in optimizer} == optimizer
    decay = f"{OPTIMIZER}.init_args.weight_decay"
    assert after[decay] == before[decay], "weight decay is a remedy of the experiment, not of the optimizer"


@pytest.mark.parametrize("flag", ["--trainer.fast_dev_run=true", "--trainer.logger=false"])
def test_nothing_is_kept_where_nothing_is_to_be_kept(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path, flag: str
) -> None:
    outcome = run_script("fit", "--config", "overfit", *tiny, "--trainer.max_epochs=1", flag)
    assert outcome.status == 0, outcome.err
    assert "nothing is kept" in outcome.out
    assert "test images of tiny" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_other_optimizer_schedule_and_precision(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path
) -> None:
    flags = (
        "--model.optimizer=torch.optim.RMSprop",
        "--model.optimizer.lr=1e-4",
        "--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR",
        "--model.lr_scheduler.max_lr=1e-4",
        "--model.lr_scheduler.total_steps=5",
        "--model.lr_scheduler_interval=step",
        "--trainer.max_epochs=1",
        "--trainer.precision=32-true",
        "--trainer.enable_progress_bar=true",
    )
    outcome = run_script("fit", "--config", "overfit.yaml", *tiny, *flags)
    assert outcome.status == 0, outcome.err
    summary = summary_of(tmp_path / RUN)
    assert summary["optimizer"]["class_path"] == "torch.optim.RMSprop"
    assert summary["precision"] == "32-true"
    assert "precision: 32-true\n" in (tmp_path / RUN / "config.yaml").read_text()
    assert "precision  32-true (as asked for)" in outcome.out
    assert "it/s" in outcome.out
    assert "epoch   1/1" not in outcome.out, "a line an epoch beside the progress bar"
    (row,) = Run(tmp_path / RUN).records
    assert row.learning_rate == pytest.approx(1e-4 / 25e4), "the cycle's end, at the last step"


def test_vgg_trains(run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path) -> None:
    flags = ("--model.configuration=A", "--data.train_size=40", "--data.val_size=20", "--trainer.max_epochs=1")
    outcome = run_script("fit", "--config", "vgg16_32", *tiny, *flags)
    assert outcome.status == 0, outcome.err
    summary = summary_of(tmp_path / "lightning_logs" / "vgg16_32" / "version_0")
    assert summary["model"]["class_path"] == "lightning_modules.VGG"
    assert summary["optimizer"]["class_path"] == "torch.optim.SGD"
    assert summary["data"]["augment"] == "flip_crop"
    assert (summary["status"], summary["epochs"], summary["test"]["images"]) == ("finished", 1, 45)


class Breaking(Callback):
    """Breaks a run off in its second epoch."""

    error: type[BaseException] = RuntimeError

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise self.error("the disk is on fire")


class Interrupting(Breaking):
    error = KeyboardInterrupt


def test_a_single_callback_need_not_be_a_list(run_script: Callable[..., Outcome], tiny: tuple[str, ...]) -> None:
    callback = f"--trainer.callbacks={Breaking.__module__}.Breaking"  # has no second epoch to break off
    assert run_script("fit", "--config", "overfit", *tiny, "--trainer.fast_dev_run=true", callback).status == 0


@pytest.fixture
def sigint() -> Iterator[None]:
    """Restores what Ctrl-C does: Lightning ignores it from the first one on."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def check_broken_off(folder: Path, status: str, reason: str) -> None:
    summary = summary_of(folder)
    assert (summary["status"], summary["reason"], summary["epochs"]) == (status, reason, 1)
    assert summary["last"]["epoch"] == 0
    assert "test" not in summary
    assert len(Run(folder).records) == 1
    assert (folder / "curves.png").is_file()


def test_failed_run_says_so(run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path) -> None:
    callback = f"--trainer.callbacks+={Breaking.__module__}.Breaking"
    with pytest.raises(RuntimeError, match="on fire"):  # a defect keeps its trace
        run_script("fit", "--config", "overfit.yaml", *tiny, callback)
    check_broken_off(tmp_path / RUN, "failed", "the disk is on fire")


@pytest.mark.usefixtures("sigint")
def test_interrupted_run_says_so(run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path) -> None:
    callback = f"--trainer.callbacks+={Interrupting.__module__}.Interrupting"
    outcome = run_script("fit", "--config", "overfit.yaml", *tiny, callback)
    assert outcome.status != 0
    assert f"interrupted; what there is so far is in {RUN}" in outcome.err
    assert "Traceback" not in outcome.err
    check_broken_off(tmp_path / RUN, "interrupted", "interrupted by the user")


def run_processes(folder: Path, *command: str) -> None:
    """Runs a command that starts others; none of them outlives this."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _, err = process.communicate(timeout=TIMEOUT)
        except BaseException:
            process.terminate()  # torchrun ends its processes then; they are not of its group
            try:
                process.communicate(timeout=10)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, err[-3000:]


# 81 and 41 images in batches of 20 leave a step of one image, of which one process has none.
# Adam would blow up the difference of the sums' order: its first steps divide by gradients near 0.
SGD = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-4")
UNEVEN = ("--data.train_size=81", "--data.val_size=41", "--trainer.precision=32-true", *SGD)


@pytest.mark.parametrize(
    "launcher",
    [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]],
    ids=["lightning", "torchrun"],
)
def test_two_processes_train_as_one(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], tmp_path: Path, launcher: list[str]
) -> None:
    arguments = ["--config", "overfit.yaml", *tiny, *UNEVEN]
    assert run_script("fit", *arguments).status == 0
    flags = ("--trainer.devices=2", "--trainer.strategy=ddp")
    run_processes(tmp_path, *launcher, str(ROOT / "scripts" / "fit.py"), *arguments, *flags)
    folders = sorted((tmp_path / RUN).parent.iterdir())
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    one, two = map(Run, folders)
    assert (one.summary.world_size, two.summary.world_size) == (1, 2)
    assert one.summary.data == two.summary.data
    assert one.summary.test
    assert two.summary.test
    assert one.summary.test.images == two.summary.test.images == 45
    assert len(one.records) == len(two.records) == 2
    for ones, twos in zip(one.records, two.records, strict=True):
        assert {**asdict(twos), "seconds": 0} == pytest.approx({**asdict(ones), "seconds": 0}, rel=TOLERANCE)
    assert two.summary.test.loss == pytest.approx(one.summary.test.loss, rel=TOLERANCE)


def test_the_network_is_compiled_where_asked(
    run_script: Callable[..., Outcome], tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modes: list[str] = []
    steps: list[int] = []

    def compiled(function: Callable[..., Any], *, mode: str) -> Callable[..., Any]:
        modes.append(mode)

        def counted(*arguments: Any) -> Any:
            steps.append(1)
            return function(*arguments)

        return counted

    monkeypatch.setattr(torch, "compile", compiled)
    assert run_script("fit", "--config=overfit", *tiny, "--compile=reduce-overhead").status == 0
    assert modes == ["reduce-overhead"]
    assert len(steps) > 10
    weights = torch.load(tmp_path / "lightning_logs/overfit/version_0/weights.pth", weights_only=True)
    assert "0.weight" in weights
