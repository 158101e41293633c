import filecmp
import io
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]
from torch.utils._python_dispatch import TorchDispatchMode

from datamodules import CIFAR10DataModule
from lightning_modules import AlexNet
from overfitting_lab.cli.precision import default_precision
from overfitting_lab.runs import Run
from overfitting_lab.runs.provenance import git_commit, versions
from overfitting_lab.runs.recipe import decides, flat
from tests.conftest import (
    ROOT,
    FinishedRun,
    Flags,
    Parse,
    Script,
    events_of,
    scalars_of,
    summary_of,
    timeless,
    weights_of,
)
from tests.processes import run_python
from tests.scripts.test_errors import check_one_message

RUN = Path("lightning_logs/overfit/version_0")
TOLERANCE = 1e-4  # between one process and two, of a loss; measured: 5e-6


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
        "events.out.tfevents",
        "train/events.out.tfevents",
        "val/events.out.tfevents",
        "probe/events.out.tfevents",
    }


def test_summary_has_exactly_the_documented_keys(finished_run: FinishedRun, image_folder: Path) -> None:
    summary = summary_of(finished_run.folder)
    row = {"epoch", "train_loss", "train_acc", "val_loss", "val_acc"}
    probe = {"probe_loss", "probe_acc"}
    sure = {"confidence", "calibration_error"}  # no temperature is the best: every validation image is right
    assert summary.keys() == {
        *("experiment", "status", "diagnosis", "seed", "versions", "git_commit", "data", "model", "optimizer"),
        *("device", "precision", "world_size", "epochs", "global_step", "seconds", "seconds_of"),
        "train_images_per_second",
        *("best", "last", "generalization_gap", "gap_instrument", "test", "reason", "notes"),
    }
    data = {key: value for key, value in summary["data"].items() if key not in ("fingerprint", "identity")}
    assert data == {
        "source": "folder",
        "name": image_folder.name,
        "split": "overfit",
        "train_size": 100,
        "val_size": 50,
        "subset": 0,
        "test_size": 45,
        "test_available": 45,
        "augment": "none",
        "cutout": 0,
        "mixup": 0.0,
        "cutmix": 0.0,
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
    assert summary["last"].keys() == row | probe
    assert summary["best"].keys() == {*row, "step"}
    assert summary["test"].keys() == {"checkpoint", "loss", "acc", "images"} | sure
    plain = {"experiment": "overfit", "status": "finished", "epochs": 3, "global_step": 15, "device": "cpu"}
    assert summary.items() >= {**plain, "world_size": 1, "seed": 0}.items()
    (found,) = summary["diagnosis"]  # the fixture's rate jumps
    assert (found["code"], found["severity"], found["step"]) == ("learning_rate_too_high", "warning", 15)
    assert found.keys() == {"code", "severity", "what", "evidence", "remedy", "layers", "epoch", "step"}
    assert summary["versions"] == versions()
    assert summary["git_commit"].removesuffix("-dirty") == git_commit().removesuffix("-dirty")
    assert summary["seconds_of"].keys() == {"start", "training", "validation", "test"}
    assert min(summary["seconds_of"].values()) > 0
    assert summary["seconds"] > 0
    assert 0 < summary["train_images_per_second"] < 1e5


def test_summary_agrees_with_metrics(finished_run: FinishedRun) -> None:
    summary, rows = summary_of(finished_run.folder), Run(finished_run.folder).records
    assert [(row.epoch, row.step) for row in rows] == [(0, 5), (1, 10), (2, 15)]
    kept = [measured(asdict(row.metrics)) for row in rows]
    best = max(kept, key=lambda row: row["val_acc"] or 0)
    of_probe = {name for name in best if name.startswith("probe")}
    best = {name: value for name, value in best.items() if name not in of_probe}
    assert summary["best"] == {**best, "step": rows[int(best["epoch"] or 0)].step}
    assert summary["last"] == kept[-1]
    assert summary["best"]["val_acc"] > summary["last"]["val_acc"], "the fixture is to end with its worst epoch"
    assert summary["generalization_gap"] == summary["last"]["probe_acc"] - summary["last"]["val_acc"]
    assert summary["test"].items() >= {"images": 45, "checkpoint": "best"}.items()
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
            f"curves/{tag}": [
                (row.epoch + 1, pytest.approx(getattr(row, f"{split}_{metric}"), rel=1e-6)) for row in rows
            ]
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
    optimizer = {"model.optimizer": "torch.optim.Adam", "model.optimizer.lr": 1e-4}
    data = {"data.augment": "none", "data.batch_size": 20}
    data |= {"data.train_size": 100, "data.val_size": 50, "data.test_size": 45}
    assert settings.items() >= {**optimizer, **data}.items()
    assert all(name == "data.fingerprint" or decides(name) for name in settings), "what decides nothing hides the rest"
    assert settings.get("model.num_classes", 3) == 3


def test_weights_are_those_of_the_best_checkpoint(finished_run: FinishedRun) -> None:
    weights = weights_of(finished_run.folder)
    AlexNet(num_classes=3, hidden_features=16).network.load_state_dict(weights)
    same = {}
    for name in ("best", "last"):
        theirs = torch.load(finished_run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
        same[name] = all(torch.equal(theirs[f"network.{key}"], value) for key, value in weights.items())
    assert same == {"best": True, "last": False}


def test_output_that_goes_to_a_file(finished_run: FinishedRun) -> None:
    summary, out = summary_of(finished_run.folder), finished_run.out
    assert out.startswith("AlexNet, 2,317,459 parameters")
    assert "64 x 32 x 32" in out
    assert (
        "tiny, split overfit: 100 training, 50 validation, 45 test images; augmentation none\n"
        f"           fingerprint {summary['data']['fingerprint'][:16]}"
    ) in out
    assert "precision  32-true (as asked for)\n" in out
    epochs = re.findall(r"^epoch +(\d)/3  training loss .* accuracy .* validation loss .* accuracy .*$", out, re.M)
    assert epochs == ["1", "2", "3"]
    assert f"on 45 test images of {summary['data']['name']}" in out
    assert f"{summary['test']['acc']:.2%}" in out
    assert str(RUN) in out
    assert not re.search(r"[\r\x1b]|it/s", out), "signs of a progress bar"
    assert "Traceback" not in out


def test_config_replays_the_run_bit_for_bit(
    run_script: Script, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished_run.folder.parents[2])
    outcome = run_script("fit", "--config", finished_run.folder / "config.yaml")
    assert outcome.status == 0, outcome.err
    again = finished_run.folder.with_name("version_1")
    assert timeless(again) == timeless(finished_run.folder)
    assert summary_of(again)["test"] == summary_of(finished_run.folder)["test"]
    ours, theirs = weights_of(again), weights_of(finished_run.folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert filecmp.cmp(again / "config.yaml", finished_run.folder / "config.yaml", shallow=False)


PLATEAU = """model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau model.lr_scheduler.monitor=val_acc
    model.lr_scheduler.mode=max model.lr_scheduler.factor=0.1"""
NORMAL = "model.initialization=lightning_modules.initialization.Normal"
ALEXNET = """model=lightning_modules.AlexNet model.hidden_features=4096 model.initialization.fan=fan_out
    model.initialization=lightning_modules.initialization.He model.optimizer=torch.optim.Adam model.optimizer.lr=0.0001
    model.lr_scheduler=null data.source=cifar10 data.batch_size=128 data.image_size=32 data.std=[0.2023,0.1994,0.2010]
    data.train_size=null data.val_size=null data.augment=null trainer.max_epochs=40 seed_everything=0"""
OVERFIT = f"{ALEXNET} model.dropout=0.0 model.optimizer.weight_decay=0.0 data.split=overfit data.stand_in=true"
VGG = """model=lightning_modules.VGG model.configuration=D model.batch_norm=false model.dropout=0.5
    model.hidden_features=4096 model.optimizer=torch.optim.SGD model.optimizer.lr=0.01 model.optimizer.momentum=0.9
    model.optimizer.weight_decay=0.0005 data.source=cifar10 data.split=full data.stand_in=false trainer.max_epochs=74
    seed_everything=0"""
PAPER = f"{VGG} {PLATEAU} data.augment=vgg data.image_size=224 data.batch_size=256"
SMALL_IMAGES = f"{VGG} {PLATEAU} data.augment=flip_crop data.image_size=32 data.batch_size=128"
RECIPES = {  # later settings win
    "overfit": OVERFIT,
    "random_labels": f"{OVERFIT} data.label_noise=1.0",
    "regularized": f"{ALEXNET} model.dropout=0.5 model.optimizer.weight_decay=0.0001 data.split=full "
    "data.stand_in=false",
    "vgg11": f"{PAPER} model.configuration=A",
    "vgg16": PAPER,
    "vgg16_32": SMALL_IMAGES,
    "vgg16_bn_32": f"{SMALL_IMAGES} model.batch_norm=true {NORMAL} model.initialization.std=0.01",
    "vgg16_notebook": f"{VGG} model.softmax=true {NORMAL} model.initialization.std=0.1 trainer.max_epochs=5 "
    "model.lr_scheduler=torch.optim.lr_scheduler.StepLR model.lr_scheduler.step_size=25 model.lr_scheduler.gamma=0.1 "
    "data.augment=notebook data.image_size=224 data.batch_size=32 data.mean=[0.4914,0.4822,0.4465] "
    "data.std=[0.247,0.243,0.261]",
}


def settings_of(config: Any) -> dict[str, Any]:
    """Return all settings of a configuration, as flags name them."""
    settings = {
        key: list(value) if isinstance(value, tuple) else value for key, value in flat(config.as_dict()).items()
    }
    return {key: value for key, value in settings.items() if key != "config"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str, parse: Parse) -> None:
    settings = settings_of(parse(f"--config={name}.yaml"))
    expected = {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in RECIPES[name].split())}
    assert settings["experiment"] == name
    assert {key: settings.get(key) for key in expected} == expected
    callbacks = [(callback["class_path"], callback["init_args"]) for callback in settings["trainer.callbacks"] or []]
    stop = ("overfitting_lab.callbacks.plateau.PlateauSchedule", {"reductions": 3})
    assert callbacks == [stop] * (PLATEAU in RECIPES[name])


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
def test_initialization_is_a_flag(flags: str, expected: dict[str, Any], parse: Parse) -> None:
    chosen = parse("--config=vgg16_32", "--model.initialization", *flags.split()).model.init_args.initialization
    assert chosen.class_path == f"lightning_modules.initialization.{flags.split()[0]}"
    assert vars(chosen.init_args).items() >= expected.items()


@pytest.mark.parametrize(("split", "augment"), [("overfit", "none"), ("full", "flip_crop")])
def test_augmentation_that_the_recipes_leave_to_the_split(split: Any, augment: str) -> None:
    assert CIFAR10DataModule(split=split).augment == augment


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("overlay", "optimizer"),
    [
        ("adam", {"": "torch.optim.Adam", ".lr": 1e-4, ".momentum": None}),
        ("sgd_momentum", {"": "torch.optim.SGD", ".lr": 0.001, ".momentum": 0.9}),
        ("adamw", {"": "torch.optim.AdamW", ".lr": 1e-4, ".momentum": None, ".weight_decay": 10.0}),
    ],
)
def test_overlay_changes_the_optimizer_alone(name: str, overlay: str, optimizer: dict[str, Any], parse: Parse) -> None:
    before = settings_of(parse(f"--config={name}"))
    after = settings_of(parse(f"--config={name}", f"--config=optimizer/{overlay}"))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {key for key in changed if not f"{key}.".startswith("model.optimizer.")} == set()
    assert {key: after.get(f"model.optimizer{key}") for key in optimizer} == optimizer
    decay = "model.optimizer.weight_decay"
    if overlay != "adamw":  # whose decay is decoupled, and not comparable
        assert after[decay] == before[decay], "weight decay is a remedy of the experiment, not of the optimizer"


@pytest.mark.parametrize("flag", ["--trainer.fast_dev_run=true", "--trainer.logger=false"])
def test_a_run_without_a_logger_keeps_nothing(run_script: Script, quick: Flags, tmp_path: Path, flag: str) -> None:
    outcome = run_script("fit", "--config", "overfit", *quick, "--trainer.max_epochs=1", flag)
    assert outcome.status == 0, outcome.err
    assert "nothing is kept" in outcome.out
    assert "test images of tiny" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_other_optimizer_schedule_and_precision(run_script: Script, tiny: Flags, tmp_path: Path) -> None:
    flags = (
        "--model.optimizer=torch.optim.RMSprop",
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
    summary = Run(tmp_path / RUN).summary
    assert (summary.optimizer["class_path"], summary.precision) == ("torch.optim.RMSprop", "32-true")
    assert "precision: 32-true\n" in (tmp_path / RUN / "config.yaml").read_text()
    assert "precision  32-true (as asked for)" in outcome.out
    assert "it/s" in outcome.out
    assert "Epoch 1/1 " in outcome.out
    assert "Epoch 0" not in outcome.out
    assert "epoch   1/1" not in outcome.out, "a line an epoch beside the progress bar"
    (row,) = Run(tmp_path / RUN).records
    assert row.learning_rate == pytest.approx(1e-4 / 25e4), "the cycle's end, at the last step"


def test_the_machine_decides_the_precision(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ("--trainer.precision=null", "--trainer.max_epochs=1")
    outcome = run_script("fit", "--config", "overfit.yaml", *quick, *flags)
    assert outcome.status == 0, outcome.err
    precision, _ = default_precision("cpu")
    assert Run(tmp_path / RUN).summary.precision == precision
    assert re.search(rf"^precision  {precision} \(this CPU .*bf16\)$", outcome.out, re.MULTILINE)
    assert f"precision: {precision}\n" in (tmp_path / RUN / "config.yaml").read_text()


def test_every_augmentation_is_shown_and_noted(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    flags = ("--config=overfit", *quick, "--data.image_size=32", "--data.augment=trivial", "--data.cutout=12")
    for check in ((), ("--check",)):
        outcome = run_script("fit", *flags, "--trainer.max_epochs=1", *check)
        assert outcome.status == 0, outcome.err
        assert "augmentation trivial, cutout 12\n" in outcome.out
    data = summary_of(tmp_path / RUN)["data"]
    assert (data["augment"], data["cutout"]) == ("trivial", 12)
    events = events_of(tmp_path / RUN)
    (tag,) = (tag for tag in events.Tags()["images"] if tag.startswith("training images of tiny"))
    grid = np.asarray(Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)))
    colours, counts = np.unique(grid.reshape(-1, 3), axis=0, return_counts=True)
    squares = counts[(colours > 0).all(1)].max()  # between the images, the picture is black
    assert squares > 20 * 6 * 6, "of one colour, and no smaller than a quarter of the square"


def test_vgg_trains(run_script: Script, tiny: Flags, tmp_path: Path) -> None:
    flags = ("--model.configuration=A", "--data.train_size=10", "--data.val_size=10", "--data.batch_size=10")
    size = ("--data.image_size=32", "--trainer.max_epochs=1")
    outcome = run_script("fit", "--config", "vgg16_32", *tiny, *flags, *size)
    assert outcome.status == 0, outcome.err
    summary = summary_of(tmp_path / "lightning_logs" / "vgg16_32" / "version_0")
    assert summary["model"]["class_path"] == "lightning_modules.VGG"
    assert summary["optimizer"]["class_path"] == "torch.optim.SGD"
    assert summary["data"]["augment"] == "flip_crop"
    assert (summary["status"], summary["epochs"], summary["test"]["images"]) == ("finished", 1, 45)


class Breaking(Callback):
    """Raise an error in the second epoch."""

    error: type[BaseException] = RuntimeError

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise self.error("the disk is on fire")


class Interrupting(Breaking):
    error = KeyboardInterrupt


def test_a_single_callback_need_not_be_a_list(run_script: Script, quick: Flags) -> None:
    callback = f"--trainer.callbacks={Breaking.__module__}.Breaking"  # this run has no second epoch
    outcome = run_script("fit", "--config", "overfit", *quick, "--trainer.fast_dev_run=true", callback)
    assert outcome.status == 0, outcome.err
    assert "nothing is kept" in outcome.out


@pytest.fixture
def sigint() -> Iterator[None]:
    """Restore the handler of Ctrl-C, which Lightning ignores from the first one on."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def measured(record: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value for name, value in record.items() if value is not None and name != "own"}


def check_interrupted(folder: Path, status: str, reason: str) -> None:
    summary = summary_of(folder)
    assert summary.items() >= {"status": status, "reason": reason, "epochs": 1}.items()
    assert summary["last"]["epoch"] == 0
    assert "test" not in summary
    assert len(Run(folder).records) == 1
    assert (folder / "curves.png").is_file()


def test_failed_run_says_so(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    callback = f"--trainer.callbacks+={Breaking.__module__}.Breaking"
    outcome = run_script("fit", "--config", "overfit.yaml", *quick, callback)
    assert outcome.status == 1
    assert "on fire" in outcome.err
    check_interrupted(tmp_path / RUN, "failed", "RuntimeError: the disk is on fire")


@pytest.mark.usefixtures("sigint")
def test_interrupted_run_says_so(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    callback = f"--trainer.callbacks+={Interrupting.__module__}.Interrupting"
    outcome = run_script("fit", "--config", "overfit.yaml", *quick, callback)
    assert outcome.status != 0
    assert f"interrupted; what there is so far is in {RUN}" in outcome.err
    assert "Traceback" not in outcome.err
    check_interrupted(tmp_path / RUN, "interrupted", "interrupted by the user")


# 81 and 41 images in batches of 20 leave a step of one image, of which one process has none.
# Adam would blow up the difference of the sums' order: its first steps divide by gradients near 0.
SGD = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-4")
UNEVEN = ("--data.train_size=81", "--data.val_size=41", "--trainer.precision=32-true", *SGD)
# Each process has its share of these too.
MIXED = ("--data.mixup=0.5", "--data.cutmix=1", "--model.label_smoothing=0.1", "--data.label_noise=0.3")


@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        pytest.param(
            [],
            ["--config=averaging/ema", "--config=early_stopping", "--trainer.callbacks.patience=2"],
            marks=pytest.mark.thorough,
        ),
        pytest.param(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"], [], marks=pytest.mark.long),
    ],
    ids=["lightning", "torchrun"],
)
def test_two_processes_train_as_one(
    run_script: Script, tiny: Flags, tmp_path: Path, launcher: list[str], more: list[str]
) -> None:
    arguments = ["--config", "overfit.yaml", *tiny, *UNEVEN, *MIXED, *more]
    assert run_script("fit", *arguments).status == 0
    flags = ("--trainer.devices=2", "--trainer.strategy=ddp")
    outcome = run_python(tmp_path, *launcher, str(ROOT / "scripts" / "fit.py"), *arguments, *flags)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert "sync_dist" not in outcome.stderr, "the values are those of both processes already"
    folders = sorted((tmp_path / RUN).parent.iterdir())
    assert [folder.name for folder in folders] == ["version_0", "version_1"]
    files = [sorted(re.sub(r"(tfevents)\..*", r"\1", path.name) for path in folder.rglob("*")) for folder in folders]
    assert files[0] == files[1], "the second process wrote files of its own"
    one, two = map(summary_of, folders)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["data"] == two["data"]
    assert one["test"]["images"] == two["test"]["images"] == 45
    assert two["test"]["loss"] == pytest.approx(one["test"]["loss"], rel=TOLERANCE)
    ones, twos = ([asdict(record) for record in timeless(folder)] for folder in folders)
    assert len(ones) == 2
    assert [measured(record) for record in twos] == [pytest.approx(measured(record), rel=TOLERANCE) for record in ones]
    assert all({"probe_acc", "probe_memorized_acc"} <= measured(record).keys() for record in twos)
    losses, together = (scalars_of(folder)["steps/loss"] for folder in folders)
    assert together == [(step, pytest.approx(loss, rel=TOLERANCE)) for step, loss in losses]


def test_the_network_is_compiled_on_request(
    run_script: Script, tiny: Flags, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The compiler is torch's, but runs the layers that it has found as they are."""
    modes: list[str] = []
    convolutions: list[int] = []
    steps: list[int] = []
    torchs = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        convolutions.append(sum("conv" in str(node.target) for node in graph.graph.nodes))

        def counted(*arguments: Any) -> Any:
            steps.append(1)
            return graph.forward(*arguments)

        return counted

    def compiled(function: Callable[..., Any], *, mode: str, **settings: Any) -> Callable[..., Any]:
        modes.append(mode)
        return torchs(function, backend=backend, **settings)

    monkeypatch.setattr(torch, "compile", compiled)
    assert run_script("fit", "--config=overfit", *tiny, "--compile=reduce-overhead").status == 0
    assert modes == ["reduce-overhead"]
    assert min(convolutions) >= 2
    assert len(steps) == 10  # two epochs of five steps, and no validation
    assert "0.weight" in weights_of(tmp_path / RUN)


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.accumulate_grad_batches=2"],
        ["--trainer.callbacks=GradientAccumulationScheduler", '--trainer.callbacks.scheduling={"0": 2}'],
    ],
)
def test_graphs_that_would_lose_gradients_are_refused(flags: list[str], run_script: Script, quick: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--compile=reduce-overhead", *flags)
    check_one_message(outcome, 2)
    assert "--compile reduce-overhead loses gradients" in outcome.err


def test_a_short_trial_may_test_fewer_images(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--data.test_size=20")
    assert outcome.status == 0, outcome.err
    (line,) = re.findall("^test .*$", outcome.out, re.MULTILINE)
    assert " on 20 of 45 test images of tiny" in line
    assert "50 validation, 20 of 45 test images" in outcome.out
    summary, images = summary_of(tmp_path / RUN), Run(tmp_path / RUN).images
    assert (summary["test"]["images"], summary["data"]["test_size"], summary["data"]["test_available"]) == (20, 20, 45)
    assert len(set(images["test_labels"].tolist())) == 3, "not the first ones, which are of one class"
    brightness = images["test_pictures"].mean(axis=(1, 2, 3))  # by which the fixture's classes differ
    shown = images["test_labels"][images["test_shown"]]
    assert len(shown)
    assert [round((each - 64) / 60) for each in brightness] == shown.tolist()
    page = run_script("compare", tmp_path / RUN)
    assert page.status == 0, page.err
    assert "20 of 45" in (tmp_path / "report/overfit/report.md").read_text()
    assert "20 of 45 test images" in run_script("test", tmp_path / RUN).out


def test_a_run_may_keep_weights_alone(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--keep=weights")
    assert outcome.status == 0, outcome.err
    assert [path.name for path in (tmp_path / RUN / "checkpoints").iterdir()] == ["best.ckpt"]
    assert (tmp_path / RUN / "weights.pth").is_file()
    assert run_script("test", tmp_path / RUN).status == 0
    resumed = run_script("fit", "--resume", RUN, "--trainer.max_epochs=4")
    assert resumed.status == 1
    assert "(--keep weights discards it)" in resumed.err


class Readings(Callback):
    """Count the values that ten steps read from tensors, for each of which a GPU would have to wait."""

    stack = ExitStack()

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            aten = torch.ops.aten
            reads = (aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default)
            Readings.Mode.count += func in reads
            return func(*args, **(kwargs or {}))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 21:
            self.stack.enter_context(Readings.Mode())  # type: ignore[no-untyped-call]
        if trainer.global_step == 31:
            self.stack.close()


def test_steps_read_no_value(run_script: Script, quick: Flags) -> None:
    """The doctor's readings on a CPU and the points of curves aside."""
    Readings.Mode.count = 0
    data = ("--data.batch_size=2", "--data.augment=flip_crop", "--data.cutout=4", "--data.mixup=1", "--data.cutmix=1")
    rest = ("--doctor=off", "--trainer.log_every_n_steps=50", f"--trainer.callbacks={__name__}.Readings")
    outcome = run_script("fit", "--config=overfit", *quick, *data, *rest)
    assert outcome.status == 0, outcome.err
    assert Readings.Mode.count == 0
