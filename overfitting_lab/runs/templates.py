"""Pages and tables from Jinja templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def render(template: Path, content: Mapping[str, Any], *parents: Path) -> str:
    """Return the text of a template filled with content. See :func:`read_template`."""
    return read_template(template, *parents).render(content)


def read_template(template: Path, *parents: Path) -> Template:
    """Read a template. The filter ``cell`` prepares a value for a Markdown table.

    Args:
        template: a file; the values in HTML are escaped.
        parents: folders of templates that it extends or imports, besides its own folder.

    Raises:
        jinja2.TemplateError: if it is wrong, or missing.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, *parents]),
        autoescape=template.suffix == ".html",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=lambda value: "" if value is None else value,
    )
    environment.filters["cell"] = lambda value: (
        str("" if value is None else value).replace("|", "\\|").replace("\n", " ")
    )
    return environment.get_template(template.name)
