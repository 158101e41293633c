"""Parse the command line into a configuration, and report a mistake as one message."""

import argparse
import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pydoc import locate
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_modules import VGG, AlexNet
from lightning_modules.schedules import OPTIONAL
from overfitting_lab.cli.configurations import available_configs, checked_config, find_config
from overfitting_lab.cli.failures import wants_trace
from overfitting_lab.cli.loggers import explained, missing_package, without_logger
from overfitting_lab.cli.replay import without_unwritable
from overfitting_lab.cli.suggestions import DASHES, meant
from overfitting_lab.cli.trainer_callbacks import refusal
from overfitting_lab.cli.wording import clear, unimportable_class, worded
from overfitting_lab.runs.imports import find_modules_beside
from overfitting_lab.runs.recipe import flat, read_config, setting_name

LONGEST_NAME = 100  # characters of an experiment's name; files beside the runs have its name and more
LINKED = {
    "model.num_classes": "the images decide the number of classes: leave it out",
    "model.image_size": "the network's input has the size of the images: give --data.image_size",
}
CALLBACK = re.compile(r"(?:class_path=['\"]|Given value: )([\w.]+)")
NETWORK = {name for network in (AlexNet, VGG) for name in inspect.signature(network).parameters} - {
    "image_size",
    "num_classes",
}


def _content(path: str, *, with_logger: bool) -> str:
    """Return a configuration's content, or its path if jsonargparse reads the same there.

    Raises:
        ValueError: see :func:`checked_config`.
    """
    if path == "-" or Path(path).is_fifo() or Path(path).is_char_device():
        raise ValueError(f"--config {path} is a pipe or a terminal, which can be read only once: write it to a file")
    if not Path(path).is_file():
        return path
    text = _with_monitor(checked_config(Path(path)))
    text = text if with_logger else without_logger(text)
    with suppress(UnicodeDecodeError):
        if text == Path(path).read_text(encoding="locale"):  # as jsonargparse does
            return path
    return text


def _with_monitor(text: str) -> str:
    """Name Lightning's class for torch's schedule of that name: it is the same, and says what it monitors."""
    name, torchs = "ReduceLROnPlateau", r"torch\.optim\.lr_scheduler\."
    setting = r"""((?:class_path|lr_scheduler)["']?[:=\s\0]\s*["']?)"""
    return re.sub(rf"{setting}(?:{torchs})?{name}(?![\w./])", rf"\1lightning.pytorch.cli.{name}", text)


def _with_negative(arguments: str) -> str:
    """Join a flag and the negative number after it, which argparse would take for a flag if it has an exponent."""
    return re.sub(r"(?:^|(?<=\0))(--[^\0=]+)\0(?=-[.\d][^\0]*e)", r"\1=", arguments, flags=re.IGNORECASE)


def _with_home(value: Any) -> Any:
    """Expand ``~`` at the beginning of every text in a configuration, in place, and return the configuration."""
    if isinstance(value, str):
        return os.path.expanduser(value) if value.startswith("~") else value  # noqa: PTH111
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    settings = vars(value) if isinstance(value, Namespace) else value
    if isinstance(settings, dict):
        settings.update({key: _with_home(item) for key, item in settings.items()})
    return value


def _without_value(config: Namespace, actions: Iterable[argparse.Action]) -> Iterator[str]:
    """Yield the settings that are ``None`` although their types do not allow it: jsonargparse does not refuse them."""
    kinds = {action.dest: getattr(action, "_typehint", Any) for action in actions if action.default is not None}
    with suppress(Exception):  # of annotations in a user's own class that Python cannot resolve
        # Also of base classes: a network may forward their arguments.
        for each in reversed(inspect.getmro(locate(str(config.get("model.class_path"))))):  # type: ignore[arg-type]
            hints = get_type_hints(getattr(each, "__init__", None))
            kinds |= {f"model.init_args.{name}": kind for name, kind in hints.items()}
    for name, kind in kinds.items():
        setting = setting_name(name)  # the data decides some later
        if name in config and config[name] is None and kind is not Any and type(None) not in get_args(kind):
            yield from {setting} - LINKED.keys()


def _keys(path: str) -> dict[str, Any]:
    """Return the settings of a configuration by flag."""
    content = yaml.load(read_config(Path(path)), yaml.SafeLoader) if Path(path).is_file() else {}
    return flat(content) if isinstance(content, dict) else {}


def check_experiment_name(_: type, text: str) -> None:
    """Check the name of an experiment, which is that of a folder in ``lightning_logs/``.

    Raises:
        ValueError: if not every system could have such a folder, or if Git would keep what lies in it.
    """
    if not re.fullmatch(r"\w([\w .-]*[\w-])?", text):
        raise ValueError(
            f"{text!r} cannot be the name of a folder everywhere: begin with a letter or a digit, use letters, digits, "
            "spaces and . _ - only, and do not end in a space or a dot"
        )
    if len(text) > LONGEST_NAME:
        raise ValueError(f"the name has {len(text)} characters, and not every system has room for them: shorten it")
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text, re.IGNORECASE):
        raise ValueError(f"{text!r} is the name of a device on Windows: choose another name")
    if text.lower() == "reference":  # some file systems do not distinguish the case
        raise ValueError("lightning_logs/reference is for published runs, which Git keeps: choose another name")


class ExperimentParser(LightningArgumentParser):
    """A parser that finds configurations by bare name and reports a mistake as one message with exit status 2."""

    with_logger = True  # False: ignore the loggers that configurations name
    _configs: Sequence[str] = ()  # the files that the command line names
    _callbacks: Sequence[str] = ()  # the callbacks that it names; on the class: each callback has its own parser

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:  # type: ignore[override]
        """Parse the command line, or the arguments given."""
        typed = [*(sys.argv[1:] if args is None else args)]
        found = _with_negative(_with_monitor("\0".join(typed))).split("\0") if typed else []
        found = [re.sub("^-c(?!onfig)(?:=|(?=[^=]))", "--config=", argument) for argument in found]
        configs = {
            index: find_config(argument.removeprefix("--config="))
            for index, argument in enumerate(found)
            if argument.startswith("--config=") or (index and found[index - 1] in ("--config", "-c"))
        }
        self._configs = [*configs.values()]
        try:
            contents = {index: _content(path, with_logger=self.with_logger) for index, path in configs.items()}
            for path in filter(os.path.isfile, self._configs):
                find_modules_beside(Path(path), [read_config(Path(path)), *found])
        except ValueError as error:
            self.error(str(error), error)
        self._refuse_linked([*map(setting_name, found), *(key for path in configs.values() for key in _keys(path))])
        self._refuse_lost_callbacks(found, configs)
        if self.with_logger and (missing := missing_package(found)):  # without it, the logger's settings are unknown
            self.error(missing)
        ExperimentParser._callbacks = re.findall(r"^--trainer\.callbacks\+?[=\n](\S+)", "\n".join(found), re.MULTILINE)
        for index, content in contents.items():
            found[index] = f"--config={content}" if found[index].startswith("--config=") else content
        config = super().parse_args(found, *rest, **settings)
        for flag in _without_value(config, self._actions):
            self.error(f"--{flag}: null, which YAML also writes as ~, is no value here: give one, or leave it out")
        return _with_home(config)

    def dump(self, cfg: Namespace, *args: Any, **settings: Any) -> str:
        """Return a configuration as YAML. What ``--print_config`` prints can be given as ``--config`` again."""
        text: str = super().dump(cfg, *args, **settings)
        if not hasattr(self, "print_config"):  # jsonargparse's note that the flag was given
            return text
        try:
            return without_unwritable(text, cfg)
        except ValueError as error:
            self.error(str(error), error)

    def add_class_arguments(self, theclass: Any, *args: Any, skip: Any = None, **settings: Any) -> list[str]:
        """Add the arguments of a class. A schedule's length may be left out."""
        optional = OPTIONAL.get(theclass, {})
        added: list[str] = super().add_class_arguments(theclass, *args, skip={*(skip or ()), *optional}, **settings)
        for name, kind in optional.items():
            self.add_argument(f"--{name}", type=kind, default=None, help="computed from the run if it is left out")
        return added

    def _refuse_linked(self, settings: Iterable[str]) -> None:
        """Refuse settings that the data decides: jsonargparse would replace their values without a word."""
        for name, remedy in LINKED.items():
            if name in settings:
                self.error(f"--{name}: {remedy}")

    def _refuse_lost_callbacks(self, arguments: Sequence[str], configs: Mapping[int, str]) -> None:
        """Refuse a configuration whose list of callbacks would replace what stands before it on the command line."""
        overlay, files = None, [*filter(os.path.isfile, self._configs)]
        for index, argument in enumerate(arguments):
            if setting_name(argument) == "trainer.callbacks+":
                overlay = overlay or argument.partition("=")[0]
            path = configs.get(index, "")
            if path not in files:
                continue
            keys = {"trainer.callbacks", "trainer.callbacks+"} & _keys(path).keys()  # the second appends
            if len(keys) > 1:
                self.error(
                    f"{path} has callbacks and callbacks+, of which one would be lost: put all under one of them"
                )
            if overlay is not None and "trainer.callbacks" in keys:
                self.error(f"{path} would replace the callbacks of {overlay}: give --config {path} first")
            overlay = path if "trainer.callbacks+" in keys else overlay

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and what may have been meant, and exit with status 2."""
        if wants_trace() and ex is not None:
            raise ex
        text = clear(message)
        named = CALLBACK.findall(message) if "trainer.callbacks" in message else []
        if reasons := [reason for name in (*named, *self._callbacks) if (reason := refusal(name))]:
            text = reasons[0]
        elif "trainer.logger" not in message and (unimportable := unimportable_class(message)):
            text = unimportable
        if "arguments are required: model" in text:
            text = "name an experiment, as in --config overfit.yaml"
        if "name an experiment" in text or "File does not exist" in text:
            text += f"\navailable configurations: {', '.join(available_configs())}"
        if 'key "trainer.logger"' in text or "required: save_dir" in text:
            text = explained(text)
        if re.search(r"expected string or bytes-like object|<class 'str'>\. Got value: [-+.\d]", text):
            text += "\nYAML reads this value as a number: put it in quotes"
        if "Problems parsing config" in text or "Unexpected config" in text:
            text += f"\nin {' or '.join(self._configs)}"
        if match := re.search(r"unrecognized arguments: (\S+)", text):
            text += self._meant(match[1], typed=True)
        elif match := re.search(r"(?:Group '(\w+)' does not accept o|O)ption '([\w.]+)'", text):
            text += self._meant(".".join(filter(None, match.groups())))
        script = sys.argv[0]  # jsonargparse keeps parsers of classes, which may be of an earlier script
        self.exit(2, f"{Path(script).name}: error: {worded(text)}\nhelp: python {shlex.quote(script)} --help\n")

    def _meant(self, given: str, *, typed: bool = False) -> str:
        """Return a line about the setting or the flag that was meant."""
        options = [option.lstrip("-") for action in self._actions for option in action.option_strings]
        of_class = "config" not in options  # this parser knows the arguments of one class alone
        is_flag = given[0] in DASHES
        if not is_flag and Path(config := find_config(given)).is_file():
            return f"\ndid you mean --config {given if '/' in given else Path(config).name}?"
        options += [] if of_class else [f"model.{name}" for name in NETWORK]
        line = meant(given, options, known_elsewhere=not of_class or "optimizer" in options)
        as_typed = re.compile(rf"(--(?:[\w.]+\.)?){re.escape(given)}(?:=|$)")
        if of_class and (flag := next(filter(None, map(as_typed.match, sys.argv)), None)):
            line = re.sub("mean (?=[^-])", f"mean {flag[1]}", line)
        return line and f"\n{line if not typed else re.sub('mean (?=[^-])', 'mean --', line)}"
