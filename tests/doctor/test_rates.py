"""CIFAR10_IMAGES=FOLDER pytest -n 0 -m long -s tests/doctor/test_rates.py.

Counts how often the doctor is wrong on real images. Sound runs of both networks, with both optimizers and several
seeds, must raise no alarm. Runs with a planted fault must name it. Prints a row for each run, and the two rates.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import Flags, execute

pytestmark = pytest.mark.long

# 0.01 is VGG's rate, and too fast for AlexNet with He's fan-out: it is among the faults below.
ADAM, SGD, FAST = (
    ("--config=optimizer/adam.yaml",),
    ("--config=optimizer/sgd_momentum.yaml",),
    ("--config=optimizer/sgd_momentum.yaml", "--model.optimizer.lr=0.01"),
)
# Long enough for the verdict on a plateau: 20 steps a weight layer, 160 for AlexNet and 320 for VGG16.
RUNS = {
    "overfit": ("--trainer.max_epochs=21",),
    "regularized": ("--trainer.max_epochs=4", "--trainer.limit_train_batches=45"),
    "vgg16_32": ("--trainer.max_epochs=3", "--trainer.limit_train_batches=110", "--data.batch_size=64"),
}
SOUND = [
    *(("overfit", seed, (*optimizer, *RUNS["overfit"])) for optimizer in (ADAM, SGD) for seed in range(4)),
    *(("regularized", seed, (*optimizer, *RUNS["regularized"])) for optimizer in (ADAM, SGD) for seed in range(4)),
    *(("vgg16_32", seed, (*optimizer, *RUNS["vgg16_32"])) for optimizer in (ADAM, FAST) for seed in range(2)),
]
INITIALIZATION = "--model.initialization=lightning_modules.initialization."
NORMAL = f"{INITIALIZATION}Normal"
FAULT = "--trainer.callbacks=tests.faults."
STEP = "--model.lr_scheduler=torch.optim.lr_scheduler.StepLR"
ONE, FIFTEEN, LONG = (f"--trainer.max_epochs={epochs}" for epochs in (1, 15, 21))
FEW = ("--data.train_size=1000", "--data.val_size=500")
FAULTS = [
    ("activations_explode", "overfit", (NORMAL, "--model.initialization.std=0.1", ONE)),
    ("activations_explode", "vgg16_32", (NORMAL, "--model.initialization.std=0.1", ONE, *FEW)),
    ("not_finite", "vgg16_32", (NORMAL, "--model.initialization.std=0.1", ONE, *FEW)),
    ("activations_vanish", "vgg16_32", (NORMAL, "--model.initialization.std=0.01", ONE, *FEW)),
    ("learning_rate_too_high", "overfit", ("--model.optimizer.lr=0.1", LONG)),
    ("learning_rate_too_low", "overfit", ("--model.optimizer.lr=1e-8", LONG)),
    ("stuck_at_chance", "vgg16_32", (f"{INITIALIZATION}He", "--model.initialization.fan=fan_out", *RUNS["vgg16_32"])),
    ("learning_rate_too_high", "overfit", (*FAST, ONE)),
    ("dead_relus", "regularized", (*FAST, *RUNS["regularized"])),
    ("shuffled_labels", "overfit", (f"{FAULT}WrongLabels", FIFTEEN)),
    ("not_finite", "overfit", (f"{FAULT}Poison", "--trainer.callbacks.layer=10", "--trainer.callbacks.step=5", ONE)),
    ("duplicate_images", "overfit", (f"{FAULT}LeakedImages", "--trainer.callbacks.number=100", ONE)),
    ("class_imbalance", "overfit", (f"{FAULT}RareClass", "--trainer.callbacks.label=3", ONE)),
    ("schedule_cut_short", "overfit", (STEP, "--model.lr_scheduler.step_size=30", ONE)),
]


Severities = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def rates() -> Iterator[dict[str, list[bool]]]:
    """Collect for each kind of run if the doctor was right, and print the shares at the end."""
    right: dict[str, list[bool]] = {"sound": [], "faulty": []}
    yield right
    for kind, results in right.items():
        print(f"{kind}: right in {sum(results)} of {len(results)} runs")


@pytest.fixture
def severities(real_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Severities:
    """Fit on real images, print a row, and return each code's severity."""
    monkeypatch.chdir(tmp_path)

    def run(config: str, *flags: str) -> dict[str, str]:
        threads = torch.get_num_threads()
        started = time.monotonic()
        source = ("--data.source=folder", f"--data.root={real_images}")
        limits = ("--trainer.limit_val_batches=8", "--trainer.limit_test_batches=1")
        with monkeypatch.context() as inner:
            inner.setattr(torch, "set_num_threads", lambda _: None)  # real networks gain from all cores
            execute(inner, "fit", "--config", config, *flags, *source, *limits, "--trainer.enable_model_summary=false")
        (summary,) = (tmp_path / "lightning_logs").rglob("summary.json")
        content = json.loads(summary.read_text())
        found = {one["code"]: one["severity"] for one in content["diagnosis"]}
        said = ", ".join(f"{code} ({severity})" for code, severity in found.items())
        print(
            f"\n| {config} {' '.join(flags)} | {content['global_step']} | {said or 'nothing'} | "
            f"{time.monotonic() - started:.0f} s, {threads} threads |"
        )
        return found

    return run


@pytest.mark.parametrize(("config", "seed", "flags"), SOUND)
def test_sound(severities: Severities, rates: dict[str, list[bool]], config: str, seed: int, flags: Flags) -> None:
    found = severities(config, f"--seed_everything={seed}", *flags)
    rates["sound"].append(set(found.values()) <= {"note"})
    assert set(found.values()) <= {"note"}, found


@pytest.mark.parametrize(("code", "config", "flags"), FAULTS)
def test_faulty(severities: Severities, rates: dict[str, list[bool]], code: str, config: str, flags: Flags) -> None:
    found = severities(config, *flags)
    rates["faulty"].append(code in found)
    assert code in found
