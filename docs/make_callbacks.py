"""python docs/make_callbacks.py.

Write the table of docs/callbacks.md from the contracts of Lightning's callbacks.
"""

from pathlib import Path

from overfitting_lab.cli.trainer_callbacks import CONTRACTS

PAGE = Path(__file__).resolve().with_name("callbacks.md")
BEGIN, END = "<!-- make_callbacks.py writes from here -->\n", "<!-- to here -->\n"


def page() -> str:
    """Return the page with the table of today."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    rows = [
        f"| `{name}` | {'works' if contract.works else 'refused'} | {contract.sentence.rstrip('.')}. |\n"
        for name, contract in sorted(CONTRACTS.items(), key=lambda item: (not item[1].works, item[0].lower()))
    ]
    table = "| callback | here | what it does, or why it is refused |\n| --- | --- | --- |\n" + "".join(rows)
    return before + BEGIN + table + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
