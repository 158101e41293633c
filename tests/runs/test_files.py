import os
from pathlib import Path

import pytest

from overfitting_lab.runs.files import replace_file, resume_command


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(folder, lambda path: path.write_text("text"))
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.skipif(os.name != "posix", reason="there are no such devices")
def test_a_device_is_written_to_and_not_replaced() -> None:
    replace_file(Path(os.devnull), lambda path: path.write_text("text"))
    assert Path(os.devnull).is_char_device()


def test_the_command_that_resumes_can_be_pasted() -> None:
    assert resume_command(Path("logs/a b/version_0")) == "python scripts/fit.py --resume 'logs/a b/version_0'"
