"""What differs on a GPU: ``pytest -n 0 -m gpu``. ``--gpu-tests-on cpu`` tries the tests themselves on a CPU."""

import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch._dynamo.utils import counters

from benchmarks.contenders import prepared
from datamodules import Batch, CIFAR10DataModule
from overfitting_lab.callbacks import doctor
from tests.callbacks.test_doctor import FAULT, alarms, bright  # noqa: F401
from tests.conftest import Flags, Script, summary_of, timeless, weights_of
from tests.lightning_modules.test_classifier import assert_clips_as_a_plain_loop
from tests.processes import ROOT, run_python
from tests.scripts.test_errors import check_one_message
from tests.scripts.test_resume import ALEXNET, RECIPE, assert_same, differences

pytestmark = pytest.mark.gpu
RUN = "lightning_logs/overfit/version_0"
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The device's type, as torch names it."""
    return "cuda" if request.config.getoption("--gpu-tests-on") == "gpu" else "cpu"


@pytest.fixture
def there(device: str) -> Flags:
    """Return flags for the device."""
    return (f"--trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}",)


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest, device: str) -> str:
    if device == "cpu" and request.param == "16-mixed":
        pytest.skip("fit.py refuses float16 on a CPU")
    return str(request.param)


def only_on_a_gpu(device: str, what: str) -> None:
    if device == "cpu":
        pytest.skip(f"a CPU has no {what}")


# Precision, clipping, optimizer


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("algorithm", "limit"), [("norm", 0.3), ("value", 0.01)])
def test_clipping_is_that_of_a_plain_loop(
    algorithm: str, limit: float, fused: bool, precision: str, device: str
) -> None:
    settings = {"precision": precision}
    assert_clips_as_a_plain_loop(device, PRECISIONS[precision], settings, fused, algorithm, limit)


@pytest.mark.parametrize("fused", ["true", "false"])
def test_a_sound_run_raises_no_alarm_and_learns(
    fused: str,
    precision: str,
    there: Flags,
    run_script: Script,
    bright: Flags,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The doctor measures losses, outputs and gradients every ten steps."""
    monkeypatch.setattr(doctor, "EVERY", 10)
    flags = (f"--trainer.precision={precision}", f"--model.optimizer.fused={fused}", "--trainer.max_epochs=8")
    outcome = run_script("fit", *bright, *there, *flags, "--experiment=overfit")
    assert outcome.status == 0, outcome.err
    summary = summary_of(tmp_path / RUN)
    assert alarms({found["code"]: found for found in summary["diagnosis"]}) == set(), outcome.out
    assert summary["last"]["train_acc"] > 0.8
    assert summary["precision"] == precision


@pytest.mark.parametrize(
    ("flags", "code", "layers"),
    [
        (["--model.weight_std=3"], "activations_explode", ["4", "6"]),
        (["--model.bias=-100"], "dead_relus", ["3", "5"]),
        (
            [f"{FAULT}Poison", "--trainer.callbacks.layer=4", "--trainer.callbacks.step=9", "--trainer.max_epochs=2"],
            "not_finite",  # a GPU's loss is read at a probe: here before the tenth step
            ["4"],
        ),
        (["--model.factor=1e6", "--model.optimizer.lr=1e-6", "--trainer.max_epochs=14"], "gradients_explode", ["2"]),
    ],
)
def test_the_doctor_finds_faults(
    flags: list[str],
    code: str,
    layers: list[str],
    there: Flags,
    run_script: Script,
    bright: Flags,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(doctor, "EVERY", 10)
    outcome = run_script("fit", *bright, *there, *flags, "--experiment=overfit")
    found = {each["code"]: each for each in summary_of(tmp_path / RUN)["diagnosis"]}
    assert code in found, outcome.out + outcome.err
    assert found[code]["layers"][: len(layers)] == layers


class Layout(Callback):
    """Note how the images lie between the first convolution and the next layer."""

    seen: list[bool]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            Layout.seen.append(output.is_contiguous(memory_format=torch.channels_last))

        next(each for each in pl_module.network.modules() if isinstance(each, nn.Conv2d)).register_forward_hook(note)


def test_channels_last(precision: str, there: Flags, run_script: Script, quick: Flags) -> None:
    Layout.seen = []
    flags = (f"--trainer.precision={precision}", f"--trainer.callbacks={__name__}.Layout", "--data.image_size=32")
    outcome = run_script("fit", "--config=overfit", *quick, *there, *flags, "--data.augment=flip_crop")
    assert outcome.status == 0, outcome.err
    assert Layout.seen
    assert all(Layout.seen)


# Images


def batches(device: str, image_folder: Path, **settings: Any) -> Iterator[Batch]:
    """Yield an epoch's training batches as the network gets them, of a data module on a device."""
    flags = {"source": "folder", "root": image_folder, "train_size": 150, "val_size": 20, "batch_size": 20} | settings
    accelerator = f"--trainer.accelerator={'gpu' if device == 'cuda' else 'cpu'}"
    cli = prepared(["--config=regularized", accelerator, *(f"--data.{name}={value}" for name, value in flags.items())])
    data: CIFAR10DataModule = cli.datamodule
    for batch in data.train_dataloader():
        yield data.to_network(batch.to(cli.trainer.strategy.root_device), training=True)


EVERY = [{"augment": name} for name in ("none", "flip_crop", "trivial", "vgg", "notebook")]
MIXED = {"augment": "flip_crop", "cutout": 8, "mixup": 1.0, "cutmix": 1.0}


@pytest.mark.parametrize("settings", [*EVERY, MIXED], ids=lambda settings: " ".join(map(str, settings.values())))
def test_images_are_those_of_a_cpu(settings: dict[str, Any], device: str, image_folder: Path) -> None:
    """The draws are the same. A pixel may differ by rounding, and a rotated one by its neighbour."""
    differing = pixels = 0
    for mine, others in zip(
        batches(device, image_folder, **settings), batches("cpu", image_folder, **settings), strict=True
    ):
        assert mine.labels.tolist() == others.labels.tolist()
        assert mine.indices.tolist() == others.indices.tolist()
        if mine.shares is not None and others.shares is not None:
            assert torch.allclose(mine.shares.cpu(), others.shares, atol=1e-6)
        pixels += others.images.numel()
        differing += int((~torch.isclose(mine.images.cpu(), others.images, rtol=0, atol=1e-4)).sum())
    assert differing <= (0.001 * pixels if settings["augment"] == "trivial" else 0)


def test_images_on_the_device_make_the_same_batches(device: str, image_folder: Path) -> None:
    settings = {**MIXED, "augment": "trivial"}
    for mine, others, usual in zip(
        *(batches(device, image_folder, **settings, on_device=choice) for choice in ("true", "false", "null")),
        strict=True,
    ):
        for name in ("images", "labels", "indices", "shares"):
            parts = [getattr(batch, name) for batch in (mine, others, usual)]
            assert {part.device.type for part in parts} == {device}
            assert torch.equal(parts[0], parts[1])
            assert torch.equal(parts[0], parts[2])


@pytest.mark.parametrize(("choice", "expected"), [("null", "cuda"), ("true", "cuda"), ("false", "cpu")])
def test_one_gpu_has_the_images_by_default(choice: str, expected: str, device: str, image_folder: Path) -> None:
    only_on_a_gpu(device, "memory of its own")
    flags = ("--data.source=folder", f"--data.root={image_folder}", "--data.train_size=90", "--data.val_size=20")
    data = prepared(["--config=overfit", *flags, "--data.batch_size=20", f"--data.on_device={choice}"]).datamodule
    assert next(iter(data.train_dataloader())).images.device.type == expected


# Resume


class Deterministic:
    """Runs in processes of their own: cuBLAS reads only once if it is to be deterministic."""

    def __init__(self, folder: Path, flags: Flags) -> None:
        self.folder = folder
        self._flags = flags

    def fit(self, name: str, *flags: str, status: int = 0) -> Path:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        # AlexNet: the backward pass of Tiny's adaptive pooling has no deterministic form on a GPU.
        given = flags if "--resume" in flags else (*RECIPE, *ALEXNET, *self._flags, *flags)
        ended = run_python(folder, str(ROOT / "scripts" / "fit.py"), *given)
        assert ended.returncode == status, ended.stdout + ended.stderr
        return folder / RUN


def test_a_killed_run_resumes_bit_for_bit(precision: str, there: Flags, short: Flags, tmp_path: Path) -> None:
    """A run of deterministic algorithms, the same one killed and resumed, and one whose images lie in memory."""
    # The interval is given, because a checkpoint notes it as it was given, and a resumed run gives all settings.
    flags = (*short, *there, f"--trainer.precision={precision}", "--trainer.deterministic=true")
    flags += ("--model.lr_scheduler_interval=epoch",)
    runs = Deterministic(tmp_path, (*flags, "--trainer.max_epochs=3"))
    whole = runs.fit("whole")
    kill = ("place=step", "step=7", f"mark={tmp_path / 'mark'}")
    deadly = (f"{FAULT}KillOnce", *(f"--trainer.callbacks.{each}" for each in kill))
    runs.fit("killed", *deadly, status=-signal.SIGKILL)
    assert_same(runs.fit("killed", "--resume", RUN), whole)
    if precision == "32-true":
        other = runs.fit("other", "--data.on_device=false", "--doctor=off")
        assert timeless(other) == timeless(whole)
        assert differences(weights_of(other), weights_of(whole)) == []


def test_a_run_resumed_between_two_probes_is_probed(
    there: Flags,
    run_script: Script,
    quick: Flags,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The losses before the checkpoint come back on the CPU; those after it are on the device."""
    monkeypatch.setattr(doctor, "EVERY", 10)
    flags = ("--config=overfit", *quick, *there, "--data.batch_size=6")
    assert run_script("fit", *flags, "--trainer.max_steps=7").status == 0
    outcome = run_script("fit", f"--resume={RUN}", "--trainer.max_steps=25")
    assert outcome.status == 0, outcome.err
    assert torch.load(tmp_path / RUN / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 25


# Compile, export, other scripts


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_network_trains_as_another(
    mode: str, there: Flags, run_script: Script, quick: Flags, tmp_path: Path
) -> None:
    flags = ("--config=overfit", *quick, *there, "--model.dropout=0", "--trainer.max_epochs=1")
    assert run_script("fit", *flags).status == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler
        torch.compiler.reset()
        counters["stats"].clear()
        outcome = run_script("fit", *flags, f"--compile={mode}")
    assert outcome.status == 0, outcome.err
    assert counters["stats"]["unique_graphs"]
    one, other = (tmp_path / RUN).with_name("version_0"), (tmp_path / RUN).with_name("version_1")
    torch.testing.assert_close(weights_of(other), weights_of(one), rtol=1e-2, atol=1e-3)
    losses = [summary_of(folder)["last"]["train_loss"] for folder in (one, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_other_scripts_take_the_run(
    precision: str, there: Flags, run_script: Script, tiny: Flags, image_folder: Path, tmp_path: Path
) -> None:
    outcome = run_script("fit", "--config=overfit", *tiny, *there, f"--trainer.precision={precision}")
    assert outcome.status == 0, outcome.err
    tested = run_script("test", RUN)
    assert tested.status == 0, tested.err
    exported = run_script("export", RUN)
    assert exported.status == 0, exported.err
    image = next((image_folder / "test").rglob("*.png"))
    answers = [
        run_script("predict", path, image).out.splitlines()[:2]
        for path in (RUN, *sorted(str(path) for path in (tmp_path / RUN / "export").glob("model.*")))
    ]
    assert len(answers) == 4
    assert all(answers)


def test_the_check_and_the_screen_name_the_gpu(device: str, there: Flags, run_script: Script, quick: Flags) -> None:
    checked = run_script("fit", "--config=overfit", *quick, *there, "--check")
    assert checked.status == 0, checked.err
    trained = run_script("fit", "--config=overfit", *quick, *there)
    assert trained.status == 0, trained.err
    if device == "cuda":
        assert " of the GPU's " in checked.out
        assert f"device     {torch.cuda.get_device_name()}\n" in trained.out
    else:
        assert "device     CPU, 1 thread\n" in trained.out


def test_too_little_memory_is_one_message(device: str, there: Flags, run_script: Script, tiny: Flags) -> None:
    only_on_a_gpu(device, "memory of its own")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2**28 / torch.cuda.get_device_properties(0).total_memory)
    try:
        wide = ("--model.hidden_features=8192", "--model.width=1")
        outcome = run_script("fit", "--config=overfit", *tiny, *there, *wide)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    check_one_message(outcome, 1)
    assert "the GPU's memory cannot hold a step: try a smaller --data.batch_size" in outcome.err


class Waits(Callback):
    """Count how often ten steps, after the first ones and the doctor's, wait for the GPU."""

    count = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 21:
            warnings.showwarning = self._count  # type: ignore[assignment]
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.global_step == 31:
            torch.cuda.set_sync_debug_mode("default")

    @staticmethod
    def _count(message: Warning, *_: Any) -> None:
        Waits.count += "called a synchronizing" in str(message)  # not the warning that the mode is a prototype


def test_steps_do_not_wait_for_the_gpu(device: str, there: Flags, run_script: Script, quick: Flags) -> None:
    """Between two checks of the loss, every 20 steps, and two points of a curve nothing reads a value from the GPU."""
    only_on_a_gpu(device, "queue")
    flags = ("--data.batch_size=2", "--data.augment=flip_crop", "--trainer.log_every_n_steps=50")
    try:
        with warnings.catch_warnings():
            outcome = run_script(
                "fit", "--config=overfit", *quick, *there, *flags, f"--trainer.callbacks={__name__}.Waits"
            )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert outcome.status == 0, outcome.err
    assert Waits.count == 0
