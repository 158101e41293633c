import ast
import re
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

PACKAGES = ("benchmarks", "datamodules", "docs", "lightning_modules", "overfitting_lab", "scripts")
TEXT = re.compile(r".*\.(read|write)_text|(.*\.)?(open|fdopen|TextIOWrapper)", re.DOTALL)
OTHERS = re.compile(r"(os|Image|tarfile|.*logger)\.open")  # they open no text
BINARY = re.compile(r"'[rwax+]+b\+?'")


def without_encoding(code: str) -> Iterator[int]:
    """Yield the lines that read or write text in the encoding of the locale. ruff's PLW1514 misses most of them."""
    for call in ast.walk(ast.parse(code)):
        if isinstance(call, ast.Call):
            name, whole = ast.unparse(call.func), ast.unparse(call)
            file = TEXT.fullmatch(name) and not OTHERS.fullmatch(name) and not BINARY.search(whole)
            process = any(each.arg in ("text", "universal_newlines") for each in call.keywords)
            if (file or process) and "encoding=" not in whole:
                yield call.lineno


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("open(path)", True),
        ("open(path, 'w')", True),
        ("path.open('a')", True),
        ("path.read_text()", True),
        ("json.loads(folder(x).read_text())", True),
        ("run(command, text=True)", True),
        ("io.TextIOWrapper(stream)", True),
        ("open(path, 'rb')", False),
        ("path.open('r+b' if there else 'wb')", False),
        ("path.open(mode, encoding='utf-8')", False),
        ("path.write_text(text, encoding='utf-8')", False),
        ("write_text(path, text)", False),
        ("Image.open(path)", False),
        ("run(command)", False),
    ],
)
def test_text_without_an_encoding_is_found(code: str, found: bool) -> None:
    assert any(without_encoding(code)) == found


def test_no_text_is_read_or_written_in_the_encoding_of_the_locale() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in files
        for line in without_encoding(file.read_text(encoding="utf-8"))
    ]
    assert found == []
