from pathlib import Path

from tests.conftest import Flags, Script, scalars_of

STILL = ("--model.optimizer.lr=0", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1")


def test_the_loss_of_a_step_of_several_batches_is_that_of_one(run_script: Script, quick: Flags, tmp_path: Path) -> None:
    for more in ((), ("--trainer.accumulate_grad_batches=2",)):
        assert run_script("fit", "--config=overfit", *quick, "--data.batch_size=25", *STILL, *more).status == 0
    runs = tmp_path / "lightning_logs" / "overfit"
    one, two = (scalars_of(runs / f"version_{number}")["steps/loss"] for number in (0, 1))
    assert [step for step, _ in one] == [1, 2, 3, 4]
    assert two == [(1, one[1][1]), (2, one[3][1])], "the weights stay, so that every second batch has the same loss"
