import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from overfitting_lab.runs import Run
from tests.conftest import Flags, Script, execute, scalars_of, summary_of
from tests.scripts.test_resume import assert_same

FIRST = Path("lightning_logs/overfit/version_0")
UNDECAYED = "--model.decay_biases=false"
STEP_LR = ("--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=5")

PLATEAU = ("--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=val_loss")
RMSPROP = ("--model.optimizer=torch.optim.RMSprop", "--model.optimizer.lr=1e-4")
ACCUMULATED = "--trainer.accumulate_grad_batches=2"


EXPERIMENTS: dict[str, Sequence[str]] = {
    "overfit": (),
    "scheduled": STEP_LR,
    "plateau": PLATEAU,
    "grouped": (UNDECAYED,),
    "rms": RMSPROP,
    "within": ("--trainer.max_steps=7",),  # it ends within the second epoch
}


@pytest.fixture(scope="module")
def trained(tiny: Flags, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of two epochs of an experiment."""
    folder = tmp_path_factory.mktemp("trained")

    @cache
    def train(name: str) -> Path:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.chdir(folder)
            flags = (*tiny, *EXPERIMENTS[name], f"--experiment={name}")
            assert execute(monkeypatch, "fit", "--config=overfit", *flags) == 0
        return folder / "lightning_logs" / name

    return train


@pytest.fixture
def logs(trained: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that returns a copy of an experiment's run."""
    return lambda name: Path(shutil.copytree(trained(name), tmp_path / "lightning_logs" / name)) / "version_0"


@pytest.mark.parametrize("way", [f"--resume={FIRST}", "--ckpt_path"])
def test_a_changed_setting_of_the_optimizer_is_trained_with(
    way: str, run_script: Script, tiny: Flags, logs: Callable[[str], Path], tmp_path: Path
) -> None:
    logs("overfit")
    new_run = ["--config=overfit", *tiny, f"--ckpt_path={FIRST}/checkpoints/last.ckpt"]
    start = new_run if way == "--ckpt_path" else [way]
    changes = ("--model.optimizer.lr=1e-3", "--model.optimizer.weight_decay=0.1", "--trainer.max_epochs=3")
    outcome = run_script("fit", *start, *changes)
    assert outcome.status == 0, outcome.err
    run = Run(tmp_path / (FIRST if way != "--ckpt_path" else FIRST.with_name("version_1")))
    assert [record.learning_rate for record in run.records] == [1e-4, 1e-4, 1e-3]
    (group,) = torch.load(run.files.last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.1)


def test_a_changed_weight_decay_leaves_biases_alone(run_script: Script, logs: Callable[[str], Path]) -> None:
    run = logs("grouped")
    outcome = run_script("fit", "--resume", run, "--model.optimizer.weight_decay=0.1", "--trainer.max_epochs=3")
    assert outcome.status == 0, outcome.err
    groups = torch.load(Run(run).files.last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0]


@pytest.mark.thorough
def test_a_run_without_decay_of_biases_resumes_bit_for_bit(run_script: Script, tiny: Flags, tmp_path: Path) -> None:
    network = ("--model.batch_norm=true", "--model.width=0.5", UNDECAYED, "--trainer.callbacks+=LearningRateMonitor")
    schedule = ("OneCycleLR", "max_lr=1e-3", "total_steps=10")
    one_cycle = [f"--model.lr_scheduler{'.' if '=' in word else '='}{word}" for word in schedule]
    flags = ["--config=overfit", "--config=optimizer/adamw", *tiny, *network, *one_cycle]
    flags += ["--model.lr_scheduler_interval=step", "--data.stand_in=false"]
    flags.append("--doctor=off")  # after 7 steps it would report that the schedule is cut short
    end = "--trainer.max_steps=10"
    for command in ([*flags, "--trainer.max_steps=7"], ["--resume", FIRST, end], [*flags, end]):
        outcome = run_script("fit", *command)
        assert outcome.status == 0, outcome.err
    resumed, whole = tmp_path / FIRST, tmp_path / FIRST.with_name("version_1")
    assert_same(resumed, whole)

    groups = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(10, 8), (0, 8 + 2 * 5)]
    rates = [scalars_of(whole)[f"lr-AdamW/pg{number}"] for number in (1, 2)]
    assert rates[0] == rates[1]
    assert len(rates[0]) == 10
    optimizer = summary_of(resumed)["optimizer"]
    assert (optimizer["class_path"], optimizer["weight_decay"]) == ("torch.optim.AdamW", 10)
    assert optimizer["decay_biases"] is False
    exported = run_script("export", FIRST, "--formats", "pth")
    assert exported.status == 0, exported.err


@pytest.mark.parametrize(
    ("experiment", "change", "words"),
    [
        ("overfit", ["--model.optimizer=torch.optim.SGD"], "another optimizer: its class is Adam there and SGD here"),
        ("overfit", [UNDECAYED], "another optimizer: its decay_biases is True there and False here"),
        ("scheduled", [UNDECAYED], "another optimizer: its decay_biases is True there and False here"),
        ("overfit", STEP_LR, "another schedule: its class is None there and StepLR"),
        ("scheduled", ["--model.lr_scheduler.gamma=0.5"], r"another schedule: its gamma is 0\.1 there and 0\.5 here"),
        ("scheduled", ["--model.optimizer.lr=1e-3"], r"its base_lrs is \[0\.0001\] there and \[0\.001\] here"),
        ("plateau", ["--model.optimizer.lr=1e-3"], r"another schedule: its lr is 0\.0001 there and 0\.001 here"),
        ("overfit", ["--model.optimizer.amsgrad=true"], "another optimizer: its amsgrad is False there and True here"),
        ("rms", ["--model.optimizer.momentum=0.9"], r"another optimizer: its momentum is 0\.?0? there and 0\.9 here"),
        ("rms", ["--model.optimizer.centered=true"], "another optimizer: its centered is False there and True here"),
        (
            "within",
            [ACCUMULATED, "--trainer.max_steps=-1"],
            "--trainer.accumulate_grad_batches 1, or change it",
        ),
    ],
)
def test_a_change_that_the_state_cannot_take_is_refused(
    experiment: str, change: list[str], words: str, run_script: Script, logs: Callable[[str], Path]
) -> None:
    run = logs(experiment)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = run_script("fit", "--resume", run, "--trainer.max_epochs=3", *change)
    assert outcome.status == 1
    assert re.search(words, outcome.err)
    assert "Traceback" not in outcome.err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
