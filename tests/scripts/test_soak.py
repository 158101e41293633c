from pathlib import Path
from statistics import median

import pytest

from tests.conftest import Flags
from tests.processes import start

EPOCHS = 2000


@pytest.mark.long
def test_memory_stays_flat_over_2000_epochs(tiny: Flags, tmp_path: Path) -> None:
    log = tmp_path / "memory.txt"
    short = [
        "--data.train_size=20",
        "--data.val_size=10",
        "--model.hidden_features=1",
        f"--trainer.max_epochs={EPOCHS}",
    ]
    watched = ["--trainer.callbacks=tests.faults.MemoryLog", f"--trainer.callbacks.file={log}"]
    process = start("fit", ["--config=overfit", *tiny, *short, *watched], tmp_path)
    process.join()
    assert process.exitcode == 0, (tmp_path / "output.txt").read_text()[-2000:]
    memory = [int(line) for line in log.read_text().split()]
    assert len(memory) == EPOCHS
    warm, end = median(memory[100:200]), median(memory[-100:])
    print(f"{warm / 1e6:.1f} MB after 100 to 200 epochs, {end / 1e6:.1f} MB at the end: {end / warm - 1:+.2%}")
    assert end < 1.02 * warm
    assert {path.name for path in tmp_path.iterdir()} == {"lightning_logs", "memory.txt", "output.txt"}
    run = tmp_path / "lightning_logs/overfit/version_0"
    assert not [path for path in run.rglob("*") if path.name.startswith(".")]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
