"""Configuration files, found by name, and checked for what YAML and jsonargparse would lose without a message."""

from collections.abc import Iterator
from pathlib import Path

import yaml

from overfitting_lab.runs.files import user_path
from overfitting_lab.runs.recipe import read_config

PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = PACKAGE / "configs" if (PACKAGE / "configs").is_dir() else PACKAGE.parent / "configs"  # of a wheel, a clone

GROUPS = ("data", "model", "trainer")
SWITCHES = ("check",)  # flags without a value; jsonargparse takes their value in a file as it is
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs", "<<")
BOOLEAN, NUMBER, TEXT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:str"
AS_TEXT = (BOOLEAN, "tag:yaml.org,2002:timestamp")


def available_configs() -> list[str]:
    """Return the names under ``configs/`` without their suffix."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def find_config(name: str) -> str:
    """Return the path of a configuration: an existing path as it is, else the file of that name in ``configs/``."""
    paths = (user_path(name), CONFIGS / name, CONFIGS / f"{name}.yaml")
    return next((str(path) for path in paths if path.is_file()), name)


def checked_config(path: Path) -> str:
    """Return the text of a configuration, in which ``yes``, ``no``, ``on``, ``off`` and dates are words.

    A setting takes them as it takes the same words on the command line.

    Raises:
        ValueError: if the file is not YAML, not a mapping of settings, has a key twice, or a value that contains
            itself. The message names the file and the line.
    """
    try:
        text = read_config(path)
        root = yaml.compose(text, yaml.SafeLoader)
        if root is not None:
            yaml.SafeLoader("").construct_document(root)  # refuses tags that name code, and merges what << names
            root = yaml.compose(text, yaml.SafeLoader)  # so that a key may replace one of these
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: {', '.join(filter(None, (error.context, error.problem)))}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError(f"{path}: its values are nested too deeply") from None
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise ValueError(f"{path}, line {number}: byte {byte:#x} is not UTF-8: save the file as UTF-8") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"{path} holds no settings; it needs lines such as trainer: {{max_epochs: 3}}")
    for key, value in root.value:
        if key.value in GROUPS and not isinstance(value, yaml.MappingNode) and not _has_tag(value, TEXT):
            line = key.start_mark.line + 1
            raise ValueError(f"{path}, line {line}: {key.value} needs settings below it, as name: value")
        if key.value in SWITCHES and not _has_tag(value, BOOLEAN):
            raise ValueError(f"{path}, line {key.start_mark.line + 1}: {key.value} needs true or false")
    switches = [value for key, value in root.value if key.value in SWITCHES]
    words = [node for node in _scalars(root, path, ()) if _is_word(node) and node not in switches]
    _refuse_twice(root, path)
    for node in words:
        node.tag, node.style = TEXT, "'"
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)) if words else text


def _refuse_twice(root: yaml.MappingNode, path: Path) -> None:
    """Refuse a setting that stands in a mapping and, in one word, before or after it: ``trainer.max_epochs``."""
    lines: dict[str, int] = {}
    for name, line in _leaves(root, ""):
        if name in lines:
            raise ValueError(
                f"{path}: {name} stands twice, in line {lines[name]} and in line {line}; one would replace the other: "
                "leave one out"
            )
        lines[name] = line


def _leaves(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int]]:
    """Yield the settings with a value of their own, by flag, and their lines."""
    for key, value in node.value:
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, f"{prefix}{key.value}.")
        else:
            yield f"{prefix}{key.value}", key.start_mark.line + 1


def _scalars(node: yaml.Node, path: Path, above: tuple[yaml.Node, ...]) -> Iterator[yaml.ScalarNode]:
    """Yield the scalars below a node. Refuse a key twice, a class without a name, and a value that contains itself."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode):
        yield node
        return
    if any(node is each for each in above):
        raise ValueError(f"{path}, line {line}: a value contains itself: remove the *name below its own &name")
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, value) for value in node.value]
    lines: dict[str, int] = {}
    keys = [key for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
    beside = [key for key in keys if key.value not in CLASS_KEYS] if "class_path" in [key.value for key in keys] else []
    if beside:
        line, name = beside[0].start_mark.line + 1, beside[0].value
        raise ValueError(
            f"{path}, line {line}: {name} stands beside class_path: put the settings of a class in init_args"
        )
    for key, value in pairs:
        if isinstance(key, yaml.ScalarNode):
            if key.value in lines:
                raise ValueError(
                    f"{path}: the key {key.value} stands twice, in line {lines[key.value]} and in line "
                    f"{key.start_mark.line + 1}; the second would replace the first: put their settings under one key"
                )
            lines[key.value] = key.start_mark.line + 1
            if key.value == "class_path" and not _has_tag(value, TEXT):
                line, example = key.start_mark.line + 1, "class_path: torch.optim.SGD"
                raise ValueError(f"{path}, line {line}: class_path needs the name of a class, such as {example}")
        if isinstance(value, yaml.ScalarNode) and (octal := _octal(value)) is not None:
            line, name = value.start_mark.line + 1, f"{key.value}: " if isinstance(key, yaml.ScalarNode) else ""
            what = f"YAML reads {value.value} as {octal}: write it without the 0, or put it in quotes"
            raise ValueError(f"{path}, line {line}: {name}{what}")
        yield from _scalars(value, path, (*above, node))


def _has_tag(node: yaml.Node, tag: str) -> bool:
    return isinstance(node, yaml.ScalarNode) and bool(node.tag == tag)


def _octal(node: yaml.ScalarNode) -> int | None:
    """Return the number that YAML 1.1 reads in a value such as 010; ``None`` for any other value."""
    digits = node.value.lstrip("+-").replace("_", "")
    is_octal = node.tag == NUMBER and node.style is None and digits.isdecimal() and digits[0] == "0" and len(digits) > 1
    return int(digits, 8) if is_octal else None


def _is_word(node: yaml.ScalarNode) -> bool:
    by_sixties = node.tag == NUMBER and ":" in node.value  # 1:30 would be 90
    as_text = node.tag in AS_TEXT or by_sixties
    return node.style is None and as_text and node.value.lower() not in ("true", "false")
