import os

import pytest

from overfitting_lab.runs.text import ESCAPE, escaped, readable


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"cat", "cat"),
        ("猫 café".encode(), "猫 café"),
        ("cafe\N{COMBINING ACUTE ACCENT}".encode(), "café"),
        (b"caf\xe9", r"caf\xe9"),
        (b"a\nb\tc", r"a\nb\tc"),
        (b"\x1b[31mred", r"\x1b[31mred"),
        ("a\N{RIGHT-TO-LEFT OVERRIDE}gpj".encode(), r"a\u202egpj"),
        ("שלום $x^2$ [b] <b>".encode(), "שלום $x^2$ [b] <b>"),
        ("👩\N{ZERO WIDTH JOINER}🔬\N{IDEOGRAPHIC SPACE}x".encode(), "👩\N{ZERO WIDTH JOINER}🔬\N{IDEOGRAPHIC SPACE}x"),
    ],
)
def test_any_name_becomes_text_that_can_be_shown(name: bytes, text: str) -> None:
    shown = readable(os.fsdecode(name))
    assert shown == text
    assert shown.encode().decode() == escaped(shown) == shown


@pytest.mark.parametrize(("encoding", "text"), [("ascii", r"\u732b \xe9 \xe9"), ("cp1252", "\\u732b é \\xe9")])
def test_an_encoding_shows_what_it_lacks_as_escape_sequences(encoding: str, text: str) -> None:
    assert "猫 é \udce9".encode(encoding, ESCAPE).decode(encoding) == text
