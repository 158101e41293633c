"""Each parameter of the Trainer does what Lightning documents, or is refused with one message."""

import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch.optim import Optimizer

from overfitting_lab.cli.trainer_flags import TRAINER_FLAGS
from tests.conftest import FinishedRun, Flags, Outcome, Script, summary_of

FIRST = Path("lightning_logs", "overfit", "version_0")
ON_CPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU takes values that a CPU refuses")

# Two values or more of each flag that are refused, with words of the reason.
REFUSED: dict[str, list[tuple[str, str]]] = {
    "accelerator": [],  # see ALONE: it decides about others
    "strategy": [
        ("ddp_spawn", "use ddp"),
        ("ddp_fork_find_unused_parameters_true", "use ddp"),
        ("fsdp", "so ddp is enough"),
        ("deepspeed_stage_2", "so ddp is enough"),
        ("single_device", "give --trainer.devices 1"),
    ],
    "devices": [(value, "at least 1") for value in ("0", "-1", "[0]", "0,1", "1.5", "many")],
    "num_nodes": [("0", "at least 1"), ("-1", "at least 1")],
    "precision": [(value, "needs a GPU") for value in ("16-mixed", "16", "16-true")]
    + [("transformer-engine", "say bf16-mixed")],
    "logger": [],  # false is refused with --resume
    "callbacks": [],
    "fast_dev_run": [("-1", "at least 1")],
    "max_epochs": [("0", "at least 1"), ("-2", "at least 1")],
    "min_epochs": [("9", "which ends training first"), ("-1", "at least 0")],
    "max_steps": [("0", "at least 1"), ("-2", "at least 1")],
    "min_steps": [("-1", "at least 0"), ("-9", "at least 0")],
    "max_time": [(value, "above zero") for value in ("00:00:00:00", "{secs: 2}", "{seconds: -2}", "00:00:15", "soon")],
    "limit_train_batches": [("0", "trains nothing"), ("0.0", "trains nothing"), ("-1", "whole"), ("1.5", "whole")],
    "limit_val_batches": [("-1", "whole"), ("1.5", "whole"), (".inf", "whole")],
    "limit_test_batches": [("-1", "whole"), ("2.5", "whole")],
    "limit_predict_batches": [("1", "has no effect"), ("0.5", "has no effect")],
    "overfit_batches": [("1", "--data.train_size"), ("0.1", "--data.train_size")],
    "val_check_interval": [("0", "never validate"), ("-1", "whole"), ("1.5", "whole"), ("often", "above zero")],
    "check_val_every_n_epoch": [("0", "at least 1"), ("-1", "at least 1")],
    "num_sanity_val_steps": [("-2", "at least -1")],
    "log_every_n_steps": [("0", "at least 1"), ("-1", "at least 1")],
    "enable_checkpointing": [],
    "enable_progress_bar": [],
    "enable_model_summary": [],
    "accumulate_grad_batches": [("0", "at least 1"), ("-1", "at least 1")],
    "gradient_clip_val": [("-1", "at least 0"), (".inf", "at least 0"), (".nan", "at least 0")],
    "gradient_clip_algorithm": [("both", "norm or value"), ("l2", "norm or value")],
    "deterministic": [],
    "benchmark": [],  # true is refused with --trainer.deterministic
    "inference_mode": [],
    "use_distributed_sampler": [],
    "profiler": [("xla", "simple, advanced"), ("fast", "simple, advanced")],
    "detect_anomaly": [],
    "barebones": [("true", "scripts/benchmark.py")],
    "plugins": [
        ("lightning.pytorch.plugins.io.TorchCheckpointIO", "survive a crash"),
        ("lightning.pytorch.plugins.precision.DoublePrecision", "--trainer.precision"),
    ],
    "sync_batchnorm": [],  # true is refused for several processes on a CPU
    "reload_dataloaders_every_n_epochs": [("-1", "at least 0")],
    "default_root_dir": [("s3://bucket/runs", "folder of this machine")],
    "enable_autolog_hparams": [],
    "model_registry": [("mine", "has no effect"), ("mine:version:2", "has no effect")],
}
TURNS = range(max(map(len, REFUSED.values())))
ALONE = {  # flags of which one is refused, because of the other if there is one
    "TPU": ("accelerator=tpu", "must be one of auto, cpu, gpu, cuda, mps"),
    "GPU": ("accelerator=gpu", "has no GPU"),
    "CUDA": ("accelerator=cuda", "has no GPU"),
    "Apple's GPU": ("accelerator=mps", "has no GPU"),
    "fraction of all epochs": ("val_check_interval=0.5 check_val_every_n_epoch=null", "whole number of batches"),
    "minimum of steps": ("min_steps=5 max_steps=3", "above --trainer.max_steps 3"),
    "algorithm alone": ("gradient_clip_algorithm=value", "--trainer.gradient_clip_val"),
    "kernels": ("benchmark=true deterministic=true", "contradicts"),
    "normalization": ("sync_batchnorm=true devices=2", "needs GPUs"),
    "start method": ("strategy=lightning.pytorch.strategies.DDPStrategy strategy.start_method=fork", "use ddp"),
}


def trainer_flags(**values: object) -> list[str]:
    return [f"--trainer.{name}={value}" for name, value in values.items()]


def refusals(outcome: Outcome) -> dict[str, str]:
    """Return the value and the reason in each line of a message, by flag."""
    assert outcome.status == 2
    message = outcome.err.partition("error: ")[2].rpartition("\nhelp: ")[0]
    lines = [line.strip().removeprefix("--trainer.").partition(" ") for line in message.splitlines()]
    return {name: rest for name, _, rest in lines}


def test_every_parameter_of_the_trainer_has_an_entry_and_values_that_are_tried() -> None:
    parameters = list(inspect.signature(Trainer.__init__).parameters)[1:]
    assert list(TRAINER_FLAGS) == parameters
    assert list(REFUSED) == parameters
    assert list(HONOURED) == parameters
    for name, flag in TRAINER_FLAGS.items():
        assert flag.verdict != "honoured" or not REFUSED[name]
        assert flag.verdict != "refused" or REFUSED[name]


@ON_CPU
@pytest.mark.parametrize("turn", TURNS)
def test_values_that_are_refused(turn: int, run_script: Script, tiny: Flags, tmp_path: Path) -> None:
    wrong = {name: values[turn] for name, values in REFUSED.items() if turn < len(values)}
    flags = trainer_flags(**{name: value for name, (value, _) in wrong.items()})
    outcome = run_script("fit", "--config", "overfit", *tiny, *flags, *["--check"] * (turn % 2))
    found = refusals(outcome)
    assert found.keys() == wrong.keys()
    for name, (value, reason) in wrong.items():
        typed, _, said = found[name].partition(": ")
        assert reason in found[name], name
        assert said
        assert "[" in typed or "{" in typed or "." in value or typed == value
    assert list(tmp_path.iterdir()) == []


@ON_CPU
@pytest.mark.parametrize(("flags", "reason"), [pytest.param(*case, id=name) for name, case in ALONE.items()])
def test_a_value_that_is_refused_alone(flags: str, reason: str, run_script: Script, tiny: Flags) -> None:
    outcome = run_script("fit", "--config", "overfit", *tiny, *(f"--trainer.{flag}" for flag in flags.split()))
    assert [reason in said for said in refusals(outcome).values()] == [True]


class Witness(Callback):
    """Note what a run does."""

    seen: dict[str, Any]  # of the last run

    def __init__(self) -> None:
        Witness.seen = {"validated": [], "train": 0, "val": 0, "test": 0, "sanity": 0, "clipped": [], "loaders": set()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen |= {"trainer": trainer, "deterministic": torch.are_deterministic_algorithms_enabled()}
        self.seen |= {"benchmark": torch.backends.cudnn.benchmark, "device": pl_module.device.type}

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.seen["train"] += 1
        self.seen["anomaly"] = torch.is_anomaly_enabled()
        self.seen["loaders"].add(id(trainer.train_dataloader))

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = [weights.grad for weights in pl_module.parameters() if weights.grad is not None]
        if gradients:
            self.seen["clipped"].append(float(torch.nn.utils.get_total_norm(gradients, float("inf"))))

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.seen["sanity" if trainer.sanity_checking else "val"] += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen["validated"].append((trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx + 1))

    def on_test_batch_end(self, *_: Any) -> None:
        self.seen["test"] += 1
        self.seen["inference"] = torch.is_inference_mode_enabled()


class Seen(NamedTuple):
    """The steps, output and folder of a run."""

    run: dict[str, Any]
    out: str
    home: Path

    @property
    def trainer(self) -> Any:
        return self.run["trainer"]

    @property
    def folder(self) -> Path:
        return self.home / "runs" / FIRST


Effect = Callable[[Seen], object]  # true if the flag had its effect


def accepted(_: Seen) -> bool:
    """Of a value that is only taken: it changes nothing, or nothing that such a short run could show."""
    return True


# A value of each flag for two runs: five batches of 20 images an epoch, three of validation, three of the test.
HONOURED: dict[str, tuple[tuple[str, Effect], tuple[str, Effect]]] = {
    "accelerator": (("cpu", lambda seen: seen.run["device"] == "cpu"), ("cpu", accepted)),
    "strategy": (("auto", lambda seen: seen.trainer.world_size == 1), ("auto", accepted)),
    "devices": (
        ("1", lambda seen: seen.trainer.num_devices == 1),
        ("auto", lambda seen: seen.trainer.num_devices == 1),
    ),
    "num_nodes": (("1", lambda seen: seen.trainer.num_nodes == 1), ("1", accepted)),
    "precision": (
        ("32-true", lambda seen: "precision  32-true" in seen.out),
        ("64-true", lambda seen: "precision  64-true" in seen.out),
    ),
    "logger": (
        ("CSVLogger", lambda seen: len(seen.trainer.loggers) == 2),
        ("false", lambda seen: "nothing is kept" in seen.out and not seen.folder.exists()),
    ),
    "callbacks": ((f"{__name__}.Witness", lambda seen: seen.run["train"]),) * 2,
    "fast_dev_run": (
        ("false", lambda seen: summary_of(seen.folder)["status"] == "finished"),
        ("2", lambda seen: [seen.run[split] for split in ("train", "val", "test")] == [2, 2, 2]),
    ),
    "max_epochs": (
        ("3", lambda seen: summary_of(seen.folder)["epochs"] == 3),
        ("-1", lambda seen: seen.trainer.current_epoch == 1),  # of fast_dev_run
    ),
    "min_epochs": (("1", lambda seen: seen.trainer.min_epochs == 1), ("0", accepted)),
    "max_steps": (("5", lambda seen: seen.trainer.global_step == 5), ("-1", accepted)),
    "min_steps": (("4", lambda seen: seen.trainer.min_steps == 4), ("0", accepted)),
    "max_time": (
        ("00:01:00:00", lambda seen: 3000 < timer(seen).time_remaining() <= 3600),
        ("{hours: 2}", lambda seen: 6000 < timer(seen).time_remaining() <= 7200),
    ),
    "limit_train_batches": (
        ("0.8", lambda seen: seen.run["train"] == 3 * 4 - 2),  # the fifth step is the third epoch's first
        ("3", lambda seen: seen.run["train"] == 2),  # of fast_dev_run
    ),
    "limit_val_batches": (("2", lambda seen: seen.run["val"] == 2 * 2), ("1.0", accepted)),
    "limit_test_batches": (
        ("1", lambda seen: summary_of(seen.folder)["test"]["images"] == 20),
        ("0", accepted),
    ),
    "limit_predict_batches": (("null", accepted),) * 2,
    "overfit_batches": (("0", lambda seen: seen.run["train"] == 10), ("0.0", accepted)),
    "val_check_interval": (
        ("2", lambda seen: seen.run["validated"] == [(1, 2), (1, 4)]),
        ("00:00:00:20", accepted),
    ),
    "check_val_every_n_epoch": (
        ("2", lambda seen: {epoch for epoch, _ in seen.run["validated"]} == {1}),
        ("null", accepted),
    ),
    "num_sanity_val_steps": (("-1", lambda seen: seen.run["sanity"] == 2), ("0", lambda seen: not seen.run["sanity"])),
    "log_every_n_steps": (("2", lambda seen: seen.trainer.log_every_n_steps == 2), ("1", accepted)),
    "enable_checkpointing": (
        ("true", lambda seen: (seen.folder / "checkpoints" / "last.ckpt").is_file()),
        ("false", lambda seen: not seen.trainer.checkpoint_callbacks),
    ),
    "enable_progress_bar": (
        ("false", lambda seen: "epoch   1/3  training loss" in seen.out),
        ("true", lambda seen: "epoch   1" not in seen.out),
    ),
    "enable_model_summary": (
        ("true", lambda seen: "AlexNet, " in seen.out),
        ("false", lambda seen: "AlexNet, " not in seen.out),
    ),
    "accumulate_grad_batches": (("2", lambda seen: seen.trainer.global_step == 5), ("1", accepted)),
    "gradient_clip_val": (
        ("0.01", lambda seen: seen.run["clipped"] and max(seen.run["clipped"]) <= 0.01),
        ("0", lambda seen: max(seen.run["clipped"]) > 0.01),
    ),
    "gradient_clip_algorithm": (
        ("value", lambda seen: max(seen.run["clipped"]) == pytest.approx(0.01)),
        ("null", accepted),
    ),
    "deterministic": (
        ("true", lambda seen: seen.run["deterministic"]),
        ("false", lambda seen: not seen.run["deterministic"]),
    ),
    "benchmark": (("false", lambda seen: not seen.run["benchmark"]), ("true", lambda seen: seen.run["benchmark"])),
    "inference_mode": (("false", lambda seen: not seen.run["inference"]), ("true", lambda seen: seen.run["inference"])),
    "use_distributed_sampler": (("false", accepted), ("true", accepted)),
    "profiler": (
        ("SimpleProfiler", lambda seen: "run_training_epoch" in (seen.folder / "fit-times.txt").read_text()),
        ("null", accepted),
    ),
    "detect_anomaly": (("true", lambda seen: seen.run["anomaly"]), ("false", lambda seen: not seen.run["anomaly"])),
    "barebones": (("false", accepted),) * 2,
    "plugins": (
        ("lightning.pytorch.plugins.environments.LightningEnvironment", accepted),
        ("null", accepted),
    ),
    "sync_batchnorm": (("true", accepted), ("false", accepted)),
    "reload_dataloaders_every_n_epochs": (("1", lambda seen: len(seen.run["loaders"]) > 1), ("0", accepted)),
    "default_root_dir": (
        ("~/runs", lambda seen: seen.folder.is_dir()),
        ("~/runs", lambda seen: not (seen.home / "runs").exists()),
    ),
    "enable_autolog_hparams": (("false", accepted), ("true", accepted)),
    "model_registry": (("null", accepted),) * 2,
}


def timer(seen: Seen) -> Any:
    return next(callback for callback in seen.trainer.callbacks if isinstance(callback, Timer))


@pytest.fixture
def torch_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore what the Trainer sets for the whole process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)
    torch.backends.cudnn.benchmark = benchmark


@pytest.mark.usefixtures("torch_settings")
@pytest.mark.parametrize("turn", [0, 1])
def test_values_that_are_honoured(
    turn: int, run_script: Script, tiny: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = trainer_flags(**{name: tried[turn][0] for name, tried in HONOURED.items()})
    if turn == 0:
        flags += trainer_flags(**{"logger.save_dir": tmp_path / "csv", "profiler.filename": "times"})
    outcome = run_script("fit", "--config", "overfit", *tiny, *flags, "--data.probe_every=0")
    assert outcome.status == 0, outcome.err
    seen = Seen(Witness.seen, outcome.out, tmp_path)
    assert [name for name, tried in HONOURED.items() if not tried[turn][1](seen)] == []
    assert not (tmp_path / "~").exists()


# What only the data can tell: five batches of 20 images an epoch, three of validation, three of the test.
UNFIT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "fractions": (
        {"limit_train_batches": 0.01, "limit_val_batches": 0.1, "limit_test_batches": 0.3},
        ["at least 0.2", "at least 0.33", "at least 0.33"],
    ),
    "longer than the epoch": (
        {"accumulate_grad_batches": 6, "min_steps": 50, "val_check_interval": 100},
        [
            "an epoch has 5 batches",
            "the run ends after 2 steps",
            "an epoch has 5 batches, so it is never validated",
        ],
    ),
    "longer than the run": (
        {"check_val_every_n_epoch": "null", "val_check_interval": 11},
        ["the run has 10 batches, so it is never validated"],
    ),
    "longer than the steps": (
        {"check_val_every_n_epoch": "null", "val_check_interval": 8, "max_steps": 7},
        ["the run has 7 batches, so it is never validated"],
    ),
    "more epochs than there are": ({"check_val_every_n_epoch": 3}, ["the run has 2 whole epochs, so it is never"]),
    "a duration that YAML reads as a number": ({"val_check_interval": "1:00:00:00"}, ["two digits of days"]),
}


def check_unfit(outcome: Outcome, reasons: list[str]) -> None:
    assert outcome.status == 2
    lines = outcome.err.splitlines()
    assert len(lines) == len(reasons)
    assert lines[0].startswith("error: --trainer.")
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line


@pytest.mark.parametrize(("flags", "reasons"), [pytest.param(*case, id=name) for name, case in UNFIT.items()])
def test_limits_that_do_not_fit_the_data(
    flags: dict[str, Any], reasons: list[str], run_script: Script, tiny: Flags, tmp_path: Path
) -> None:
    check_unfit(run_script("fit", "--config", "overfit", *tiny, *trainer_flags(**flags)), reasons)
    assert list(tmp_path.glob("lightning_logs/*/*")) == []


def test_check_refuses_limits_that_do_not_fit_the_data(run_script: Script, tiny: Flags) -> None:
    flags, reasons = UNFIT["longer than the epoch"]
    check_unfit(run_script("fit", "--config", "overfit", *tiny, *trainer_flags(**flags), "--check"), reasons)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        ({"max_epochs": 5, "val_check_interval": 100}, 2, "--trainer.val_check_interval 100: an epoch has 5 batches"),
        ({"accumulate_grad_batches": 0}, 2, "--trainer.accumulate_grad_batches 0: must be at least 1"),
        ({"fast_dev_run": "true"}, 2, "--trainer.fast_dev_run true: would train nothing"),
        ({"logger": "false", "max_epochs": 5}, 2, "--trainer.logger false: keeps nothing"),
    ],
)
def test_a_run_whose_resumption_is_refused_stays_as_it_was(
    flags: dict[str, Any], status: int, words: str, finished_run: FinishedRun, run_script: Script, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run.folder, tmp_path / "lightning_logs" / "overfit" / "version_0"))
    before = contents(run)
    outcome = run_script("fit", "--resume", run, *trainer_flags(**flags))
    assert outcome.status == status
    assert words in outcome.err
    assert contents(run) == before


@pytest.mark.thorough
def test_an_earlier_run_with_a_flag_that_is_refused_now(
    finished_run: FinishedRun, run_script: Script, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run.folder, tmp_path / "lightning_logs" / "overfit" / "version_0"))
    config = (run / "config.yaml").read_text()
    earlier = {"overfit_batches": (0.0, 1), "check_val_every_n_epoch": (1, -1), "accumulate_grad_batches": (1, -1)}
    for name, (usual, refused) in earlier.items():
        assert f"  {name}: {usual}\n" in config
        config = config.replace(f"  {name}: {usual}\n", f"  {name}: {refused}\n")
    (run / "config.yaml").write_text(config)
    outcome = run_script("test", run)
    assert outcome.status == 0, outcome.err
    assert "45 test images" in outcome.out
    outcome = run_script("test", run, "--trainer.devices=0")
    assert refusals(outcome).keys() == {"devices"}
    outcome = run_script("test", run, "--trainer.limit_test_batches=0")
    assert (outcome.status, "nothing to test" in outcome.err) == (1, True)
    outcome = run_script("export", run, "--formats=pth")
    assert outcome.status == 0, outcome.err
    outcome = run_script("fit", "--resume", run, "--trainer.max_epochs=5", "--trainer.overfit_batches=0")
    assert {"check_val_every_n_epoch", "accumulate_grad_batches"} < refusals(outcome).keys()
    assert str(run / "config.yaml") in outcome.err


@pytest.mark.parametrize("flag", ["--keep=weights", "--checkpoint_steps=5", "--checkpoint_minutes=1"])
def test_a_setting_of_checkpoints_without_checkpoints(run_script: Script, quick: Flags, flag: str) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--trainer.enable_checkpointing=false", flag)
    assert outcome.status == 2
    said = f"--trainer.enable_checkpointing False: writes no checkpoint, so that {flag.partition('=')[0]} does nothing"
    assert said in outcome.err.replace("false", "False")


def test_a_resumed_run_keeps_its_checkpoints(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    assert run_script("fit", "--config=overfit", *quick).status == 0
    more = ("--trainer.max_epochs=3", "--trainer.enable_checkpointing=false")
    outcome = run_script("fit", "--resume", "lightning_logs/overfit/version_0", *more)
    assert outcome.status == 2
    assert "keeps no state, but a resumed run replaces its checkpoints: leave it out" in outcome.err
