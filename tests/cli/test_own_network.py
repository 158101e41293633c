"""A network, images and metrics outside of the repository: the examples of docs/your_own.md, as a reader types them."""

import re
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

from overfitting_lab.runs import Run
from overfitting_lab.runs.epochs import EpochRecord
from tests.conftest import ROOT, Flags, Script, scalars_of, summary_of
from tests.scripts.test_errors import check_one_message
from tests.scripts.test_resume import assert_same

RUN = Path("lightning_logs/my_net/version_0")
LIBRARY = "A network of another library"
BARE = """
import torch
from torch import nn
from lightning_modules import ImageClassifier


class Linear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.matrix = nn.Parameter(0.01 * torch.randn(inputs, outputs))

    def forward(self, images):
        return images.flatten(1) @ self.matrix


class Bare(ImageClassifier):
    def __init__(self, num_classes: int, image_size: int, **training) -> None:
        super().__init__(Linear(3 * image_size**2, num_classes), num_classes, image_size, **training)
"""
PAGE = (ROOT / "docs" / "your_own.md").read_text(encoding="utf-8")


def block(language: str, section: str = "Another network", place: int = 0) -> str:
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return str(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[place])


WRONG = """
import torch
import torch.nn.functional as F
from torch import nn
from lightning_modules import ImageClassifier


def layers(outputs):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, outputs))


class Pair(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layers = layers(outputs)

    def forward(self, images):
        return self.layers(images), None


class Random(Pair):
    def forward(self, images):
        return self.layers(F.dropout(images, 0.5))


class Broken(Pair):
    def forward(self, images):
        return images[:, 3]


class Wrong(ImageClassifier):
    def __init__(self, kind: str, num_classes: int, image_size: int, **training) -> None:
        networks = {
            "forgotten": lambda: layers(1000),
            "fewer": lambda: layers(num_classes - 1),
            "pair": lambda: Pair(num_classes),
            "broken": lambda: Broken(num_classes),
            "larger": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes)),
            "random": lambda: Random(num_classes),
            "map": lambda: nn.Conv2d(3, num_classes, 3),
            "lazy": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes)),
            "apart": lambda: layers(8),
        }
        super().__init__(networks[kind](), num_classes, image_size, **training)
        if kind == "apart":
            self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.network(images)) if hasattr(self, "head") else self.network(images)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder elsewhere that has the example's files. Python forgets them after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    for name in ("my_net", "library_net", "my_metric"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    mine = tmp_path / "elsewhere" / "mine"
    mine.mkdir(parents=True)
    (mine / "my_net.py").write_text(block("python"))
    (mine / "my_net.yaml").write_text(block("yaml"))
    return mine


def forget(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let Python be a new process, which does not know the folder."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(folder)])
    monkeypatch.delitem(sys.modules, "my_net", raising=False)


def test_layers_that_the_doctor_does_not_know_end_no_run(
    folder: Path, short: Flags, run_script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "bare", raising=False)
    (folder / "bare.py").write_text(BARE)
    (folder / "bare.yaml").write_text(block("yaml").replace("my_net.MyNet", "bare.Bare").replace("channels: 16, ", ""))
    outcome = run_script("fit", f"--config={folder / 'bare.yaml'}", *short, "--trainer.max_epochs=12")
    assert outcome.status == 0, outcome.err
    assert "doctor     " in outcome.out


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("forgotten", "returns [1, 1000] for an image, not one logit for each of the 3 classes"),
        ("fewer", "returns [1, 2] for an image"),
        ("map", "returns [1, 3, 6, 6] for an image"),
        ("pair", "the network returns a tuple, not logits [N, 3] alone"),
        ("broken", "IndexError: index 3 is out of bounds"),
        ("larger", "fails with an image [1, 3, 8, 8]: mat1 and mat2 shapes cannot be multiplied (1x192 and 3072x3)"),
        ("random", "two answers for one image in evaluation mode: write F.dropout(x, p, self.training)"),
        ("lazy", "lazy layers: show it one image in __init__"),
        ("apart", "head.weight, head.bias: weights outside of the network"),
    ],
)
def test_a_network_that_cannot_be_measured_is_refused_before_any_work(
    kind: str,
    words: str,
    check: bool,
    folder: Path,
    short: Flags,
    run_script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "wrong", raising=False)
    (folder / "wrong.py").write_text(WRONG)
    (folder / "wrong.yaml").write_text(
        "experiment: wrong\nmodel: {class_path: wrong.Wrong, init_args: {optimizer: {class_path: torch.optim.Adam}}}\n"
        "data: {split: overfit}\n"
    )
    outcome = run_script(
        "fit", f"--config={folder / 'wrong.yaml'}", *short, f"--model.kind={kind}", *["--check"] * check
    )
    check_one_message(outcome, outcome.status)
    assert outcome.status in (1, 2)
    assert words in outcome.err
    assert not Path("lightning_logs").exists()


def test_the_example_trains_tests_resumes_and_predicts(
    folder: Path, short: Flags, run_script: Script, monkeypatch: pytest.MonkeyPatch, image_folder: Path
) -> None:
    lines = [line for kind in ("python", "yaml", "sh") for line in block(kind).splitlines() if line]
    assert len(lines) <= 15
    assert lines[-1] == "python scripts/fit.py --config my_net.yaml"
    config = f"--config={folder / 'my_net.yaml'}"
    more = ("--model.label_smoothing=0.1", "--model.channels=4")
    outcome = run_script("fit", config, *short, *more)
    assert outcome.status == 0, outcome.err
    assert "class_path: my_net.MyNet" in (RUN / "config.yaml").read_text()
    forget(monkeypatch, folder)
    outcome = run_script("fit", "--resume", RUN, config, "--model.channels=4", "--trainer.max_epochs=3")
    assert outcome.status == 0, outcome.err
    image = next(image_folder.rglob("*.png"))
    outcome = run_script("predict", RUN, image)
    assert outcome.status == 0, outcome.err

    forget(monkeypatch, folder)
    for command in (("predict", RUN, image), ("fit", "--resume", RUN), ("test", RUN)):
        outcome = run_script(*command)
        check_one_message(outcome, outcome.status)
        assert "my_net.MyNet" in outcome.err
        assert "cannot be imported: there is no module my_net: lay my_net.py beside" in outcome.err
        assert "PYTHONPATH=FOLDER" in outcome.err


@pytest.mark.parametrize(
    ("library", "function", "name"),
    [
        ("timm", "timm.create_model", "test_resnet"),
        ("torchvision", "torchvision.models.get_model", "shufflenet_v2_x0_5"),
    ],
)
def test_a_network_of_another_library(
    library: str, function: str, name: str, folder: Path, short: Flags, run_script: Script
) -> None:
    code = block("python", LIBRARY).replace("timm.create_model", function).replace("import timm", f"import {library}")
    (folder / "library_net.py").write_text(code)
    (folder / "library_net.yaml").write_text(block("yaml", LIBRARY))
    outcome = run_script(
        "fit", f"--config={folder / 'library_net.yaml'}", *short, "--data.image_size=32", f"--model.name={name}"
    )
    assert outcome.status == 0, outcome.err
    assert f"name: {name}" in Path("lightning_logs/library_net/version_0/config.yaml").read_text()


def test_a_package_beside_the_configuration_needs_no_init_file(folder: Path, short: Flags, run_script: Script) -> None:
    (folder / "my_pack").mkdir()
    (folder / "my_net.py").rename(folder / "my_pack/net.py")
    config = folder / "my_net.yaml"
    config.write_text(config.read_text().replace("my_net.MyNet", "my_pack.net.MyNet"))
    outcome = run_script("fit", f"--config={config}", *short)
    assert outcome.status == 0, outcome.err
    assert [*summary_of(RUN)["code"]] == ["my_pack"]


@pytest.mark.parametrize(
    ("begins", "status"),
    [("", 2), ("super().configure_optimizers(); ", 0), ("ImageClassifier.configure_optimizers(self); ", 0)],
)
def test_a_networks_own_optimizer_and_a_flag_that_would_do_nothing(
    begins: str, status: int, folder: Path, short: Flags, run_script: Script
) -> None:
    with (folder / "my_net.py").open("a") as file:
        file.write("\n    def configure_optimizers(self):\n")
        file.write(f"        {begins}return torch.optim.SGD(self.parameters(), lr=0.05)\n")
    text = (folder / "my_net.py").read_text()
    (folder / "my_net.py").write_text(f"import torch\n{text}")
    outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", *short)
    assert outcome.status == status
    if status:
        assert "--model.optimizer would do nothing: MyNet has its own configure_optimizers" in outcome.err


@pytest.mark.parametrize(
    "returns",
    [
        "{'optimizer': sgd}",
        "{'optimizer': sgd, 'lr_scheduler': step}",
        "[sgd]",
        "[sgd], [step]",
        "[sgd], [{'scheduler': step, 'interval': 'step'}]",
        "{'optimizer': sgd, 'lr_scheduler': {'scheduler': plateau, 'monitor': 'val_loss'}}",
        "{'optimizer': sgd, 'lr_scheduler': plateau, 'monitor': 'val_loss'}",
    ],
)
def test_an_own_optimizer_in_every_form_that_lightning_takes(
    returns: str, folder: Path, short: Flags, run_script: Script
) -> None:
    config = with_optimizer(folder, returns)
    outcome = run_script("fit", config, *short)
    assert outcome.status == 0, outcome.err
    assert summary_of(RUN)["optimizer"]["lr"] == 0.05
    checked = run_script("fit", config, *short, "--check")
    assert checked.status == 0, checked.err
    assert ("StepLR" in checked.out) == ("step" in returns)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        ("[sgd, sgd]", "must return one optimizer and at most one schedule"),
        ("None", "must return one optimizer and at most one schedule"),
        ("[sgd], [step, step]", "must return one optimizer and at most one schedule"),
        ("{'optimizer': sgd, 'lr_scheduler': None}", "not None; without one, leave lr_scheduler out"),
        ("{'optimizer': sgd, 'lr_scheduler': {'interval': 'step'}}", "must have a schedule, not None"),
        ("{'optimizer': sgd, 'lr_scheduler': [step]}", "must have a schedule, not ["),
        ("[sgd], [{'scheduler': step, 'interval': 'steps'}]", "has the interval 'steps'; give epoch or step"),
        ("[sgd], [{'scheduler': step, 'intervall': 'step'}]", "has intervall, which is no key of it"),
        ("[sgd], [{'scheduler': step, 'frequency': 0.5}]", "has the frequency 0.5"),
        ("[sgd], [plateau]", "of ReduceLROnPlateau needs a monitor"),
        ("[sgd], [{'scheduler': plateau, 'monitor': 'val_loss', 'interval': 'step'}]", "steps after each epoch here"),
    ],
)
def test_what_an_own_optimizer_gets_wrong_is_said_before_any_work(
    returns: str, words: str, folder: Path, short: Flags, run_script: Script
) -> None:
    outcome = run_script("fit", with_optimizer(folder, returns), *short)
    check_one_message(outcome, 2)
    assert "configure_optimizers of MyNet" in outcome.err
    assert words in outcome.err
    assert not RUN.exists()


def test_an_own_plateau_schedule_loses_no_step_at_a_resume(folder: Path, short: Flags, run_script: Script) -> None:
    config = with_optimizer(folder, "[sgd], [{'scheduler': plateau, 'monitor': 'val_loss'}]")
    for epochs in (6, 3):
        assert run_script("fit", config, *short, f"--trainer.max_epochs={epochs}").status == 0
    resumed = RUN.with_name("version_1")
    assert run_script("fit", f"--resume={resumed}", "--trainer.max_epochs=6").status == 0
    whole, again = ([each.learning_rate for each in Run(folder).records] for folder in (RUN, resumed))
    assert again == whole
    assert len(set(whole)) > 3, "the rate falls"


def test_a_schedule_that_steps_every_second_time(folder: Path, short: Flags, run_script: Script) -> None:
    once = "[sgd], [{'scheduler': torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=5), 'interval': 'step'"
    for frequency, status in ((2, 0), (1, 1)):
        config = with_optimizer(folder, f"{once}, 'frequency': {frequency}}}]")
        outcome = run_script("fit", config, *short, "--trainer.max_epochs=2")  # 10 steps
        assert (outcome.status != 0) == status, outcome.err


def test_a_schedule_of_ones_own(folder: Path, tiny: Flags, run_script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "warm_up", raising=False)
    for language, file in (("python", "warm_up.py"), ("yaml", "warm_up.yaml")):
        (folder / file).write_text(block(language, "Another learning-rate schedule"))
    overlay = f"--config={folder / 'warm_up.yaml'}"
    outcome = run_script("fit", "--config=overfit", overlay, *tiny, "--model.lr_scheduler.steps=10")
    assert outcome.status == 0, outcome.err
    assert [round(row.learning_rate / 1e-4, 3) for row in Run(Path("lightning_logs/overfit/version_0")).records] == [
        0.5,
        1,
    ]  # after 5 and 10 steps


def test_a_function_is_no_schedule(folder: Path, run_script: Script) -> None:
    (folder / "rates.py").write_text("def warm(optimizer, steps: int = 3):\n    pass\n")
    (folder / "rates.yaml").write_text("model: {init_args: {lr_scheduler: rates.warm}}\n")
    outcome = run_script("fit", "--config=overfit", f"--config={folder / 'rates.yaml'}")
    check_one_message(outcome, 2)
    assert "rates.warm is a function: give a class" in outcome.err


@pytest.mark.parametrize("setting", ["optimizer", "label_smoothing"])
def test_null_where_a_base_class_needs_a_value(setting: str, folder: Path, short: Flags, run_script: Script) -> None:
    outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", *short, f"--model.{setting}=null")
    check_one_message(outcome, 2)
    assert f"--model.{setting}: null, which YAML also writes as ~, is no value here" in outcome.err


def test_a_schedule_that_manual_optimization_would_not_step(folder: Path, short: Flags, run_script: Script) -> None:
    with (folder / "my_net.py").open("a") as file:
        file.write("\n    automatic_optimization = False\n")
    schedule = ("--model.lr_scheduler=torch.optim.lr_scheduler.StepLR", "--model.lr_scheduler.step_size=1")
    outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", *short, *schedule)
    check_one_message(outcome, 2)
    assert "--model.lr_scheduler would do nothing: MyNet optimizes manually" in outcome.err


def test_groups_of_an_own_optimizer_are_resumed_each_for_itself(folder: Path, short: Flags, run_script: Script) -> None:
    def rates(run: str) -> list[float]:
        state = torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)
        return [group["lr"] for group in state["optimizer_states"][0]["param_groups"]]

    groups = "sgd.add_param_group({'params': [torch.nn.Parameter(torch.ones(1))], 'lr': GROUP}) or sgd"
    config = with_optimizer(folder, groups.replace("GROUP", "0.001"))
    assert run_script("fit", config, *short).status == 0
    assert rates(str(RUN)) == [0.05, 0.001]
    code = (folder / "my_net.py").read_text()
    for old, new, expected in (("'lr': 0.001", "'lr': 0.5", [0.05, 0.5]), ("lr=0.05", "lr=0.2", [0.2, 0.5])):
        code = code.replace(old, new)
        (folder / "my_net.py").write_text(code)
        del sys.modules["my_net"]
        epochs = len(Run(RUN).records) + 1
        outcome = run_script("fit", f"--resume={RUN}", f"--trainer.max_epochs={epochs}")
        assert outcome.status == 0, outcome.err
        assert rates(str(RUN)) == expected


def test_a_rate_that_is_a_tensor_is_recorded_as_a_number(folder: Path, short: Flags, run_script: Script) -> None:
    tensor = "torch.optim.SGD(self.parameters(), lr=torch.tensor(0.05))"
    outcome = run_script("fit", with_optimizer(folder, tensor), *short)
    assert outcome.status == 0, outcome.err
    assert Run(RUN).records[-1].learning_rate == pytest.approx(0.05)


def test_biases_that_an_own_optimizer_would_decay_all_the_same(folder: Path, short: Flags, run_script: Script) -> None:
    outcome = run_script("fit", with_optimizer(folder, "sgd"), *short, "--model.decay_biases=false")
    check_one_message(outcome, 2)
    assert "--model.decay_biases would do nothing: MyNet has its own configure_optimizers" in outcome.err


def test_an_own_schedule_may_ask_the_trainer_for_its_length(folder: Path, short: Flags, run_script: Script) -> None:
    cosine = "torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=self.trainer.estimated_stepping_batches)"
    config = with_optimizer(folder, f"[sgd], [{{'scheduler': {cosine}, 'interval': 'step'}}]")
    outcome = run_script("fit", config, *short)
    assert outcome.status == 0, outcome.err
    assert run_script("test", RUN).status == 0


def with_methods(folder: Path, *lines: str) -> str:
    """Add lines to the class of the example, and return the flag that names its configuration."""
    text = "import random\nimport numpy as np\nimport torch\nfrom pathlib import Path\n" + block("python")
    (folder / "my_net.py").write_text(text + "\n" + "".join(f"    {line}\n" for line in lines))
    return f"--config={folder / 'my_net.yaml'}"


def test_an_own_loss_is_minimized_without_smoothing_and_mixing(folder: Path, short: Flags, run_script: Script) -> None:
    losses = ("def training_losses(self, logits, batch):", "    return 0 * super().training_losses(logits, batch)")
    outcome = run_script("fit", with_methods(folder, *losses), *short)
    assert outcome.status == 0, outcome.err
    assert {loss for _, loss in scalars_of(RUN)["steps/loss"]} == {0}
    assert Run(RUN).records[-1].train_loss > 0.1, "the cross-entropy"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["on_after_batch_transfer(self, batch, number): return batch"], "would not be called: batches come from"),
        (["train_dataloader(self): raise RuntimeError"], "MyNet.train_dataloader would not be called"),
        (["validation_step(self, batch, number): pass"], "let it end with return super().validation_step(...)"),
        (["test_step(self, batch, number): return self(batch.images)"], "MyNet.test_step replaces the one that"),
        (["on_validation_epoch_end(self): pass"], "let it call super().on_validation_epoch_end()"),
        (["forward(self, images): return 1 + super().forward(images)"], "MyNet.forward computes more than the network"),
        (["on_save_checkpoint(self, saved): saved['place'] = Path('x')"], "its on_save_checkpoint holds pathlib."),
    ],
)
def test_a_method_that_would_be_lost_or_lose_something_is_refused_before_training(
    lines: list[str], words: str, folder: Path, short: Flags, run_script: Script
) -> None:
    outcome = run_script("fit", with_methods(folder, *(f"def {line}" for line in lines)), *short)
    check_one_message(outcome, outcome.status)
    assert outcome.status in (1, 2)
    assert words in outcome.err
    assert "epoch " not in outcome.out


@pytest.mark.parametrize("name", ["Focal", "UpsideDown"])
def test_the_examples_of_another_loss_and_augmentation(
    name: str, folder: Path, short: Flags, run_script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "my_changes", raising=False)
    (folder / "my_changes.py").write_text(block("python", "Another loss or augmentation"))
    flags = (*short, "--model.optimizer.lr=0.1", "--trainer.max_epochs=1")
    records: list[EpochRecord] = []
    for network in ("my_net.MyNet", f"my_changes.{name}"):
        outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", f"--model={network}", *flags)
        assert outcome.status == 0, outcome.err
        records.append(Run(RUN.with_name(f"version_{len(records)}")).records[-1])
    assert records[0].val_loss != records[1].val_loss


def test_a_validation_step_that_returns_nothing_is_named(folder: Path, short: Flags, run_script: Script) -> None:
    step = "def validation_step(self, *place): super().validation_step(*place)"
    outcome = run_script("fit", with_methods(folder, step), *short)
    check_one_message(outcome, 1)
    assert "MyNet.validation_step does not return the logits: let it end with return super()" in outcome.err


def test_a_hook_may_read_the_whole_checkpoint(folder: Path, short: Flags, run_script: Script) -> None:
    config = with_methods(folder, "def on_save_checkpoint(self, saved): saved['mine'] = len(saved['loops'])")
    outcome = run_script("fit", config, *short)
    assert outcome.status == 0, outcome.err
    assert torch.load(RUN / "checkpoints/last.ckpt", weights_only=True)["mine"] > 0


def test_a_resumed_run_draws_the_same_from_python_and_numpy(
    folder: Path, short: Flags, run_script: Script, tmp_path: Path
) -> None:
    config = with_methods(
        folder,
        "def training_step(self, batch, number):",
        "    images = batch.images * (1 + random.random()) + float(np.random.rand())",
        "    return super().training_step(batch._replace(images=images), number)",
    )
    for command in ([config, "--trainer.max_steps=7"], ["--resume", RUN, "--trainer.max_steps=-1"], [config]):
        more = [] if "--resume" in command else [*short, "--data.stand_in=false"]
        outcome = run_script("fit", *command, *more)
        assert outcome.status == 0, outcome.err
    assert_same(RUN, RUN.with_name("version_1"))


def with_optimizer(folder: Path, returns: str) -> str:
    """Give the page's network an optimizer and a schedule of its own; return the flag of its configuration."""
    code = (folder / "my_net.py").read_text().partition("\n    def configure_optimizers")[0]
    code += f"""
    def configure_optimizers(self):
        sgd = torch.optim.SGD(self.parameters(), lr=0.05)
        step = torch.optim.lr_scheduler.StepLR(sgd, 1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(sgd, patience=0, threshold=1e9, factor=0.5)
        return {returns}
"""
    (folder / "my_net.py").write_text(f"import torch\n{code}")
    sys.modules.pop("my_net", None)  # of an earlier command of the same test
    config = yaml.safe_load((folder / "my_net.yaml").read_text())
    config["model"]["init_args"] = {
        name: value for name, value in config["model"].get("init_args", {}).items() if name != "optimizer"
    }
    (folder / "my_net.yaml").write_text(yaml.safe_dump(config))
    return f"--config={folder / 'my_net.yaml'}"


def test_batch_normalization_and_a_last_batch_of_one_image(folder: Path, short: Flags, run_script: Script) -> None:
    text = (folder / "my_net.py").read_text()
    normalized = text.replace("nn.Flatten()]", "nn.Flatten(), nn.BatchNorm1d(16 * channels)]")
    assert normalized != text
    (folder / "my_net.py").write_text(normalized)
    outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", *short, "--data.train_size=41")
    check_one_message(outcome, 1)
    assert "batch normalization cannot train on a batch of one image: try another --data.batch_size" in outcome.err


def test_a_networks_own_step_returns_what_the_run_needs(folder: Path, short: Flags, run_script: Script) -> None:
    with (folder / "my_net.py").open("a") as file:
        file.write("\n    def training_step(self, batch, batch_idx):\n")
        file.write("        return nn.functional.cross_entropy(self(batch.images), batch.labels)\n")
    outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", *short)
    check_one_message(outcome, 1)
    assert "MyNet.training_step does not return cross_entropy and logits: let it end" in outcome.err


def test_a_run_that_is_stopped_says_how_to_resume_with_its_module(
    folder: Path, short: Flags, run_script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = ("place=step", "step=3", f"mark={tmp_path / 'mark'}", f"number={int(signal.SIGTERM)}")
    killer = ["--trainer.callbacks+=tests.faults.KillOnce", *(f"--trainer.callbacks.{each}" for each in kill)]
    stopped = run_script("fit", f"--config={folder / 'my_net.yaml'}", *short, *killer)
    assert stopped.status == 143
    assert f"resume with: PYTHONPATH={folder} python scripts/fit.py --resume {RUN}" in stopped.err
    forget(monkeypatch, folder)
    monkeypatch.syspath_prepend(folder)
    assert run_script("fit", "--resume", RUN).status == 0


@pytest.mark.thorough
def test_a_network_whose_code_has_changed_is_another_one(
    folder: Path, short: Flags, run_script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, auto = f"--config={folder / 'my_net.yaml'}", "--resume=auto"
    assert run_script("fit", config, *short, auto).status == 0
    first = summary_of(RUN)["code"]
    assert [*first] == ["my_net"]
    assert "already complete" in run_script("fit", config, *short, auto).out
    text = (folder / "my_net.py").read_text()
    (folder / "my_net.py").write_text(text.replace("nn.ReLU()", "nn.Sigmoid()"))
    forget(monkeypatch, folder)
    tested = run_script("test", RUN, config)
    assert tested.status == 0, tested.err
    assert "changed    the file of my_net: the network was trained with other code" in tested.out
    resumed = run_script("fit", f"--resume={RUN}", config, "--trainer.max_epochs=3")
    assert "changed    the file of my_net: this run began with other code" in resumed.out
    assert run_script("fit", config, *short, auto).status == 0
    second = RUN.with_name("version_1")
    assert summary_of(second)["code"] != first
    compared = run_script("compare", RUN, second)
    assert compared.status == 0, compared.err
    assert "code.my_net" in Path(re.findall(r"\S+/report.md", compared.out)[0]).read_text()


def test_images_and_a_metric_of_ones_own(folder: Path, short: Flags, run_script: Script) -> None:
    exec(block("python", "Another data set").replace("2000", "120").replace("500", "40"), {})
    (folder / "my_metric.py").write_text(block("python", "Another metric"))
    line = re.findall("`(worst: .*?)`", PAGE)[0]
    (folder / "metrics.yaml").write_text(f"{block('yaml', 'Another metric')}      {line}\n")
    chosen = ("--data.root=pictures", "--data.split=full", "--data.train_size=80", "--data.val_size=40")
    both = [f"--config={folder / name}.yaml" for name in ("my_net", "metrics")]
    outcome = run_script("fit", *both, *short, *chosen, "--data.augment=none", "--monitor=val_worst")
    assert outcome.status == 0, outcome.err
    summary = summary_of(RUN)
    assert summary["data"]["classes"] == [f"class_{label}" for label in range(4)]
    assert {"f1", "top2", "worst"} <= summary["test"]["own"].keys()
    assert 0 <= summary["test"]["own"]["worst"] <= summary["test"]["acc"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "my_net.MyNet cannot be imported: there is no module my_net"),
        ("import no_such_package\n", "my_net needs no_such_package, which is not there: install it"),
        ("class Other: pass\n", "has no MyNet"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("class MyNet:\n", "IndentationError"),
    ],
)
def test_a_module_that_cannot_be_imported(
    code: str | None, words: str, folder: Path, short: Flags, run_script: Script
) -> None:
    (folder / "my_net.py").unlink()
    if code is not None:
        (folder / "my_net.py").write_text(code)
    outcome = run_script("fit", f"--config={folder / 'my_net.yaml'}", *short)
    check_one_message(outcome, outcome.status)
    assert words in outcome.err


def test_a_name_that_is_also_somebody_elses(folder: Path, short: Flags, run_script: Script) -> None:
    (folder / "my_net.py").rename(folder / "colorsys.py")
    config = folder / "my_net.yaml"
    config.write_text(config.read_text().replace("my_net.MyNet", "colorsys.MyNet"))
    outcome = run_script("fit", f"--config={config}", *short)
    check_one_message(outcome, 2)
    assert "names colorsys, but Python imports it from" in outcome.err
    assert f"rename {folder / 'colorsys.py'}" in outcome.err
