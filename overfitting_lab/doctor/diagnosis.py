"""What the doctor says: one finding, its evidence and what to do."""

from dataclasses import asdict, dataclass
from enum import Enum
from textwrap import fill
from typing import Any

INDENT = " " * 11  # of what stands behind a line's name


class Severity(str, Enum):
    """How bad a finding is: ``fatal``: the run cannot succeed; ``warning``: it suffers; ``note``: an observation."""

    FATAL = "fatal"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Diagnosis:
    """One finding.

    Attributes:
        code: stable name, which other programs may rely on; ``docs/doctor.md`` lists them.
        severity: how bad it is.
        what: the cause, in one sentence.
        evidence: the numbers and layers that show it.
        remedy: what to type or to change next.
        layers: names of the layers concerned, as in the network's ``named_modules``; the first is where it begins.
        epoch: the epoch at which it began, counted from 0, where it is about epochs.
        step: the optimizer step after which it was found; 0 is before the first.
    """

    code: str
    severity: Severity
    what: str
    evidence: str
    remedy: str
    layers: tuple[str, ...] = ()
    epoch: int | None = None
    step: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``summary.json`` and checkpoints."""
        return {**asdict(self), "severity": self.severity.value, "layers": list(self.layers)}

    @classmethod
    def of_dict(cls, values: dict[str, Any]) -> "Diagnosis":
        """The inverse of :meth:`as_dict`."""
        return cls(**{**values, "severity": Severity(values["severity"]), "layers": tuple(values["layers"])})

    def __str__(self) -> str:
        head = f"doctor     {self.code} ({self.severity.value}, step {self.step}): {self.what}"
        return "\n".join(
            fill(line, 120, subsequent_indent=INDENT, break_long_words=False, break_on_hyphens=False)
            for line in (head, INDENT + self.evidence, f"{INDENT}try: {self.remedy}")
        )
