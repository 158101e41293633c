from pathlib import Path

import pytest

from tests.conftest import Flags, Script, scalars_of

STILL = ("--model.optimizer.lr=0", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1")


def test_the_loss_of_a_step_is_the_mean_over_its_batches(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    for more in ((), ("--trainer.accumulate_grad_batches=2",)):
        assert run_script("fit", "--config=overfit", *quick, "--data.batch_size=25", *STILL, *more).status == 0
    runs = tmp_path / "lightning_logs" / "overfit"
    one, two = (scalars_of(runs / f"version_{number}")["steps/loss"] for number in (0, 1))
    assert [step for step, _ in one] == [1, 2, 3, 4]
    losses = [loss for _, loss in one]  # the weights stay, so that the batches of both runs have the same losses
    means = [sum(losses[:2]) / 2, sum(losses[2:]) / 2]
    assert two == [(step, pytest.approx(mean, rel=1e-5)) for step, mean in enumerate(means, start=1)]
