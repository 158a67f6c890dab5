"""`distillab doctor`: where it runs."""

from distillab.commands.flags import Injected, Json


def doctor(*, json: Json = False, screen: Injected) -> None:
    """What this machine has and what is fast on it, as Markdown to paste into an issue; takes a few seconds."""
    from distillab.doctor import as_markdown, diagnose

    screen.json = json
    report = diagnose()
    screen.show(report, as_markdown(report))
