import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from overfitting_lab.runs import RunFiles, runs_of
from overfitting_lab.sweeps.workers import GONE
from tests.callbacks.test_clock import HOOKS, PAUSE, Slow
from tests.conftest import ROOT, Flags, Script
from tests.processes import start, start_worker

FOLDER = Path("lightning_logs/ablation")
TIMEOUT = 240
HELP = f"\nhelp: python {ROOT / 'scripts' / 'ablate.py'} --help\n"


@pytest.fixture
def small(short: Flags) -> Flags:
    """Return flags of a trial that takes less than a second."""
    flags = (flag for flag in short if "train_size" not in flag)
    return ("--model=tests.networks.Tiny", *flags, "--trainer.max_epochs=1")


def journal() -> optuna.storages.JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.storages.JournalStorage(JournalFileBackend(str(FOLDER / "optuna.journal")))


def test_the_full_factorial_is_trained_once(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    outcome = run_script("ablate", "--train_size=60", "--seeds=1", *small)
    assert outcome.status == 0, outcome.err
    made = runs_of(FOLDER)
    names = ("model.dropout", "model.optimizer.weight_decay", "data.augment")
    assert {tuple(run.settings[name] for name in names) for run in made} == {
        (dropout, decay, augment)
        for dropout in (0.0, 0.5)
        for decay in (0.0, 1e-4)
        for augment in ("none", "flip_crop")
    }
    assert len(made) == len(fitted) == 8
    assert all(run.summary.data.train_size == 60 for run in made)
    assert all((run.folder / "weights.pth").is_file() and not [*run.folder.rglob("*.ckpt")] for run in made)
    assert "8 of 8, about 0:00:00 left with 1 worker" in outcome.out
    numbers = json.loads((FOLDER / "factorial-60.json").read_text())
    said = {tuple(t["setting"][key] for key in ("dropout", "weight_decay", "augment")): t for t in numbers["trials"]}
    for run in made:
        trial, last = said[tuple(run.settings[name] for name in names)], run.records[-1]
        assert run.summary.test is not None
        assert trial["test_acc"] == run.summary.test.acc
        assert (trial["train_acc"], trial["val_acc"], trial["gap"]) == (last.train_acc, last.val_acc, last.gap)

    again = run_script("ablate", "--train_size=60", "--seeds=1", *small)
    assert again.status == 0
    assert len(fitted) == 8
    assert "begun" not in again.out

    curve = run_script("ablate", "--train_size=60", "--seeds=1", "--sizes", "40", "60", "80", *small)
    assert curve.status == 0, curve.err
    assert len(fitted) == 8 + 2, "the run without remedies on 60 images is the factorial's"
    text = (FOLDER / "sizes.md").read_text()
    assert "| 40 | 1 |" in text
    assert "augmentation at 60 images: " in text


@pytest.mark.thorough
def test_more_seeds_are_added_to_what_is_there(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    for seeds, made in ((1, 1), (2, 2)):
        outcome = run_script("ablate", f"--seeds={seeds}", "--sizes", "40", *small)
        assert outcome.status == 0, outcome.err
        assert len(fitted) == made
    assert "| 40 | 2 |" in (FOLDER / "sizes.md").read_text()


@pytest.mark.thorough
def test_the_time_of_a_trial_counts_start_and_test(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    slow = f"--trainer.callbacks={Slow.__module__}.Slow"
    outcome = run_script("ablate", "--seeds=1", "--sizes", "40", "60", *small, slow)
    assert outcome.status == 0, outcome.err
    trials = json.loads((FOLDER / "sizes.json").read_text())["trials"]
    assert all(trial["seconds"] >= len(HOOKS) * PAUSE for trial in trials)
    (left,) = re.findall(r"1 of 2, about 0:00:(\d\d) left", outcome.out)
    assert int(left) >= 1


def test_a_run_that_was_there_keeps_its_checkpoints(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    assert run_script("fit", "--config=overfit", "--experiment=ablation", "--data.train_size=40", *small).status == 0
    made = run_script("ablate", "--seeds=2", "--sizes", "40", *small)
    assert made.status == 0, made.err
    assert len(fitted) == 1
    first, second = (FOLDER / f"version_{number}" for number in (0, 1))
    assert made.out.count(" left with 1 worker") == 1, "a run that was there says nothing about the time of others"
    assert "1 of 2\n" in made.out
    assert [*first.rglob("last.ckpt")]
    assert not [*second.rglob("*.ckpt")]


def test_so_does_a_run_that_another_process_finishes(
    run_script: Script, small: Flags, fitted: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_script("fit", "--config=overfit", "--experiment=ablation", "--data.train_size=40", *small).status == 0
    run = FOLDER / "version_0"
    whole = (run / "summary.json").read_text()
    untested = {name: fact for name, fact in json.loads(whole).items() if name != "test"}
    (run / "summary.json").write_text(json.dumps(untested))
    monkeypatch.setattr(RunFiles, "wait_for_training", lambda files: files.summary.write_text(whole))
    made = run_script("ablate", "--seeds=1", "--sizes", "40", *small)
    assert made.status == 0, made.err
    assert not fitted
    assert [*run.rglob("last.ckpt")]


@pytest.mark.thorough
def test_a_run_that_fails_is_told_and_tried_again_later(
    run_script: Script, small: Flags, fitted: list[list[str]]
) -> None:
    kill = {
        "": "tests.faults.KillOnce",
        ".place": "step",
        ".step": 5,
        ".mark": "killed",
        ".number": int(signal.SIGTERM),
    }
    stops = [f"--trainer.callbacks{key}={value}" for key, value in kill.items()]  # of 4 and of 6 steps
    command = ["--seeds=1", "--sizes", "40", "60", *small, "--trainer.max_epochs=2", *stops]
    first = run_script("ablate", *command)
    assert first.status == 1
    assert "failed     size 60, seed 0: " in first.out
    assert "its output is in lightning_logs/ablation/logs/size=60,seed=0.txt" in first.out
    assert "done       size 40, seed 0" in first.out, "the others are made all the same"
    assert "1 run failed; start this again to try once more" in first.err
    assert not (FOLDER / "sizes.md").exists()
    assert run_script("ablate", *command).status == 0
    assert len(runs_of(FOLDER)) == 2
    assert (FOLDER / "sizes.md").exists()


def test_a_result_outlives_a_later_failure(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    assert run_script("ablate", "--seeds=1", "--sizes", "40", *small).status == 0
    study = optuna.load_study(study_name="ablation, sizes", storage=journal())
    (done,) = study.get_trials()
    fail = optuna.trial.TrialState.FAIL
    study.add_trial(optuna.trial.create_trial(state=fail, user_attrs={"setting": done.user_attrs["setting"]}))
    assert run_script("ablate", "--seeds=1", "--sizes", "40", *small).status == 0
    assert len(fitted) == 1


def test_other_settings_do_not_mix(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    assert run_script("ablate", "--seeds=1", "--sizes", "40", *small).status == 0
    other = run_script("ablate", "--seeds=1", "--sizes", "40", *small, "--model.hidden_features=8")
    assert other.status == 2
    assert "begun with other settings (model.hidden_features); give these again, or keep the new ones" in other.err
    apart = run_script("ablate", "--seeds=1", "--sizes", "40", *small, "--model.hidden_features=8", "--experiment=b")
    assert apart.status == 0, apart.err


@pytest.mark.thorough
def test_what_a_trial_cannot_have_is_told(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    for sizes, why in (((10, 40), "batch_size 20 is larger"), ((40, 500), "500 training and 50 validation images")):
        refused = run_script("ablate", "--seeds=1", "--sizes", *sizes, *small)
        assert refused.status == 2
        assert why in refused.err
        assert f"--sizes {500 if 500 in sizes else 10}" in refused.err
    assert not fitted
    for flag in ("--model.dropout=0.1", "--seed_everything=1", "--data.train_size=3"):
        refused = run_script("ablate", *small, flag)
        assert refused.status == 2
        assert f"{flag.partition('=')[0]}: the trials set this themselves" in refused.err
    blind = run_script(
        "ablate", "--seeds=1", "--sizes", "60", *small, "--trainer.limit_val_batches=0", "--experiment=b"
    )
    assert blind.status == 1
    assert "ran without validation, but an ablation needs it: remove --trainer.limit_val_batches" in blind.out


@pytest.mark.thorough
def test_a_worker_that_was_killed_while_it_wrote_holds_nobody_up(
    run_script: Script, small: Flags, fitted: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overfitting_lab.sweeps.storage.GRACE", 3)
    FOLDER.mkdir(parents=True)
    (FOLDER / "optuna.journal.lock").touch()
    outcome = run_script("ablate", "--seeds=1", "--sizes", "40", *small)
    assert outcome.status == 0, outcome.err
    assert len(fitted) == 1


@pytest.mark.parametrize(
    ("storage", "remedy"),
    [
        ("nothing://me:secret@here/db", "give a URL for SQLAlchemy"),
        ("sqlite:///not/there/trials.db", "cannot be used: unable to open database file; check its path"),
        ("torn.journal", "cannot be used (JSONDecodeError: "),
        ("torn.journal", "move it away: finished runs are found again"),
        ("not/there/trials.journal", "name a file in a folder that is there, or a database's URL"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named(storage: str, remedy: str, run_script: Script, small: Flags) -> None:
    Path("torn.journal").write_text('{"op_code": 0, "worker_id": \n{"op')
    outcome = run_script("ablate", *small, "--train_size=60", "--storage", storage)
    assert outcome.status == 1
    assert remedy in outcome.err
    assert "secret" not in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.thorough
def test_experiments_may_share_a_storage(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    shared = ["--seeds=1", "--sizes", "40", *small, "--storage=shared.journal"]
    assert run_script("ablate", *shared).status == 0
    other = run_script("ablate", *shared, "--model.hidden_features=8", "--experiment=b")
    assert other.status == 0, other.err
    assert len(runs_of(FOLDER)) == len(runs_of(FOLDER.with_name("b"))) == 1


@pytest.mark.long
def test_a_worker_that_is_killed_leaves_its_trial_to_the_next(
    run_script: Script, small: Flags, fitted: list[list[str]], tmp_path: Path
) -> None:
    slow = ["--trainer.callbacks=tests.faults.SlowStep", "--trainer.callbacks.step=7"]  # of 2 in an epoch
    flags = ["--seeds=1", "--sizes", "40", *small, *slow, "--trainer.max_epochs=5", "--checkpoint_steps=1"]
    worker = start_worker("ablate", flags, tmp_path)
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "in a step").exists():
        assert worker.is_alive(), (tmp_path / "output.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker.pid is not None
    os.killpg(worker.pid, signal.SIGKILL)
    worker.join()

    outcome = run_script("ablate", *flags)
    assert outcome.status == 0, outcome.err
    study = optuna.load_study(study_name="ablation, sizes", storage=journal())
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "COMPLETE"]
    assert fitted[0][:2] == ["--resume", str(FOLDER / "version_0")]
    (run,) = runs_of(FOLDER)
    assert len(run.records) == 5
    assert "resumed    in epoch" in (FOLDER / "logs/size=40,seed=0.txt").read_text()


@pytest.mark.long  # one that is killed beside another is below
def test_of_two_workers_each_trial_is_made_once(small: Flags, tmp_path: Path) -> None:
    flags = ["--seeds=1", "--sizes", "40", "60", *small, f"--storage=sqlite:///{tmp_path}/trials.db"]
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    workers = [start("ablate", [*flags, f"--trainer.default_root_dir={tmp_path}"], folder) for folder in folders]
    for worker in workers:
        worker.join(TIMEOUT)
    said = [(folder / "output.txt").read_text() for folder in folders]
    assert [worker.exitcode for worker in workers] == [0, 0], said
    done = [line for out in said for line in out.splitlines() if line.startswith("done")]
    assert len(done) == len({line.partition(":")[0] for line in done}) == 2
    assert len(runs_of(tmp_path / FOLDER)) == 2
    assert (tmp_path / FOLDER / "sizes.md").is_file()
    assert all("test  " in log.read_text() for log in (tmp_path / FOLDER / "logs").iterdir())


def test_a_trial_is_anothers_as_long_as_its_worker_lives(
    run_script: Script, small: Flags, fitted: list[list[str]]
) -> None:
    FOLDER.mkdir(parents=True)
    study = optuna.create_study(study_name="ablation, sizes", storage=journal(), direction="maximize")
    study.enqueue_trial({"size": 40, "seed": 0})
    begun = study.ask()
    for name in ("size", "seed"):
        begun.suggest_int(name, 0, 2**32 - 1)
    begun.set_user_attr("worker", "elsewhere:1")
    begun.set_user_attr("alive", time.time())
    waits = run_script("ablate", "--seeds=1", "--sizes", "40", *small)
    assert (waits.status, fitted) == (0, [])
    assert "1 trial is running on other workers" in waits.out
    assert not (FOLDER / "sizes.md").exists()
    begun.set_user_attr("alive", time.time() - 2 * GONE)
    assert run_script("ablate", "--seeds=1", "--sizes", "40", *small).status == 0
    assert len(fitted) == 1
    assert (FOLDER / "sizes.md").exists()


@pytest.mark.thorough
def test_a_storage_of_an_earlier_version_is_continued(
    run_script: Script, small: Flags, fitted: list[list[str]]
) -> None:
    assert run_script("ablate", "--seeds=1", "--sizes", "40", "60", *small).status == 0
    made = optuna.load_study(study_name="ablation, sizes", storage=journal())
    trials, fixed = made.get_trials(), made.user_attrs["fixed"]
    (FOLDER / "optuna.journal").unlink()
    for page in FOLDER.glob("sizes.*"):
        page.unlink()
    older = optuna.create_study(study_name="ablation, sizes", storage=journal(), direction="maximize")
    later = ("data.subset", "data.label_noise", "monitor")  # settings that came after the study
    older.set_user_attr("fixed", {name: value for name, value in fixed.items() if name not in later})
    number = optuna.distributions.IntDistribution(0, 2**32 - 1)
    for trial in trials[:1]:
        older.add_trial(
            optuna.trial.create_trial(
                value=trial.value,
                params=trial.user_attrs["setting"],
                distributions={"size": number, "seed": number},
                user_attrs={"result": trial.user_attrs["result"]},
            )
        )
    continued = run_script("ablate", "--seeds=1", "--sizes", "40", "60", *small)
    assert continued.status == 0, continued.err
    assert continued.out.count("begun") == 1, "the other one is there"
    assert len(fitted) == 2, "its run, too"
    assert "| 60 | 1 |" in (FOLDER / "sizes.md").read_text()


def test_a_run_of_an_earlier_version_is_found(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    assert run_script("ablate", "--seeds=1", "--sizes", "40", *small).status == 0
    (run,) = runs_of(FOLDER)
    text = run.files.config.read_text()
    assert "subset: 0\n" in text
    run.files.config.write_text(text.replace("  subset: 0\n", ""))
    (FOLDER / "optuna.journal").unlink()
    assert "data.subset" not in runs_of(FOLDER)[0].settings
    assert run_script("ablate", "--seeds=1", "--sizes", "40", *small).status == 0
    assert len(fitted) == 1


@pytest.mark.thorough
def test_a_number_of_any_setting_becomes_a_curve(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    flags = ["--factor=model.hidden_features=8,16,32", "--train_size=40", "--seeds=1"]
    outcome = run_script("ablate", *flags, *small)
    assert outcome.status == 0, outcome.err
    assert "design     curve: 3 cells x 1 seed = 3 trials" in outcome.out
    assert "done       hidden_features 8, seed 0: " in outcome.out
    assert [run.settings["model.hidden_features"] for run in runs_of(FOLDER)] == [32, 16, 8]
    page = (FOLDER / "curve-hidden_features-40.md").read_text()
    assert page.startswith("## Test accuracy over hidden features at 40 training images\n")
    assert "| 16 | 1 |" in page
    more = run_script("ablate", *flags, *small, "--factor=data.label_noise=0,0.5")
    assert more.status == 0, more.err
    assert len(fitted) == 3 + 3, "runs of the other study are found"
    page = (FOLDER / "levels-hidden_features-label_noise-40.md").read_text()
    assert page.count("| label noise | 0") == 2
    assert "| 32 | 0.5 | 1 |" in page


@pytest.mark.thorough
def test_all_images_may_be_a_level(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    flags = ("--factor=data.train_size=40,null", "--seeds=1", "--data.split=full", *small)
    outcome = run_script("ablate", *flags)
    assert outcome.status == 0, outcome.err
    assert "done       train_size None, seed 0: " in outcome.out
    assert len(fitted) == 2


@pytest.mark.thorough
def test_factors_alone_on_several_sets_of_images(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    factors = ["--factor=data.augment=none,flip_crop,notebook", "--factor=optimizer/sgd_momentum"]
    flags = ["--one_at_a_time", "--subsets=2", "--seeds=1", "--train_size=40", *factors, *small]
    outcome = run_script("ablate", *flags)
    assert outcome.status == 0, outcome.err
    runs = runs_of(FOLDER)
    found = {tuple(run.settings[f"data.{name}"] for name in ("augment", "subset")) for run in runs}
    assert found == {(augment, subset) for augment in ("none", "flip_crop", "notebook") for subset in (0, 1)}
    assert sum(run.settings["model.optimizer"] == "torch.optim.SGD" for run in runs) == 2
    assert len(fitted) == len(runs) == 8
    assert len({run.summary.data.fingerprint for run in runs}) == 2
    page = (FOLDER / "one_at_a_time-augment-sgd_momentum-40.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:3]] == ["| ---", "| none"]
    assert {row[0] for row in rows[3:]} == {
        "| augmentation flip_crop", "| augmentation notebook", "| sgd momentum"
    }  # fmt: skip
    worth = [float(row[5].split()[0]) for row in rows[3:]]
    assert worth == sorted(worth, reverse=True)
    assert all(" to " in row[7] for row in rows[3:]), "the accuracies of a network that guesses do not vary"


@pytest.mark.thorough
def test_configurations_of_one_name_are_not_confused(run_script: Script, small: Flags, fitted: list[list[str]]) -> None:
    """Each content of a configuration has trials of its own, with and without a suffix, in one experiment."""

    pages = []

    def tested(factor: str) -> dict[str, float]:
        outcome = run_script("ablate", f"--factor={factor}", "--seeds=1", "--train_size=40", *small)
        assert outcome.status == 0, outcome.err
        assert "\nchecking   2 cells\n" in outcome.out
        pages.append(Path(outcome.out.split()[-1]))
        numbers = json.loads(pages[-1].read_text())
        return {each["setting"]["mine"]: each["test_acc"] for each in numbers["trials"]}

    for folder, noise in (("one", 0.1), ("other", 0.9)):
        Path(folder).mkdir()
        Path(folder, "mine.yaml").write_text(f"data:\n  label_noise: {noise}\n")
    found = [tested("one/mine.yaml"), tested("other/mine.yaml")]
    Path("one/mine.yaml").write_text("data:\n  label_noise: 0.5\n")
    found.append(tested("./one/mine.yaml"))
    made = {run.settings["data.label_noise"]: run for run in runs_of(FOLDER)}
    assert made.keys() == {0.0, 0.1, 0.9, 0.5}
    assert len(fitted) == 4, "the trial without it is found again"
    for noise, said in zip((0.1, 0.9, 0.5), found, strict=True):
        tests = [made[each].summary.test for each in (0.0, noise)]
        assert said == {level: test.acc for level, test in zip(("off", "on"), tests, strict=True) if test}
    Path("one/mine.yaml").write_text("# a comment\ndata: {label_noise: 0.5}\n")
    tested("one/mine.yaml")
    assert len(fitted) == 4
    names = [f"factorial-mine-40{number}.json" for number in ("", "-2", "-3", "-3")]
    assert pages == [FOLDER / name for name in names], "no page replaces another's"


@pytest.mark.thorough
def test_a_whole_configuration_replaces_the_settings_that_it_has(
    run_script: Script, small: Flags, fitted: list[list[str]]
) -> None:
    factors = ["--factor=data.label_noise=0,0.3", "--factor=model.optimizer.lr=1e-3,1e-2"]
    flags = [
        "--one_at_a_time",
        "--seeds=1",
        "--train_size=40",
        *(f"--factor={name}" for name in ("random_labels", "early_stopping")),
        *small,
    ]
    outcome = run_script("ablate", *factors, *flags)
    assert outcome.status == 0, outcome.err
    names = ("data.label_noise", "model.optimizer.lr", "seed_everything", "monitor")
    found = [tuple(run.settings[name] for name in names) for run in runs_of(FOLDER)]
    assert sorted(found) == [
        (0.0, 1e-3, 0, "val_acc"),
        (0.0, 1e-3, 0, "val_loss"),
        (0.0, 1e-2, 0, "val_acc"),
        (0.3, 1e-3, 0, "val_acc"),
        (1.0, 1e-4, 0, "val_acc"),
    ]
    page = FOLDER / "one_at_a_time-label_noise-lr-random_labels-early_stopping-40"
    trials = json.loads(page.with_suffix(".json").read_text())["trials"]
    assert {"random_labels": "on", "early_stopping": "off", "seed": 0} in [trial["setting"] for trial in trials], (
        "no level that was not trained"
    )
    assert "done       random_labels on, early_stopping off, seed 0: " in outcome.out
    text = page.with_suffix(".md").read_text()
    assert "`random labels` has values of its own for label noise and lr. " in text
    assert "but with the lowest validation loss in the cells with: early stopping on." in text


def test_the_images_are_as_many_as_the_configuration_says(
    run_script: Script, small: Flags, fitted: list[list[str]], tmp_path: Path
) -> None:
    (tmp_path / "few.yaml").write_text("data: {train_size: 60}\n")
    configs = ("--config=overfit", "--config=few.yaml")
    outcome = run_script("ablate", *configs, *small, "--factor=model.dropout=0,0.5", "--seeds=1")
    assert outcome.status == 0, outcome.err
    assert {run.settings["data.train_size"] for run in runs_of(FOLDER)} == {60}
    assert "at 60 training images" in next(FOLDER.glob("*.md")).read_text()


def test_a_network_without_dropout_needs_factors_of_its_own(
    run_script: Script, small: Flags, fitted: list[list[str]]
) -> None:
    outcome = run_script("ablate", *small, "--model=tests.networks.Normalized", "--train_size=60")
    assert outcome.status == 2
    assert "dropout" in outcome.err
    assert "with the default factors, dropout, weight decay and augmentation" in outcome.err
    assert fitted == []


def test_combinations_that_train_the_same_are_told(run_script: Script, small: Flags) -> None:
    Path("rate.yaml").write_text("model: {init_args: {optimizer: {init_args: {lr: 0.01}}}}\n")
    level = '{"class_path":"torch.optim.SGD","init_args":{"lr":0.1}}'
    factors = [f"--factor=model.optimizer=torch.optim.Adam,{level}", "--factor=rate.yaml"]
    outcome = run_script("ablate", *factors, "--train_size=60", *small)
    assert outcome.status == 2
    assert "--factor rate.yaml trains the same as --factor model.optimizer=" in outcome.err
    assert "begun" not in outcome.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--factor=model.dropot=0,1"],
            f"did you mean dropout?{HELP}with --factor model.dropot=0",
        ),
        (
            ["--factor=model.dropout=0,much"],
            f"Got value: much{HELP}with --factor model.dropout=much\n",
        ),
        (["--factor=data.label_noise=0,7"], "data.label_noise must be in [0, 1], not 7"),
        (["--factor=data.augment=none,blur"], "blur"),
        (["--factor=model.dropout=0,0.5"] * 2, "--factor model.dropout is given twice"),
        (["--factor=model.dropout=0,0.5,0"], "the level 0 is given twice"),
        (["--factor=model.dropout=0,0.0"], "model.dropout has the levels 0 and 0.0, which are the same value"),
        (["--factor=model.dropout=0.5"], "needs two levels or more"),
        (["--factor=model.dropout=0,"], "needs two levels or more"),
        (["--factor=model.optimizer.betas=[0.9,0.99]"], "needs two levels or more"),
        (["--factor=model.dropout=0,0.5", "--model.dropout=0.1"], "--model.dropout: the trials set this themselves"),
        (["--factor=seed_everything=1,2"], "see --seeds"),
        (["--factor=data.root=a,b"], "this setting does not change the result of a run"),
        (["--factor=optimizer/none"], "neither SETTING=LEVEL,LEVEL nor a configuration"),
        (["--factor=optimizer/adam", "--factor=optimizer/sgd_momentum"], "and so does --factor"),
        (
            ["--factor=averaging/ema", "--factor=averaging/swa.yaml"],
            f"only one network can be validated: give one{HELP}"
            "with --factor averaging/ema --factor averaging/swa.yaml\n",
        ),
        (["--factor=data.train_size=40,500"], "data.train_size=500: 500 training and 50 validation images"),
        (
            ["--factor=data.train_size=40,60", "--train_size=40"],
            "--factor data.train_size varies the number of images: leave --train_size out",
        ),
        (["--sizes", "40", "--full"], "leave --one_at_a_time and --full out"),
        (["--subsets=3"], "subset 2 of 60 training and 50 validation images ends at image 330"),
    ],
)
def test_what_cannot_vary_is_told_before_anything_is_trained(
    flags: list[str], words: str, run_script: Script, small: Flags
) -> None:
    sizes = [] if any("train_size" in flag for flag in flags) else ["--train_size=60"]
    outcome = run_script("ablate", *flags, *sizes, *small)
    assert outcome.status == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert "begun" not in outcome.out


@pytest.mark.thorough
def test_a_worker_that_is_killed_amid_a_trial_changes_no_result(
    run_script: Script, small: Flags, fitted: list[list[str]], tmp_path: Path
) -> None:
    factors = ["--factor=model.dropout=0,0.5", "--factor=data.label_noise=0,0.3", "--seeds=1", "--train_size=40"]
    slow = ["--trainer.callbacks=tests.faults.SlowStep", "--trainer.callbacks.step=1"]
    worker = start_worker("ablate", [*factors, *small, *slow], tmp_path)
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "in a step").exists():
        assert worker.is_alive(), (tmp_path / "output.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)

    def kill() -> None:
        while not any(run.finished for run in runs_of(tmp_path / FOLDER)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert worker.pid is not None
        os.killpg(worker.pid, signal.SIGKILL)
        worker.join()

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = run_script("ablate", *factors, *small, *slow)
    killer.join()
    assert outcome.status == 0, outcome.err
    study = optuna.load_study(study_name="ablation, dropout x label_noise, 40 images", storage=journal())
    states = [trial.state.name for trial in study.get_trials()]
    assert (states.count("FAIL"), states.count("COMPLETE")) == (1, 4)
    assert len(runs_of(FOLDER)) == 4
    alone = run_script("ablate", *factors, *small, *slow, "--experiment=alone")
    assert alone.status == 0, alone.err
    name = "factorial-dropout-label_noise-40.md"
    tables = [(folder / name).read_text().partition("Origin")[0] for folder in (FOLDER, FOLDER.with_name("alone"))]
    assert tables[0] == tables[1]


@pytest.mark.thorough
def test_an_interrupted_ablation_says_how_to_resume(small: Flags, tmp_path: Path) -> None:
    worker = start("ablate", ["--seeds=1", "--sizes", "40", *small], tmp_path)
    deadline, output = time.monotonic() + TIMEOUT, tmp_path / "output.txt"
    while not output.exists() or "begun" not in output.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert worker.pid is not None
    os.killpg(worker.pid, signal.SIGINT)
    worker.join(TIMEOUT)
    assert worker.exitcode == 130
    assert "stopped    resume with the same command: python " in output.read_text()
    assert "--sizes 40" in output.read_text()
