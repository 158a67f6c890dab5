"""What a part of the campaign has found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """A row of the table.

    Attributes:
        what: What was done, and what is good.
        tries: How often.
        good: How often it ended well.
        seconds: Wall time; None where a row before has it.
        troubles: What happened where it did not.
    """

    what: str
    tries: int = 0
    good: int = 0
    seconds: float | None = None
    troubles: list[str] = field(default_factory=list)

    def add(self, trouble: str) -> None:
        """One more try; `trouble` is empty where it ended well."""
        self.tries += 1
        if trouble:
            self.troubles.append(trouble)
        else:
            self.good += 1


def table(outcomes: list[Outcome]) -> str:
    """All rows as Markdown."""
    lines = ["| what | tries | good | seconds |", "|---|---|---|---|"]
    for one in outcomes:
        seconds = "" if one.seconds is None else f"{one.seconds:.0f}"
        lines.append(f"| {one.what} | {one.tries} | {one.good} | {seconds} |")
    return "\n".join(lines)
