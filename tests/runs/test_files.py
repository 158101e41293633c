from pathlib import Path

import pytest

from overfitting_lab.runs.files import replace_file


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(folder, lambda path: path.write_text("text"))
    assert [*tmp_path.iterdir()] == [folder]
