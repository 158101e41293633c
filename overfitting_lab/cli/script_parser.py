"""The flags of a script, of which those that it does not know go to ``fit.py``."""

import argparse
from typing import Any

from overfitting_lab.cli.suggestions import DASHES, nearest


class ScriptParser(argparse.ArgumentParser):
    """The parser of a script that gives unknown flags to ``fit.py``. It refuses its own flags if they are misspelled.

    No flag may be abbreviated: else ``--seed``, which a user of ``fit.py`` may type, would mean ``--seeds``.
    """

    def __init__(self, description: str | None):
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=style, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the script's own flags, and return the others as they are."""
        arguments, others = super().parse_known_args(args, namespace)
        own = {flag.lstrip("-"): action.help for action in self._actions for flag in action.option_strings}
        for given in others:
            name = given.partition("=")[0]
            near = nearest(name.strip(DASHES), own) if given.startswith(tuple(DASHES)) else None
            if near and own[near] != argparse.SUPPRESS:
                self.error(f"unrecognized arguments: {given}\ndid you mean --{near}? ({own[near]})")
        return arguments, others


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Return a whole number of at least 0."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")
    return number
