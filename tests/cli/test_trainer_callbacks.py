import logging
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from lightning.pytorch import callbacks

from datamodules import CIFAR10DataModule
from overfitting_lab.callbacks.averaging import MeanOfLastEpochs
from overfitting_lab.cli.trainer_callbacks import CONTRACTS
from overfitting_lab.runs import Run
from tests.conftest import Flags, Script, summary_of, timeless, weights_of
from tests.networks import linear_classifier, quiet_trainer
from tests.scripts.test_errors import check_one_message
from tests.scripts.test_resume import differences

FIRST = Path("lightning_logs/overfit/version_0")
EMA = ("EMAWeightAveraging", "decay=0.8")
WORKING = (  # sets of callbacks that work in one run
    (
        ("EarlyStopping", "monitor=train_loss", "patience=9"),
        ("GradientAccumulationScheduler", 'scheduling={"1": 2}'),
        ("LambdaCallback", "on_fit_start=tests.observers.hello"),
        ("LearningRateMonitor",),
        ("ModelCheckpoint", "save_last=true", "filename=best", "monitor=val_acc", "mode=max"),
        ("ModelCheckpoint",),
        ("RichModelSummary",),
        ("TQDMProgressBar",),
        EMA,
    ),
    (
        ("DeviceStatsMonitor", "cpu_stats=false"),
        ("ModelSummary",),
        ("RichProgressBar",),
        ("ThroughputMonitor", "batch_size_fn=tests.observers.size"),
        ("WeightAveraging",),
    ),
)


def flags_of(given: Sequence[Sequence[str]]) -> list[str]:
    """Return the flags that give callbacks with their settings."""
    return [f"--trainer.callbacks{flag}" for name, *settings in given
            for flag in (f"+={name}", *(f".{each}" for each in settings))]  # fmt: skip


@pytest.fixture
def fit(quick: Flags) -> list[str]:
    return ["--config=overfit", *quick, "--trainer.precision=32-true", "--data.stand_in=false"]


def test_each_callback_of_lightning_has_a_contract_and_is_tried() -> None:
    assert CONTRACTS.keys() == set(callbacks.__all__)
    tried = {name for given in WORKING for name, *_ in given}
    assert {name for name, contract in CONTRACTS.items() if contract.works} == tried


@pytest.mark.parametrize("name", [name for name, contract in CONTRACTS.items() if not contract.works])
def test_a_refused_callback_is_one_message(name: str, run_script: Script, fit: list[str], tmp_path: Path) -> None:
    outcome = run_script("fit", *fit, f"--trainer.callbacks+={name}")
    check_one_message(outcome, 2)
    assert f"--trainer.callbacks {name} is refused: {CONTRACTS[name].sentence}" in outcome.err
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`, you need to define")
@pytest.mark.parametrize("given", WORKING)
def test_callbacks_work_through_training_test_and_resume(
    given: Sequence[Sequence[str]],
    run_script: Script,
    fit: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fit = [*fit, "--trainer.max_epochs=3", "--model.dropout=0.5", *flags_of(given)]
    logging.getLogger("lightning.pytorch.callbacks.model_summary").addHandler(caplog.handler)
    outcome = run_script("fit", *fit)
    assert outcome.status == 0, outcome.err
    shown = outcome.out + caplog.text
    names = [name for name, *_ in given]
    assert ("hello from a function" in shown) == ("LambdaCallback" in names)
    assert "FLOPs" in shown, "Lightning's table of layers"
    assert "parameters\n" not in outcome.out, "this project's table of layers"
    whole = Path(shutil.move(FIRST, "whole"))
    tested = run_script("test", whole)
    assert tested.status == 0, tested.err
    assert f"accuracy {summary_of(whole)['test']['acc']:.2%}" in tested.out

    stop = ("tests.faults.KillOnce", "place=step", f"step={7}", f"mark={tmp_path / 'mark'}", "number=15")
    assert run_script("fit", *fit, *flags_of([stop])).status == 143
    resumed = run_script("fit", "--resume", FIRST)
    assert resumed.status == 0, resumed.err
    assert timeless(FIRST) == timeless(whole)
    assert differences(weights_of(FIRST), weights_of(whole)) == []
    states = [torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (FIRST, whole)]
    for state in states:
        state["callbacks"] = {key: value for key, value in state["callbacks"].items() if key in names}
    assert differences(*states) == []
    others = [sorted(path.name for path in Run(run).files.others.glob("*")) for run in (FIRST, whole)]
    assert others[0] == others[1]
    assert bool(others[0]) == ("ModelCheckpoint" in names)
    assert sorted(path.name for path in (FIRST / "checkpoints").glob("*.*")) == ["best.ckpt", "last.ckpt"]


def test_the_average_is_what_is_kept(run_script: Script, fit: list[str]) -> None:
    flags = flags_of([EMA, ("tests.observers.StepWeights",)])
    assert run_script("fit", *fit, "--trainer.max_epochs=1", *flags).status == 0
    first, *later = torch.load("weights.pt", weights_only=True)
    average = {name: value.double() for name, value in first.items()}
    for weights in later:
        average = {name: 0.8 * value + 0.2 * weights[name] for name, value in average.items()}
    last, best = (torch.load(FIRST / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best"))
    for kept in (best["state_dict"], last["state_dict"]):
        for name, value in average.items():
            torch.testing.assert_close(kept[name], value.float())
    assert differences(last["current_model_state"], later[-1]) == []
    assert (
        differences({f"network.{name}": value for name, value in weights_of(FIRST).items()}, best["state_dict"]) == []
    )


def test_the_average_is_the_network_until_its_first_update(run_script: Script, fit: list[str]) -> None:
    late = flags_of([("EMAWeightAveraging", "update_starting_at_step=1000")])
    for flags in ([], late):
        assert run_script("fit", *fit, *flags).status == 0
    plain, averaged = FIRST, FIRST.with_name("version_1")
    assert timeless(averaged) == timeless(plain)
    assert differences(weights_of(averaged), weights_of(plain)) == []
    assert Run(averaged).summary.test == Run(plain).summary.test


@pytest.fixture
def data(image_folder: Path) -> CIFAR10DataModule:
    return CIFAR10DataModule(str(image_folder), "folder", train_size=40, val_size=10, batch_size=10, augment="none")


def test_mean_of_last_epochs_is_what_stochastic_weight_averaging_takes(data: CIFAR10DataModule) -> None:
    """Lightning's class averages at the starts of epochs: its mean lacks the last epoch's end."""
    averaged = []
    for average, epochs in ((MeanOfLastEpochs(0.4), 3), (callbacks.StochasticWeightAveraging(0.1, 3, device=None), 4)):
        torch.manual_seed(0)
        network = linear_classifier(0.1)
        quiet_trainer(average, max_epochs=epochs).fit(network, datamodule=data)
        averaged.append(network.network.state_dict())
    assert averaged[0].keys() == averaged[1].keys()
    for name, value in averaged[0].items():
        torch.testing.assert_close(averaged[1][name], value)


TOGETHER = {
    "twice": ([("EarlyStopping", "monitor=val_loss")] * 2, "EarlyStopping twice"),
    "two averages": ([("EMAWeightAveraging",), ("WeightAveraging",)], "two averages"),
    "EMA from an epoch on": ([("EMAWeightAveraging", "update_starting_at_epoch=1")], "Give update_starting_at_step"),
    "our folder": ([("ModelCheckpoint", "dirpath=lightning_logs/overfit/version_0/checkpoints")], "leave dirpath out"),
    "above its folder": ([("ModelCheckpoint", "filename=../best")], "leave dirpath out"),
    "no psutil": ([("DeviceStatsMonitor",)], "pip install psutil"),
}


@pytest.mark.parametrize(("given", "words"), TOGETHER.values(), ids=TOGETHER)
def test_what_cannot_be_together_is_one_message(
    given: Sequence[Sequence[str]], words: str, run_script: Script, fit: list[str], tmp_path: Path
) -> None:
    if "psutil" in words and find_spec("psutil"):
        pytest.skip("psutil is there")
    outcome = run_script("fit", *fit, *flags_of(given))
    check_one_message(outcome, 2)
    assert words in outcome.err
    assert not list(tmp_path.glob("lightning_logs/*/*"))


@pytest.mark.parametrize(
    ("name", "setting", "flag"),
    [
        ("GradientAccumulationScheduler", 'scheduling={"0": 2}', "--trainer.accumulate_grad_batches=2"),
        ("LearningRateMonitor", "logging_interval=step", "--trainer.logger=false"),
    ],
)
def test_a_flag_that_excludes_a_callback_is_named(
    name: str, setting: str, flag: str, run_script: Script, fit: list[str]
) -> None:
    outcome = run_script("fit", *fit, *flags_of([(name, setting)]), flag)
    check_one_message(outcome, 2)
    assert name in outcome.err
    assert flag.partition("=")[0] in outcome.err
