"""What jsonargparse says about a mistake, in a user's words."""

import inspect
import re

from lightning.pytorch import callbacks
from torch import optim
from torch.optim import lr_scheduler

from overfitting_lab.cli.suggestions import nearest
from overfitting_lab.runs.imports import why_not_imported

# Lines in which jsonargparse describes its own workings instead of the mistake.
NOISE = re.compile(
    "Does not validate against any of the Union subtypes|Errors:|Expected a (<class 'NoneType'>|path but )|"
    "Given value( type: |: Namespace|: NestedArg|: \\[)|Subtypes: |Subclass types expect one of|a class path [(]str|"
    "a dict with"
)
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list",
    "tuple": "a list",
}  # fmt: skip
DECIMAL_COMMA = re.compile(r"[-+]?\d*,\d+")
LITERAL = re.compile(r"Expected a typing\.Literal\[([^]]*)\]")
FUNCTION = re.compile(r"Type typing\.Callable\S.*: Expected '([\w.]+)' to be a function that returns .*")
IMPORTED = r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)"
CLASS, GIVEN = re.compile(rf"class_path\W{{1,4}}{IMPORTED}"), re.compile(f"Given value: {IMPORTED}")
NO_CLASS = "Expected a dot import path string: "


def clear(message: str) -> str:
    """Return a message of jsonargparse without the noise."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    lines = [line for line in lines if line and not NOISE.match(line)]
    said = [line for line in lines if not line.startswith(NO_CLASS)]
    if not any("Expected" in line or "accepted" in line for line in said):
        said += [f"{line.removeprefix(NO_CLASS)} cannot be imported" for line in lines if line.startswith(NO_CLASS)]
    return "\n  ".join(said)


def worded(text: str) -> str:
    """Return a message of jsonargparse without Python's names of types, and with the choice that may be meant."""
    text = re.sub(r'^Parser key "([\w.+]+)":', r"\1:", text)
    text = re.sub(rf"Expected a <class '({'|'.join(KINDS)})'>", lambda match: f"expected {KINDS[match[1]]}", text)
    text = re.sub(
        r"Not of type Positive(Int|Float): .*does not conform to restriction v>0",
        lambda match: f"expected {KINDS[match[1].lower()]} above 0",
        text,
    )
    text = FUNCTION.sub(
        r"\1 is a function: give a class, such as a subclass of a class of torch (docs/your_own.md)", text
    )
    if re.search(r"Given value: [-+]?(nan|inf)$", text, re.IGNORECASE):
        text = text.replace("a number", "a finite number")
    choices = [choice.replace("'", "") for choices in LITERAL.findall(text) for choice in choices.split(", ")]
    text = LITERAL.sub(lambda match: f"expected one of {match[1]}".replace("'", ""), text)
    given = re.search(r"(?:Given|Got) value: (\S+)$", text)
    choice = nearest(given[1], choices) if given else None
    if given and "expected a number" in text and DECIMAL_COMMA.fullmatch(given[1]):
        choice = given[1].replace(",", ".")
    if named := re.search(r"Given value: ([A-Za-z_]\w*)$", text, re.MULTILINE):
        choice = choice or nearest(named[1], _classes())
    if choice:
        text += f"\ndid you mean {choice}?"
    return text


def _classes() -> list[str]:
    """Return the names of the classes of Lightning and torch that a setting may have without an import path."""
    modules = (callbacks, optim, lr_scheduler)
    return [name for module in modules for name, kind in vars(module).items() if inspect.isclass(kind)]


def unimportable_class(message: str) -> str | None:
    """Return why a class that jsonargparse could not use cannot be imported; ``None`` if that is not the reason."""
    names = CLASS.findall(message)
    if "a callable class" in message:
        names += GIVEN.findall(message)
    for name in names:
        if reason := why_not_imported(name):
            return f"{name} cannot be imported: {reason}"
    return None
