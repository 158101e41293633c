"""The text of a run's ``config.yaml``, which replays the run."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pydoc import locate
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, set_dumper


class Writer(yaml.SafeDumper):  # type: ignore[misc]
    """A dumper that also quotes text such as 1e3. jsonargparse would read it as a number, unlike YAML 1.1."""


Writer.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)
UNWRITABLE = "Unable to serialize instance "  # jsonargparse writes this in place of a value that YAML cannot hold
Path = tuple[str | int, ...]  # the keys and indices that lead to a setting


def as_yaml(content: Any) -> str:
    """Return settings as YAML that jsonargparse reads as they are."""
    return str(yaml.dump(content, Dumper=Writer, default_flow_style=False, sort_keys=False, allow_unicode=True))


set_dumper("replayable", as_yaml)


def replayable(parser: ArgumentParser, config: Namespace) -> str:
    """Return a configuration as YAML that parses to the same configuration again.

    jsonargparse alone would write a sentence in place of a value that YAML cannot hold, and would leave out every
    ``None``. Here, a value that YAML cannot hold is left out if it is the default of its class. ``None`` is written if
    the default is another value.

    Raises:
        ValueError: if YAML cannot hold a value. The message names the value's flag.
    """
    text = str(parser.dump(config, format="replayable", skip_validation=True))
    nones = [path for path, value, defaults in _settings(config)
             if value is None and _default(parser, path, defaults) is not None]  # fmt: skip
    text = without_unwritable(text, config)
    if not nones:
        return text
    content = yaml.safe_load(text)
    for path in nones:
        _at(content, path[:-1])[path[-1]] = None
    return as_yaml(content)


def without_unwritable(text: str, config: Namespace) -> str:
    """Leave out what YAML cannot hold in the text of a configuration, if it is the default of its class.

    Raises:
        ValueError: if it is not the default. The message names the value's flag.
    """
    if UNWRITABLE not in text:
        return text
    content = yaml.safe_load(text)
    for path, written, _ in list(_settings(content)):
        if str(written).startswith(UNWRITABLE):
            *holder, name = path
            given = _at(config, path)
            defaults = _defaults(_at(config, holder[:-1])["class_path"]) if holder[-1] == "init_args" else {}
            if given is not defaults.get(str(name)):
                raise ValueError(f"--{_flag(path)}: a run's config.yaml cannot hold {given!r}; give a number or a text")
            del _at(content, holder)[name]
    return as_yaml(content)


def _settings(node: Any, path: Path = (), defaults: Mapping[str, Any] | None = None) -> Iterator[tuple[Path, Any, Any]]:
    """Yield path and value of every setting. If it is an argument of a class, yield the class's defaults as well."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _settings(item, (*path, index))
    elif isinstance(node, Namespace | Mapping):
        items = dict(vars(node) if isinstance(node, Namespace) else node)
        for key, value in items.items():
            own = _defaults(items["class_path"]) if key == "init_args" and "class_path" in items else None
            if isinstance(value, Namespace | Mapping | list):
                yield from _settings(value, (*path, key), own)
            else:
                yield (*path, key), value, defaults
    else:
        yield path, node, None


@cache
def _defaults(class_path: str) -> dict[str, Any]:
    """Return the defaults of a class's or function's arguments, inherited ones included."""
    kind: Any = locate(class_path)
    classes = reversed(kind.__mro__) if inspect.isclass(kind) else ()
    makers = [vars(each)["__init__"] for each in classes if "__init__" in vars(each)] or [kind]
    return {
        name: parameter.default for maker in makers for name, parameter in inspect.signature(maker).parameters.items()
    }


def _default(parser: ArgumentParser, path: Path, defaults: Mapping[str, Any] | None) -> Any:
    """Return a setting's default; ``None`` if it has none."""
    if defaults is not None:
        default = defaults.get(str(path[-1]))
        return None if default is inspect.Parameter.empty else default
    try:
        return parser.get_default(".".join(map(str, path)))
    except KeyError:
        return None


def _at(node: Any, path: Sequence[str | int]) -> Any:
    for key in path:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    return node


def _flag(path: Path) -> str:
    return ".".join(key for key in path if isinstance(key, str) and key not in ("init_args", "class_path"))
