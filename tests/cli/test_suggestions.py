from pathlib import Path

import pytest

from overfitting_lab.cli.suggestions import FLAGS
from tests.conftest import Parse, Script

RIGHT = {
    "--gpus=1": "did you mean --trainer.accelerator gpu --trainer.devices 1?",
    "--trainer.gpus=1": "did you mean --trainer.accelerator gpu --trainer.devices 1?",
    "--max_epochs=1": "did you mean --trainer.max_epochs?",
    "--trainer.max_nb_epochs=1": "did you mean --trainer.max_epochs?",
    "--lr=1": "did you mean --model.optimizer.lr?",
    "--data.lr=1": "did you mean --model.optimizer.lr?",
    "--model.lr=1": "did you mean --model.optimizer.lr?",
    "--learning-rate=1": "did you mean --model.optimizer.lr?",
    "--batch-size=1": "did you mean --data.batch_size?",
    "--data.num_workers=4": "the images are in memory, and no worker loads them: leave it out",
    "--num_classes=10": "the data decides it: leave it out",
    "--dropout=0.5": "did you mean --model.dropout?",
    "--model.drop=0.5": "did you mean --model.dropout?",
    "--seed=1": "did you mean --seed_everything?",
    "--image_size=8": "did you mean --data.image_size?",
    "--trainer.resume_from_checkpoint=x": "did you mean --resume RUN?",
    "--trainer.stochastic_weight_avg=true": "did you mean --config averaging/swa?",
    "\N{EM DASH}data.batch_size=3": "did you mean --data.batch_size?",
    "trainer.max_epochs=1": "did you mean --trainer.max_epochs?",
    "overfit.yaml": "did you mean --config overfit.yaml?",
    "regularized": "did you mean --config regularized",
}
NOTHING = ["--lightning=1", "--trainer.tpu_cores=8", "--data.split_size=3", "--verbose", "fit"]


@pytest.mark.parametrize("flag", [*RIGHT, *NOTHING])
def test_a_flag_of_another_program_is_answered_with_the_right_one_or_none(flag: str, run_script: Script) -> None:
    outcome = run_script("fit", "--config=overfit", flag)
    assert outcome.status == 2
    if flag in RIGHT:
        assert RIGHT[flag] in outcome.err
    else:
        assert "did you mean" not in outcome.err


@pytest.mark.parametrize("script", ["ablate", "tune", "reproduce"])
def test_a_flag_is_no_abbreviation_of_a_scripts_own(script: str, run_script: Script) -> None:
    search = ["--search=model.dropout=0,0.5"] if script == "tune" else []
    outcome = run_script(script, *search, "--seed=5")
    assert outcome.status == 2
    assert "--seed" in outcome.err
    assert not Path("lightning_logs").exists()


@pytest.mark.parametrize(
    ("script", "given", "right"),
    [
        ("ablate", "--one-at-a-time", "--one_at_a_time? (compare each level alone"),
        ("ablate", "--factors=model.dropout=0,0.5", "--factor? (a setting and its levels"),
        ("tune", "--storge=a.log", "--storage? (Optuna storage"),
        ("reproduce", "--dry_run", "--dry-run? (say what is missing"),
        ("reproduce", "\N{EM DASH}pages", "--pages? (make no run"),
        ("benchmark", "--round=1", "--rounds? (repetitions per part"),
        ("compare", "--outputs=x", "--output? (folder of the report"),
        ("test", "--ckpt-path=x", "--ckpt_path? (a checkpoint other"),
        ("export", "--format=onnx", "--formats? (formats to write"),
    ],
)
def test_a_misspelled_flag_of_another_script(script: str, given: str, right: str, run_script: Script) -> None:
    needed = {"tune": ["--search=model.dropout=0,0.5"], "test": ["run"], "export": ["run"]}
    outcome = run_script(script, *needed.get(script, []), given)
    assert outcome.status == 2
    assert f"unrecognized arguments: {given}\ndid you mean {right}" in outcome.err


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("trainer:\n  gpus: 1\n", "did you mean --trainer.accelerator gpu --trainer.devices 1?"),
        ("trainer:\n  max_epoch: 1\n", "did you mean trainer.max_epochs?"),
        ("optimizer:\n  init_args:\n    lr: 1\n", "did you mean --model.optimizer.lr?"),
        ("model:\n  init_args:\n    lr: 1\n", "did you mean --model.optimizer.lr?"),
        ("fit:\n  trainer:\n    max_epochs: 1\n", "did you mean trainer.max_epochs?"),
        ("data:\n  init_args:\n    batch_size: 3\n", "did you mean data.batch_size?"),
        ("data:\n  num_workers: 4\n", "no worker loads them"),
    ],
)
def test_so_is_a_key_of_a_configuration(text: str, right: str, run_script: Script, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    outcome = run_script("fit", "--config=overfit", "--config=mine.yaml")
    assert outcome.status == 2
    assert right in outcome.err


def test_every_flag_that_is_suggested_exists(parse: Parse) -> None:
    settings = parse(
        "--config=regularized", "--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=1"
    ).as_flat()
    names = {name.replace(".init_args", "").removesuffix(".class_path") for name in vars(settings)}
    for remedy in set(FLAGS.values()) - {"--model.optimizer.momentum"}:
        for flag in (word for word in remedy.split() if word.startswith("--")):
            assert flag.removeprefix("--") in names or flag == "--config", remedy
