import json
import os
import signal
import time
from pathlib import Path
from typing import IO

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from overfitting_lab.cli import finished
from overfitting_lab.runs import runs_of
from tests.conftest import Flags, Script, summary_of, timeless
from tests.processes import start_worker

FOLDER = Path("lightning_logs/tuning")
LR, WIDTH, AUGMENT = "model.optimizer.lr=1e-3..1e-1", "model.hidden_features=4..20", "data.augment=none,flip_crop"
TIMEOUT = 240


def search(kind: str = "search") -> optuna.Study:
    """Return a study in the folder's journal."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(FOLDER / "optuna.journal")))
    return optuna.create_study(study_name=f"tuning, {kind}", storage=storage, direction="maximize", load_if_exists=True)


def trials(kind: str = "search") -> list[tuple[int, str]]:
    return [(trial.number, trial.state.name) for trial in search(kind).get_trials()]


@pytest.mark.thorough
@pytest.mark.pictures
def test_the_winner_alone_is_tested_and_its_configuration_replays_it(
    run_script: Script, quick: Flags, fitted: list[list[str]]
) -> None:
    searches = [f"--search={text}" for text in (LR, WIDTH, AUGMENT)]
    outcome = run_script("tune", *searches, "--trials=3", "--confirm=1", *quick)
    assert outcome.status == 0, outcome.err
    assert "search     model.optimizer.lr: 0.001 to 0.1, logarithmic scale\n" in outcome.out
    assert "search     model.hidden_features: 4 to 20, whole numbers, linear scale\n" in outcome.out
    assert trials() == [(0, "COMPLETE"), (1, "COMPLETE"), (2, "COMPLETE")]
    assert len(fitted) == 3 + 1 + 2, "trials, test, and another seed of the winner and of the configuration"

    best = search().best_trial
    winner = FOLDER / best.user_attrs["run"]
    made = runs_of(FOLDER)
    assert len(made) == 3 + 2
    for run in made:
        assert run.summary.status == "finished"
        is_winner = run.folder == winner
        assert (run.summary.test is not None) == is_winner
        assert run.summary.untested == (None if is_winner else "a search tests its winner alone")
        assert bool([*run.folder.rglob("*.ckpt")]) == is_winner
        assert run.files.weights.exists() == is_winner
        assert not any("pruning" in str(value) for value in run.settings.values()), "a run replays outside its search"
    assert {run.settings["model.optimizer.lr"] for run in made if run.settings["seed_everything"] > 0} == {
        1e-4, float(f"{best.params['model.optimizer.lr']:.4g}"),
    }  # fmt: skip
    assert all(type(trial.params["model.hidden_features"]) is int for trial in search().get_trials())
    assert "test       trial " in outcome.out
    (sentence,) = (line for line in outcome.out.splitlines() if line.startswith("selection"))
    assert f"trial {best.number + 1} is the best of 3 trials" in sentence
    assert "With 1 other seed its settings reach " in sentence
    assert "Other seeds did not choose it" in (FOLDER / "tuning.md").read_text()
    text = (FOLDER / "tuning.md").read_text()
    assert sentence.removeprefix("selection  ") in text
    assert "Other seeds did not choose it" in text
    assert "\n- Verdict: the winner is " in text
    missing = "The importances of the settings are left out: they need 20 complete trials with different val_acc, of "
    assert missing in text
    assert not (FOLDER / "tuning-importances.png").exists()
    for name in ("history", "slices", "epochs"):
        assert (FOLDER / f"tuning-{name}.png").stat().st_size > 5000
        assert f"(tuning-{name}.png)" in text
    assert "note " not in outcome.err

    replay = run_script("fit", "--config", FOLDER / "best.yaml")
    assert replay.status == 0, replay.err
    (again,) = runs_of(FOLDER.with_name("tuning_best"))
    assert timeless(again.folder) == timeless(winner)
    assert summary_of(again.folder)["test"] == summary_of(winner)["test"]

    assert run_script("tune", *searches, "--trials=3", "--confirm=1", *quick).status == 0
    assert len(fitted) == 6
    other = run_script("tune", *searches[:2], "--trials=3", *quick)
    assert other.status == 2
    assert "was begun with other settings (--search data.augment)" in other.err
    other = run_script("tune", *searches, "--trials=3", *quick, "--data.batch_size=10")
    assert (other.status, len(fitted)) == (2, 6)
    assert "was begun with other settings (data.batch_size)" in other.err


def test_equal_trials_are_counted_and_without_other_seeds_the_page_speaks_of_none(
    run_script: Script, quick: Flags, fitted: list[list[str]]
) -> None:
    idle = "--search=model.optimizer.betas=[0.9,0.999],[0.9,0.9990]"  # twice the same
    outcome = run_script("tune", idle, "--trials=2", "--confirm=0", *quick)
    assert outcome.status == 0, outcome.err
    assert "search     model.optimizer.betas: [0.9,0.999], [0.9,0.9990]\n" in outcome.out
    text = (FOLDER / "tuning.md").read_text()
    assert "trial 1 is the best of 2 trials with val_acc " in text
    assert ", which 2 trials share; it was taken because its number is the lowest of them; no run with" in text
    assert "Other seeds" not in text
    assert "% (95 % Wilson interval " in text
    assert "The importances of the settings are left out: one setting is searched.\n" in text
    assert "Warning" not in outcome.err


@pytest.mark.thorough
@pytest.mark.pictures
def test_importances_are_drawn_of_enough_different_trials(
    run_script: Script, quick: Flags, fitted: list[list[str]]
) -> None:
    FOLDER.mkdir(parents=True)
    scales: dict[str, BaseDistribution] = {
        "model.optimizer.lr": FloatDistribution(1e-3, 1e-1, log=True),
        "model.dropout": FloatDistribution(0, 0.5),
    }
    for number in range(20):
        values = {"model.optimizer.lr": 0.001 * (number + 1), "model.dropout": 0.02 * number}
        flags = [f"--{key}={value}" for key, value in values.items()]
        search().add_trial(
            optuna.trial.create_trial(
                value=number / 1000, params=values, distributions=scales, user_attrs={"flags": flags}
            )
        )
    searches = [f"--search={LR}", "--search=model.dropout=0..0.5"]
    outcome = run_script("tune", *searches, "--trials=21", "--confirm=0", *quick)
    assert outcome.status == 0, outcome.err
    text = (FOLDER / "tuning.md").read_text()
    assert "(tuning-importances.png)\n" in text
    assert "Importances (PED-ANOVA, Watanabe et al. 2023) say" in text
    assert "left out" not in text
    assert (FOLDER / "tuning-importances.png").stat().st_size > 5000
    assert "Warning" not in outcome.err


@pytest.mark.thorough
def test_a_trial_below_the_median_is_pruned(run_script: Script, quick: Flags, fitted: list[list[str]]) -> None:
    FOLDER.mkdir(parents=True)
    for _ in range(5):  # finished trials whose every epoch was better than an accuracy can be
        search().add_trial(
            optuna.trial.create_trial(
                value=0.5,
                params={"model.optimizer.lr": 0.01},
                distributions={"model.optimizer.lr": FloatDistribution(1e-3, 1e-1, log=True)},
                intermediate_values=dict.fromkeys(range(3), 2.0),
                user_attrs={"flags": []},
            )
        )
    outcome = run_script("tune", f"--search={LR}", "--trials=6", *quick, "--trainer.max_epochs=3")
    assert "pruned     trial 6: after epoch 2 its best val_acc, " in outcome.out, outcome.err
    assert search().get_trials()[5].state == TrialState.PRUNED
    (run,) = runs_of(FOLDER)
    assert len(run.records) == 2
    assert run.summary.status == "finished"
    assert (run.summary.reason or "").startswith("pruned: after epoch 2 its best val_acc, ")
    assert run.summary.test is None
    assert not [*run.folder.rglob("*.ckpt")]
    assert outcome.status == 1
    assert "the run of trial 1 is gone" in outcome.err


def test_a_trial_that_diverges_is_a_bad_one(run_script: Script, quick: Flags, fitted: list[list[str]]) -> None:
    outcome = run_script("tune", "--search=model.optimizer.lr=1e30,1e35", "--trials=1", *quick)
    assert "pruned     trial 1: the loss is NaN or infinite" in outcome.out
    assert trials() == [(0, "PRUNED")]
    assert outcome.status == 1
    assert "no trial trained to its end, so there is no winner" in outcome.err


@pytest.mark.thorough
def test_a_trial_that_fails_is_resumed_by_the_next_command_with_its_callbacks_once(
    run_script: Script, quick: Flags, fitted: list[list[str]]
) -> None:
    kill = {"+": "tests.faults.KillOnce", ".place": "step", ".step": 7, ".mark": "killed", ".number": 15}
    stops = [f"--trainer.callbacks{key}={value}" for key, value in kill.items()]  # of 10 steps
    overlays = ["--config=overfit", "--config=averaging/ema", "--config=early_stopping"]
    command = [*overlays, f"--search={LR}", "--trials=1", "--confirm=0", *quick, *stops]
    first = run_script("tune", *command)
    assert first.status == 1
    assert "failed     trial 1: exit status 143; its output is in lightning_logs/tuning/logs/trial-1.txt" in first.out
    assert "1 run failed; start this again to resume; a run that fails again is counted as pruned" in first.err
    assert not (FOLDER / "best.yaml").exists()
    second = run_script("tune", *command)
    assert second.status == 0, second.err
    assert trials() == [(0, "COMPLETE")]
    assert "resumed    in epoch 2 after step 7" in (FOLDER / "logs/trial-1.txt").read_text()
    assert len(runs_of(FOLDER)) == 1
    text = (FOLDER / "tuning.md").read_text()
    assert "\n1 trial trained to the end and 0 were pruned" in text
    assert "trial 1 is the only trial with val_" in text
    assert "value is a noisy one. All these" in text
    assert "no run with another seed tells how much of that is selection" in second.out


@pytest.mark.thorough
def test_a_trial_that_fails_in_two_processes_is_pruned(
    run_script: Script, quick: Flags, fitted: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished.run_command

    def fail(command: list[str], output: IO[str] | None) -> int:
        return 1 if command[-1] == "search:0" else run(command, output)

    monkeypatch.setattr(finished, "run_command", fail)
    command = [f"--search={LR}", "--trials=2", "--confirm=0", *quick]
    first = run_script("tune", *command)
    assert first.status == 1
    assert "done       trial 2" in first.out
    second = run_script("tune", *command)
    assert second.status == 0, second.err
    assert trials() == [(0, "PRUNED"), (1, "COMPLETE")]
    assert "it failed twice, at last with exit status 1; its output is in " in (FOLDER / "tuning.md").read_text()


def test_ctrl_c_says_how_to_resume(run_script: Script, quick: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(command: list[str], output: IO[str] | None) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("overfitting_lab.cli.finished.run_command", interrupt)
    outcome = run_script("tune", f"--search={LR}", *quick)
    assert outcome.status == 130
    assert "run the same command again to resume" in outcome.out


@pytest.mark.long
def test_of_two_workers_one_is_killed_and_each_trial_is_made_once(
    run_script: Script, quick: Flags, fitted: list[list[str]], tmp_path: Path
) -> None:
    slow = ["--trainer.callbacks=tests.faults.SlowStep", "--trainer.callbacks.step=7"]  # of 5 in an epoch
    flags = [f"--search={LR}", "--trials=2", "--confirm=0", *quick, *slow, "--checkpoint_steps=1"]
    worker = start_worker("tune", flags, tmp_path)
    deadline = time.monotonic() + TIMEOUT
    while not (tmp_path / "in a step").exists():
        assert worker.is_alive(), (tmp_path / "output.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    other = run_script("tune", *flags)
    assert other.status == 0, other.err
    assert "1 trial is running on other workers; run this command again when they have finished" in other.out
    assert trials() == [(0, "RUNNING"), (1, "COMPLETE")]
    assert worker.pid is not None
    os.killpg(worker.pid, signal.SIGKILL)
    worker.join()

    outcome = run_script("tune", *flags)
    assert outcome.status == 0, outcome.err
    assert trials() == [(0, "COMPLETE"), (1, "COMPLETE")]
    made = runs_of(FOLDER)
    assert [len(run.records) for run in made] == [2, 2]
    assert "resumed    in epoch 2 after step 7" in (FOLDER / "logs/trial-1.txt").read_text()
    assert sum(run.summary.test is not None for run in made) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--search=data.augmnt=none,flip_crop"], "did you mean --data.augment?"),
        (["--search=model.optimizer.lr"], "write KEY=LOW..HIGH or KEY=A,B,C"),
        (["--search=model.optimizer.lr=low..high"], "--search model.optimizer.lr=low..high: "),
        (["--search=model.optimizer.lr=0.1..0.01"], "the low end must be below the high end"),
        (["--search=model.optimizer.lr=-1..0.1"], "Invalid learning rate: -1"),
        (["--search=model.optimizer.lr=1e-5...1e-1"], "three dots are unclear; write two dots"),
        (["--search=model.optimizer.betas=[0.9,0.99],[0.8,wild]"], "betas=[0.9,0.99],[0.8,wild]: "),
        ([f"--search={LR}", "--trials=0"], "argument --trials: 0 is not a whole number of at least 1\n"),
        ([f"--search={LR}", "--confirm=-1"], "argument --confirm: -1 is not a whole number of at least 0\n"),
        (["--search=data.augment=none,wild"], "--search data.augment=none,wild: "),
        (["--search=data.augment=none..flip_crop"], "a range has two numbers; list other values as A,B,C"),
        (["--search=data.augment=none,none"], "a value is empty or given twice"),
        (["--search=data.augment=none,flip_crop", "--search=data.augment=flip_crop,none"], "is given twice"),
        (["--search=model.dropout=0..0.5", "--model.dropout=0.1"], "--model.dropout also fixes this setting"),
        (["--search=seed_everything=0..9"], "a seed cannot be tuned; --confirm N"),
        (["--search=data.split_seed=0..9"], "trials must have the same validation images"),
        (["--search=data.subset=0,1,2"], "trials must have the same validation images"),
        (["--search=trainer.enable_checkpointing=true,false"], "each trial needs its checkpoints"),
        (["--search=checkpoint_minutes=1..5"], "this setting does not change the result of a run"),
        ([f"--search={LR}", "--trainer.limit_val_batches=0"], "--trainer.limit_val_batches 0: the validation decides"),
        (
            [f"--search={LR}", "--trainer.limit_val_batches=0.5"],
            "--trainer.limit_val_batches 0.5: --data.val_size says",
        ),
        ([f"--search={LR}", "--trainer.logger=false"], "--trainer.logger false: a trial must keep its run"),
        ([f"--search={LR}", "--check"], "--check: the tuner begins and resumes the runs itself"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_is_trained(
    flags: list[str], message: str, run_script: Script, quick: Flags, fitted: list[list[str]]
) -> None:
    outcome = run_script("tune", *quick, *flags)
    assert outcome.status == 2, outcome.err
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert fitted == []
    assert not FOLDER.exists()


def test_a_storage_that_cannot_be_used_is_named(run_script: Script, quick: Flags) -> None:
    Path("torn.journal").write_text(json.dumps({"op_code": 0})[:-1] + "\n{")
    outcome = run_script("tune", f"--search={LR}", *quick, "--storage=torn.journal")
    assert outcome.status == 1
    assert "--storage torn.journal cannot be used" in outcome.err
    assert "move it away: the search begins anew" in outcome.err
