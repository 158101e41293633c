"""Parse the command line into a configuration, and report a mistake as one message."""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lightning_modules.schedules import OPTIONAL
from overfitting_lab.cli.failures import wants_trace
from overfitting_lab.cli.loggers import explained, missing_package, without_logger
from overfitting_lab.cli.trainer_callbacks import refusal
from overfitting_lab.runs.imports import find_modules_beside, why_not_imported
from overfitting_lab.runs.recipe import read_config

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"  # of a wheel, a clone


def available_configs() -> list[str]:
    """Return the names under ``configs/`` without their suffix."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def find_config(name: str) -> str:
    """Return the path of a configuration: an existing path as it is, else the file of that name in ``configs/``."""
    paths = (Path(name), CONFIGS / name, CONFIGS / f"{name}.yaml")
    return next((str(path) for path in paths if path.is_file()), name)


def _content(argument: str, *, with_logger: bool) -> str:
    """Replace a configuration's path in an argument by its content, if the file cannot be used as it is."""
    option, _, path = argument.rpartition("=")
    if not path.endswith(".yaml") or option not in ("", "--config") or not Path(path).is_file():
        return argument
    text = read_config(Path(path))
    text = text if with_logger else without_logger(text)
    return argument if text == Path(path).read_text(encoding="utf-8") else f"{option}{'=' * bool(option)}{text}"


def _line_that_contains_itself(path: Path) -> int | None:
    """Return the line of a YAML value that contains itself by an alias. jsonargparse would follow it without end."""

    def find(node: Any, above: tuple[int, ...]) -> int | None:
        if id(node) in above:
            return int(node.start_mark.line) + 1
        inner = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        found = (find(part, (*above, id(node))) for part in inner) if not isinstance(node, yaml.ScalarNode) else ()
        return next(filter(None, found), None)

    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        return find(root, ()) if root else None
    except (yaml.YAMLError, OSError, ValueError, RecursionError):  # the parser reports these
        return None


def setting_name(flag: str) -> str:
    """Return a flag's setting as a recipe names it: ``model.dropout`` for ``--model.init_args.dropout=0.5``."""
    return flag.partition("=")[0].removeprefix("--").replace(".init_args", "")


def _callback_keys(path: Path) -> set[str]:
    """Return the keys under which a configuration has callbacks: ``callbacks`` replaces, ``callbacks+`` appends."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    except (yaml.YAMLError, OSError, ValueError):  # the parser reports these
        return set()
    trainer = content.get("trainer") if isinstance(content, dict) else None
    return {"callbacks", "callbacks+"} & trainer.keys() if isinstance(trainer, dict) else set()


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


class ExperimentParser(LightningArgumentParser):
    """A parser that finds configurations by bare name and reports a mistake as one message with exit status 2."""

    with_logger = True  # False: ignore the loggers that configurations name
    _configs: Sequence[str] = ()  # the files that the command line names
    _callbacks: Sequence[str] = ()  # the callbacks that it names; on the class: each callback has its own parser

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:  # type: ignore[override]
        """Parse the command line, or the arguments given."""
        found = list(sys.argv[1:] if args is None else args)
        for index, argument in enumerate(found):
            if argument.startswith("--config="):
                found[index] = f"--config={find_config(argument.removeprefix('--config='))}"
            elif index and found[index - 1] in ("--config", "-c"):
                found[index] = find_config(argument)
        self._configs = [argument.removeprefix("--config=") for argument in found if argument.endswith(".yaml")]
        for path in filter(os.path.isfile, self._configs):
            if line := _line_that_contains_itself(Path(path)):
                self.error(f"{path}, line {line}: a value contains itself: remove the *name below its own &name")
        try:
            for path in filter(os.path.isfile, self._configs):
                find_modules_beside(Path(path), [Path(path).read_text(encoding="utf-8", errors="replace"), *found])
        except ValueError as error:
            self.error(str(error), error)
        self._refuse_lost_callbacks()
        if self.with_logger and (missing := missing_package(found)):  # without it, the logger's settings are unknown
            self.error(missing)
        ExperimentParser._callbacks = re.findall(r"^--trainer\.callbacks\+?[=\n](\S+)", "\n".join(found), re.MULTILINE)
        return super().parse_args([_content(each, with_logger=self.with_logger) for each in found], *rest, **settings)

    def add_class_arguments(self, theclass: Any, *args: Any, skip: Any = None, **settings: Any) -> list[str]:
        """Add the arguments of a class. A schedule's length may be left out."""
        optional = OPTIONAL.get(theclass, {})
        added: list[str] = super().add_class_arguments(theclass, *args, skip={*(skip or ()), *optional}, **settings)
        for name, kind in optional.items():
            self.add_argument(f"--{name}", type=kind, default=None, help="computed from the run if it is left out")
        return added

    def _refuse_lost_callbacks(self) -> None:
        """Refuse a configuration whose list of callbacks would replace what an earlier one has appended."""
        overlay = None
        for path in filter(os.path.isfile, self._configs):
            keys = _callback_keys(Path(path))
            if overlay is not None and "callbacks" in keys:
                self.error(f"{path} would replace the callbacks of {overlay}: give --config {path} first")
            overlay = path if "callbacks+" in keys else overlay

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what may have been meant, and exit with status 2."""
        if wants_trace() and ex is not None:
            raise ex
        text = clear(message)
        named = CALLBACK.findall(message) if "trainer.callbacks" in message else []
        if reasons := [reason for name in (*named, *self._callbacks) if (reason := refusal(name))]:
            text = reasons[0]
        elif unimportable := _unimportable(message):
            text = unimportable
        if "arguments are required: model" in text:
            text = "name an experiment, as in --config overfit.yaml"
        if "name an experiment" in text or "File does not exist" in text:
            text += f"\navailable configurations: {', '.join(available_configs())}"
        if 'key "trainer.logger"' in text or "required: save_dir" in text:
            text = explained(text)
        if "Problems parsing config" in text or "Unexpected config" in text:
            text += f"\nin {' or '.join(self._configs)}"
        if match := re.search(r"unrecognized arguments: (--[\w.]+)|option '([\w.]+)'", text, re.IGNORECASE):
            text += self._meant(match[1] or match[2])
        self.exit(2, f"{self.prog}: error: {text}\nhelp: {self.prog} --help\n")

    def _meant(self, key: str) -> str:
        options = [option for action in self._actions for option in action.option_strings]
        if not key.startswith("--"):  # a key in a YAML file, named without its groups
            names = [option.lstrip("-") for option in options]
            options = [name.rpartition(".")[2] for name in names] + [name.partition(".")[0] for name in names]
            key = key.partition(".")[0]
        near = difflib.get_close_matches(key, options, n=1)
        return f"\ndid you mean {near[0]}?" if near else ""


# Lines in which jsonargparse describes its own workings instead of the mistake.
NOISE = re.compile(
    "Does not validate against any of the Union subtypes|Errors:|Expected a (<class 'NoneType'>|path but )|"
    "Given value( type: |: Namespace|: NestedArg|: \\[)|Subtypes: |Subclass types expect one of|a class path [(]str|"
    "a dict with"
)
CALLBACK = re.compile(r"(?:class_path=['\"]|Given value: )([\w.]+)")
IMPORTED = r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)"
CLASS, GIVEN = re.compile(rf"class_path\W{{1,4}}{IMPORTED}"), re.compile(f"Given value: {IMPORTED}")
NO_CLASS = "Expected a dot import path string: "


def _unimportable(message: str) -> str | None:
    """Return why a class that jsonargparse could not use cannot be imported; ``None`` if that is not the reason."""
    names = CLASS.findall(message)
    if "a callable class" in message:
        names += GIVEN.findall(message)
    for name in names:
        if reason := why_not_imported(name):
            return f"{name} cannot be imported: {reason}"
    return None


def clear(message: str) -> str:
    """Return a message of jsonargparse without the noise."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    lines = [line for line in lines if line and not NOISE.match(line)]
    said = [line for line in lines if not line.startswith(NO_CLASS)]
    if not any("Expected" in line or "accepted" in line for line in said):
        said += [f"{line.removeprefix(NO_CLASS)} cannot be imported" for line in lines if line.startswith(NO_CLASS)]
    return "\n  ".join(said)
