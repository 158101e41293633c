import os
import random
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from overfitting_lab.runs import Run
from tests.conftest import Flags, scalars_of, summary_of, timeless, weights_of
from tests.processes import PATHS, ROOT, run_python, start

EPOCHS = 4
STEPS = 5  # an epoch
RECIPE = (  # all that has a state: dropout, augmentation, mixing, Adam, a plateau schedule that reduces the rate
    "--config=overfit",
    "--model=tests.networks.Tiny",
    "--model.dropout=0.5",
    "--data.augment=trivial",
    "--data.cutout=4",
    "--data.mixup=0.5",
    "--data.cutmix=1",
    "--data.label_noise=0.3",
    "--model.label_smoothing=0.1",
    "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau",
    "--model.lr_scheduler.monitor=val_loss",
    "--model.lr_scheduler.patience=0",
    "--model.lr_scheduler.threshold=0.5",
    "--checkpoint_steps=2",
    "--data.stand_in=false",
)
ALEXNET = ("--model=lightning_modules.AlexNet", "--model.hidden_features=16")  # whose checkpoints take time to write
FIRST = "lightning_logs/overfit/version_0"


@pytest.fixture
def recipe(short: Flags) -> list[str]:
    return [*RECIPE, *short, f"--trainer.max_epochs={EPOCHS}"]


@pytest.fixture(scope="module")
def through(short: Flags, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the run of the recipe and more flags that ran through."""
    folders: dict[Flags, Path] = {}

    def run(*more: str) -> Path:
        if more not in folders:
            folder = tmp_path_factory.mktemp("through")
            finish(start("fit", [*RECIPE, *short, f"--trainer.max_epochs={EPOCHS}", *more], folder), folder)
            folders[more] = folder / FIRST
        return folders[more]

    return run


@pytest.fixture
def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    return whole, killed


def finish(process: BaseProcess, folder: Path, status: int = 0) -> str:
    """Wait for a script's end and return all that was printed in the folder."""
    process.join(240)
    if process.is_alive():
        process.kill()
    output = (folder / "output.txt").read_text()
    assert process.exitcode == status, output
    return output


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Return the places where two nested structures differ by a bit; times do not count."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    same = torch.equal(one, other) if tensors else one == other
    return [] if same or "seconds" in place else [place]


def assert_same(run: Path, through: Path, *, curves: bool = True) -> None:
    """Assert that metrics, checkpoints, curves and summary equal those of a run that ran through."""
    assert timeless(run) == timeless(through)
    for name in ("best", "last"):
        one, other = (torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for folder in (run, through))
        for checkpoint in (one, other):  # KillOnce adds its own state
            checkpoint.pop("callbacks", {}).pop("KillOnce", None)
        assert differences(one, other) == []
    assert differences(weights_of(run), weights_of(through)) == []
    for folder in sorted({file.parent for file in through.glob("*/events.out.*")}) if curves else ():
        assert scalars_of(run / folder.name) == scalars_of(folder)
    one, other = summary_of(run), summary_of(through)
    for summary in (one, other):
        summary.pop("train_images_per_second")
        summary.pop("git_commit")
        summary.pop("code", None)  # of KillOnce's file
        assert summary.pop("earlier", {}).keys() <= {"trainer.callbacks"}  # a callback that stopped the run
    assert differences(one, other) == []


@pytest.mark.long
def test_killed_at_200_random_moments(recipe: list[str], through: Any, tmp_path: Path) -> None:
    """Kill and resume a run, and if it ends before there were kills enough, another one."""
    recipe += ALEXNET
    moments, training, kills = random.Random(0), summary_of(through(*ALEXNET))["seconds"], 200
    survived = runs = 0
    while survived < kills:
        folder = tmp_path / str(runs)
        folder.mkdir()
        run, process, runs = folder / FIRST, start("fit", recipe, folder), runs + 1
        while survived < kills and process.is_alive():
            before, waited = stamp(run), time.monotonic()
            while stamp(run) == before and process.is_alive() and time.monotonic() - waited < 60:
                time.sleep(0.005)
            process.join(moments.uniform(0, min(1.0, training / 2)))
            if process.is_alive():
                process.kill()
                process.join()
                survived += 1
                process = start("fit", ["--resume", FIRST] if (run / "config.yaml").exists() else recipe, folder)
        finish(process, folder)
        assert_same(run, through(*ALEXNET))
    print(f"{survived} kills in {runs} runs of {training:.1f} s")


def stamp(run: Path) -> int:
    """Return when the run's summary was written, which is first done just before the first step."""
    try:
        return (run / "summary.json").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


PLACES = [("step", 3), ("validation", 2 * STEPS), ("saving", STEPS + 2)]
MORE = [("step", 4), ("step", STEPS), ("step", STEPS + 1)]


@pytest.mark.parametrize(
    ("place", "step", "precision"),
    [
        *((*place, "32-true") for place in PLACES),
        ("step", 3, "bf16-mixed"),
        *(pytest.param(*place, "32-true", marks=pytest.mark.long) for place in MORE),
        *(pytest.param(*place, "bf16-mixed", marks=pytest.mark.long) for place in (*PLACES[1:], *MORE)),
    ],
)
def test_killed_at_a_certain_place(
    place: str, step: int, precision: str, recipe: list[str], through: Any, tmp_path: Path
) -> None:
    deadly, precision = killer(place, step, tmp_path / "mark"), f"--trainer.precision={precision}"
    finish(start("fit", [*recipe, *deadly, precision], tmp_path), tmp_path, -signal.SIGKILL)
    assert (tmp_path / "mark").exists()
    finish(start("fit", ["--resume", FIRST], tmp_path), tmp_path)
    assert_same(tmp_path / FIRST, through(precision))


@pytest.mark.long
def test_a_compiled_run_that_was_killed(recipe: list[str], through: Any, tmp_path: Path) -> None:
    """The last batch of an epoch is smaller than the others, and is compiled for itself."""
    flags = ("--compile=default", "--data.train_size=90")
    deadly = killer("step", STEPS + 3, tmp_path / "mark")
    finish(start("fit", [*recipe, *flags, *deadly], tmp_path), tmp_path, -signal.SIGKILL)
    finish(start("fit", ["--resume", FIRST], tmp_path), tmp_path)
    assert_same(tmp_path / FIRST, through(*flags))
    compiled, plain = (timeless(through(*given)) for given in (flags, flags[1:]))
    assert [each.train_loss for each in compiled] == pytest.approx([each.train_loss for each in plain], rel=1e-4)


def test_a_run_that_was_killed_is_found_by_its_settings(recipe: list[str], through: Any, tmp_path: Path) -> None:
    command = [*recipe, *killer("step", STEPS + 3, tmp_path / "mark"), "--resume=auto"]
    finish(start("fit", command, tmp_path), tmp_path, -signal.SIGKILL)
    output = finish(start("fit", [*command, "--checkpoint_steps=3"], tmp_path), tmp_path)
    assert "changed    checkpoint_steps: 2 -> 3" in output
    assert "resumed    in epoch 2" in output
    assert_same(tmp_path / FIRST, through())
    assert not (tmp_path / FIRST).with_name("version_1").exists()


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--trainer.max_steps=8", "--trainer.max_epochs=-1"], marks=pytest.mark.long),
        pytest.param(["--trainer.val_check_interval=2"], marks=pytest.mark.thorough),
    ],
)
def test_killed_in_a_run_of_unusual_epochs(
    more: list[str], recipe: list[str], two_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, killed = two_folders
    finish(start("fit", [*recipe, *more], whole), whole)
    finish(start("fit", [*recipe, *more, *killer("step", 8, tmp_path / "mark")], killed), killed, -signal.SIGKILL)
    finish(start("fit", ["--resume", FIRST], killed), killed)
    assert timeless(killed / FIRST) == timeless(whole / FIRST)
    assert differences(weights_of(whole / FIRST), weights_of(killed / FIRST)) == []


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGINT, 130),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((signal.SIGTERM, 143), (signal.SIGHUP, 129))),
    ],
)
def test_a_signal_saves_and_says_how_to_resume(
    number: signal.Signals, status: int, recipe: list[str], through: Any, tmp_path: Path
) -> None:
    signalled = killer("step", STEPS + 3, tmp_path / "mark", f"number={int(number)}")
    flags = [*recipe, *signalled, "--checkpoint_steps=null"]
    output = finish(start("fit", flags, tmp_path), tmp_path, status)
    run = tmp_path / FIRST
    assert f"--resume {FIRST}" in output
    assert "Traceback" not in output
    assert Run(run).status == "interrupted"
    finish(start("fit", ["--resume", FIRST], tmp_path), tmp_path)
    assert_same(run, through())


def killer(place: str, step: int, mark: Path, *more: str) -> list[str]:
    settings = [f"place={place}", f"step={step}", f"mark={mark}", *more]
    return ["--trainer.callbacks+=tests.faults.KillOnce", *(f"--trainer.callbacks.{setting}" for setting in settings)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start_two(arguments: list[str], folder: Path) -> list[BaseProcess]:
    """Start ``fit.py`` in two processes as a person may, but without seconds of imports for each."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    ranks: list[dict[str, object]] = [{**names, "RANK": rank, "LOCAL_RANK": rank} for rank in range(2)]
    return [start("fit", arguments, folder, **environment) for environment in ranks]


def finish_two(processes: list[BaseProcess], folder: Path) -> None:
    for process in processes:
        finish(process, folder)


TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


@pytest.mark.long
def test_two_processes_killed_and_one_killed_alone(
    recipe: list[str], two_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, killed = two_folders
    recipe += ["--config=averaging/swa", "--trainer.callbacks.start=0.2"]  # from the first epoch on
    finish_two(start_two([*recipe, *TWO], whole), whole)
    deadly = killer("step", STEPS + 3, tmp_path / "mark", "rank=1")
    died = run_python(killed, str(ROOT / "scripts" / "fit.py"), *recipe, *TWO, *deadly)
    assert died.returncode == 1
    reason = f"process 1 of 2 was ended by SIGKILL; resume with: python scripts/fit.py --resume {FIRST}"
    assert died.stderr.splitlines()[-1] == f"error: {reason}"
    assert (summary_of(killed / FIRST)["status"], summary_of(killed / FIRST)["reason"]) == ("failed", reason)
    state = torch.load(killed / FIRST / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == STEPS + 1, "every two steps"
    finish_two(start_two(["--resume", FIRST], killed), killed)
    assert_same(killed / FIRST, whole / FIRST)


@pytest.mark.long  # one process is in test_ending.py
def test_two_processes_that_stop_within_an_epoch_are_resumed_within_it(
    recipe: list[str], two_folders: tuple[Path, Path]
) -> None:
    whole, cut = two_folders
    finish_two(start_two([*recipe, *TWO], whole), whole)
    finish_two(start_two([*recipe, *TWO, "--trainer.max_steps=8", "--checkpoint_steps=null"], cut), cut)
    assert torch.load(cut / FIRST / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 8
    finish_two(start_two(["--resume", FIRST, "--trainer.max_steps=-1"], cut), cut)
    assert "resumed    in epoch 2 after step 8" in (cut / "output.txt").read_text()
    assert_same(cut / FIRST, whole / FIRST)


@pytest.mark.long
def test_a_signal_between_two_validations_of_an_epoch(recipe: list[str], two_folders: tuple[Path, Path]) -> None:
    whole, stopped = two_folders
    more = ["--trainer.val_check_interval=2", "--trainer.precision=32-true", "--checkpoint_steps=null"]
    finish(start("fit", [*recipe, *more], whole), whole)
    for step in (7, 8):  # 7 follows a validation, 8 is the one before a scheduled validation
        folder = stopped / str(step)
        folder.mkdir()
        deadly = killer("step", step, folder / "mark", f"number={int(signal.SIGTERM)}")
        finish(start("fit", [*recipe, *more, *deadly], folder), folder, 143)
        assert torch.load(folder / FIRST / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step
        assert f"resumed    in epoch 2 after step {step}" in finish(start("fit", ["--resume", FIRST], folder), folder)
        assert_same(folder / FIRST, whole / FIRST, curves=False)


def test_a_second_ctrl_c_stops_at_once(recipe: list[str], tmp_path: Path) -> None:
    slow = ["--trainer.callbacks=tests.faults.SlowStep", "--trainer.max_epochs=1000"]
    process = start("fit", [*recipe, *slow], tmp_path)
    while not (tmp_path / "in a step").exists():
        assert process.is_alive(), (tmp_path / "output.txt").read_text()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(0.5)
    assert process.is_alive(), "the first one waits for the step's end"
    deadline = time.monotonic() + 30
    while process.is_alive() and time.monotonic() < deadline:  # two that come at once are one
        os.kill(process.pid, signal.SIGINT)
        process.join(0.5)
    finish(process, tmp_path, -signal.SIGINT)  # which a shell reports as 130


@pytest.mark.long  # torchrun and two processes are in test_fit.py
def test_two_nodes_on_loopback_train_as_one_process(recipe: list[str], tmp_path: Path) -> None:
    one = [*recipe, "--model.dropout=0"]
    (tmp_path / "one").mkdir()
    finish(start("fit", one, tmp_path / "one"), tmp_path / "one")
    port, nodes = free_port(), []
    for rank in range(2):
        environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
        torchrun = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        command = [sys.executable, "-m", "torch.distributed.run", *torchrun, f"--master-port={port}"]
        script = [str(ROOT / "scripts" / "fit.py"), *one, "--trainer.num_nodes=2", "--trainer.strategy=ddp"]
        with (tmp_path / f"node {rank}.txt").open("w") as output:
            settings: dict[str, Any] = {"cwd": tmp_path, "env": environment, "stdout": output, "stderr": output}
            nodes.append(subprocess.Popen([*command, *script], **settings))
    try:
        statuses = [node.wait(timeout=240) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert statuses == [0, 0], (tmp_path / "node 0.txt").read_text() + (tmp_path / "node 1.txt").read_text()
    summaries = [summary_of(folder / FIRST) for folder in (tmp_path, tmp_path / "one")]
    assert [summary["world_size"] for summary in summaries] == [2, 1]
    assert [summary["test"]["images"] for summary in summaries] == [45, 45]
    assert summaries[0]["data"]["fingerprint"] == summaries[1]["data"]["fingerprint"]
    runs = (weights_of(folder / FIRST) for folder in (tmp_path, tmp_path / "one"))
    two, one_process = (torch.cat([value.flatten() for value in weights.values()]) for weights in runs)
    apart = float((two - one_process).norm() / one_process.norm())
    print(f"weights apart by {apart:.1e} of their norm")
    assert apart < 2e-4  # sums in another order; 1.2e-5 measured
