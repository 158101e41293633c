"""A file that a script loads may name any code. None is imported because of it."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _named(settings: dict[str, Any], where: str) -> dict[str, Any]:
    name = {"class_path": "somebodys.Net", "init_args": {}}
    return (
        settings
        | {
            "the class": {"_class_path": "somebodys.Net"},
            "the builder": {"_instantiator": "somebodys.Net"},
            "a part": {"initialization": name},
            "a part's name": {"initialization": "somebodys.Net"},
        }[where]
    )


@pytest.mark.parametrize("where", ["the class", "the builder", "a part", "a part's name"])
@pytest.mark.parametrize("of", ["hyper_parameters", "datamodule_hyper_parameters"])
def test_nothing_is_imported_because_a_file_names_it(
    where: str,
    of: str,
    package: Path,
    run_script: Script,
    finished_run: FinishedRun,
    image_folder: Path,
    tmp_path: Path,
) -> None:
    run = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    best = run / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    content[of] = _named(content[of], where)
    torch.save(content, best)
    torch.save(content | {"classes": ["a", "b", "c"]}, tmp_path / "model.pth")
    image = image_folder / "test" / "cat" / "00002.png"
    for command in (("predict", run, image), ("predict", tmp_path / "model.pth", image), ("export", run)):
        outcome = run_script(*command)
        assert not package.exists(), command
        assert "Traceback" not in outcome.err
        if of == "hyper_parameters" and where != "the builder":
            assert outcome.status == 1
            assert "somebodys.Net" in outcome.err


def test_a_run_of_somebodys_network_is_used_by_its_folder(
    package: Path,
    run_script: Script,
    tiny: Flags,
    image_folder: Path,
    tmp_path: Path,
) -> None:
    outcome = run_script("fit", "--config", "overfit", *tiny, "--model=somebodys.Net", "--trainer.max_epochs=1")
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
