from pathlib import Path

import pytest
import yaml

from overfitting_lab.cli.replay import replayable
from tests.conftest import Flags, Parsed, Script
from tests.scripts.test_errors import check_one_message

OWN = "--trainer.callbacks+=tests.observers.HasObject"
UNUSUAL = (  # values that YAML or jsonargparse might read as something else
    "--experiment=1e3",
    "--data.root=0x10",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.val_check_interval=3",
    "--trainer.default_root_dir=null",
    "--trainer.max_time=00:01:00:00",
    "--trainer.limit_val_batches=0.5",
    "--model.optimizer=torch.optim.SGD",
    "--model.optimizer.lr=1e-5",
    "--model.lr_scheduler=torch.optim.lr_scheduler.CosineAnnealingLR",
    "--model.lr_scheduler.T_max=3",
    "--trainer.callbacks+=ModelCheckpoint",
    "--trainer.callbacks.train_time_interval=00:05:00",
    "--trainer.callbacks.filename={epoch}: #1",
    "--trainer.callbacks+=LambdaCallback",
    "--trainer.callbacks.on_fit_start=tests.observers.hello",
    "--trainer.callbacks+=EarlyStopping",
    "--trainer.callbacks.monitor=on",
    "--trainer.callbacks.stopping_threshold=.inf",
    OWN,
    "--trainer.callbacks.patience=null",
    "--trainer.logger=CSVLogger",
    "--trainer.logger.save_dir=on",
    "--trainer.profiler=SimpleProfiler",
    "--trainer.strategy=lightning.pytorch.strategies.DDPStrategy",
    "--trainer.strategy.process_group_backend=gloo",
    "--trainer.plugins+=SLURMEnvironment",
)


@pytest.mark.usefixtures("parse")
def test_a_configuration_parses_to_itself(tmp_path: Path) -> None:
    first = Parsed(["--config=overfit", *UNUSUAL])
    text = replayable(first.parser, first.config)
    (tmp_path / "config.yaml").write_text(text)
    second = Parsed([f"--config={tmp_path / 'config.yaml'}"])
    settings = [{**vars(cli.config.as_flat()), "config": None} for cli in (first, second)]
    assert settings[0] == settings[1]
    assert replayable(second.parser, second.config) == text


def test_a_value_that_yaml_cannot_hold_is_refused(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, "--trainer.callbacks+=tests.observers.HasObjects")
    check_one_message(outcome, 2)
    assert "--trainer.callbacks.devices" in outcome.err
    assert not list(tmp_path.glob("lightning_logs/*/*"))


def test_a_default_that_yaml_cannot_hold_is_left_out(run_script: Script, quick: Flags) -> None:
    outcome = run_script("fit", "--config=overfit", *quick, OWN, "--trainer.callbacks.patience=null", "--doctor=off")
    assert outcome.status == 0, outcome.err
    written = yaml.safe_load(Path("lightning_logs/overfit/version_0/config.yaml").read_text())
    (callback,) = written["trainer"]["callbacks"]
    assert callback == {"class_path": "tests.observers.HasObject", "init_args": {"patience": None}}


def test_a_printed_configuration_can_be_given_again(run_script: Script, tmp_path: Path) -> None:
    network = "--model=lightning_modules.ImageClassifier"  # its default optimizer is a function, which YAML cannot hold
    printed = run_script("fit", network, "--model.network=torch.nn.Flatten", "--experiment=mine", "--print_config")
    (tmp_path / "mine.yaml").write_text(printed.out)
    again = run_script("fit", f"--config={tmp_path / 'mine.yaml'}", "--print_config")
    assert (again.status, again.out) == (0, printed.out)
