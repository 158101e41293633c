"""A file that a script loads may name any code. None is imported because of it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import FinishedRun, Flags, Script

CODE = """
from pathlib import Path

Path(__file__).with_name("imported").touch()

from lightning_modules import AlexNet

class Net(AlexNet):
    pass
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Write a module that can be imported, and return the file that tells that it was."""
    (tmp_path / "somebodys.py").write_text(CODE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "imported"
    sys.modules.pop("somebodys", None)


PART = {"class_path": "somebodys.Net", "init_args": {}}
BUILDER = "lightning.pytorch.cli.instantiate_module"
PLACES = {  # of the name, among the settings that a checkpoint has of the network or of the data
    "the network": ("hyper_parameters", {"_class_path": "somebodys.Net"}),
    "the network's builder": ("hyper_parameters", {"_instantiator": "somebodys.Net"}),
    "a part": ("hyper_parameters", {"initialization": PART}),
    "the name of a part": ("hyper_parameters", {"initialization": "somebodys.Net"}),
    "the data": ("datamodule_hyper_parameters", {"_instantiator": BUILDER, "_class_path": "somebodys.Net"}),
    "a setting of the data": ("datamodule_hyper_parameters", {"_instantiator": BUILDER, "root": PART}),
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_imported_because_a_file_names_it(
    place: str, package: Path, run_script: Script, finished_run: FinishedRun, image_folder: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    best = run / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    kind, settings = PLACES[place]
    content[kind] |= settings
    torch.save(content, best)
    torch.save(content | {"classes": ["a", "b", "c"]}, tmp_path / "model.pth")
    image = image_folder / "test" / "cat" / "00002.png"
    commands = [
        ("predict", run, image),
        ("predict", tmp_path / "model.pth", image),
        ("export", run, "--formats", "pth"),
    ]
    for command in commands[: 3 if place == "the network" else 2]:
        outcome = run_script(*command)
        assert not package.exists(), command
        assert outcome.status == 1
        assert outcome.err.count("error:") == 1
        assert "Traceback" not in outcome.err


@pytest.mark.thorough
def test_a_run_of_somebodys_network_is_used_by_its_folder(
    package: Path,
    run_script: Script,
    short: Flags,
    image_folder: Path,
    tmp_path: Path,
) -> None:
    outcome = run_script("fit", "--config", "overfit", *short, "--model=somebodys.Net", "--trainer.max_epochs=1")
    assert outcome.status == 0, outcome.err
    run, image = tmp_path / "lightning_logs" / "overfit" / "version_0", image_folder / "test" / "cat" / "00002.png"
    outcome = run_script("export", run, "--formats", "pth")
    assert outcome.status == 0, outcome.err
    sys.modules.pop("somebodys")
    package.unlink()
    outcome = run_script("predict", run / "export" / "model.pth", image)
    assert outcome.status == 1
    assert "give the folder of a run whose config.yaml names this network" in outcome.err
    assert not package.exists()
    outcome = run_script("predict", run, image)
    assert outcome.status == 0, outcome.err
    assert package.exists()
