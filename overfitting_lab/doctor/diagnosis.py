"""One finding of the doctor: its cause, its evidence and what to do."""

from dataclasses import asdict, dataclass
from enum import Enum
from textwrap import fill
from typing import Any

INDENT = " " * 11  # as wide as a printed line's first word


class Severity(str, Enum):
    """``fatal``: the run cannot succeed. ``warning``: the run suffers. ``note``: an observation."""

    FATAL = "fatal"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Diagnosis:
    """One finding."""

    code: str  # stable name that other programs may rely on. docs/doctor.md lists all codes
    severity: Severity  # see :class:`Severity`
    what: str  # the cause, in one sentence
    evidence: str  # the numbers and layers that show the cause
    remedy: str  # what to type or to change next
    layers: tuple[str, ...] = ()  # names in the network's named_modules. The cause begins at the first
    epoch: int | None = None  # at which the cause began, counted from 0; None if the finding is not about epochs
    step: int = 0  # the number of optimizer steps before the finding. The caller of a rule sets it

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for ``summary.json`` and checkpoints."""
        return {**asdict(self), "severity": self.severity.value, "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Diagnosis":
        """Return the diagnosis that :meth:`as_dict` described."""
        return cls(**{**values, "severity": Severity(values["severity"]), "layers": tuple(values["layers"])})

    def __str__(self) -> str:
        head = f"doctor     {self.code} ({self.severity.value}, step {self.step}): {self.what}"
        return "\n".join(
            fill(line, 120, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
            for line in (head, INDENT + self.evidence, f"{INDENT}remedy: {self.remedy}")
        )
