"""The command line: words in, verbs out. Its help and completion import no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cyclopts import App, Parameter

from distillab.commands.dispatch import dispatch, new_app
from distillab.terminal import Screen

_VERBS = (
    ("train", "train:train", "Train one model alone: a teacher, an assistant or a student."),
    ("distill", "distill:distill", "Distil a teacher into a student, by any method."),
    ("evaluate", "evaluate:evaluate", "Measure a saved model on test images."),
    ("predict", "predict:predict", "Say what a saved model sees in images: CSV or JSON."),
    ("compare", "compare:compare", "Compare methods over seeds with the student alone, and say what is shown."),
    ("report", "report:report", "Describe runs in one page: results, models, images, how to make them again."),
    ("resume", "resume:resume", "Let a run go on that was stopped, from its last checkpoint."),
    ("verify", "verify:verify", "Check a run's files and numbers, and replay an epoch of its log."),
    ("demo", "demo:demo", "Train a teacher and students by all methods, and compare them."),
    ("bench", "bench:bench", "Time the classic training loop and our own in turns: images/s, memory, bounds."),
    ("doctor", "doctor:doctor", "What this machine has and what is fast on it."),
)
_ARGUMENTS = {
    "evaluate": " SOURCE",
    "predict": " SOURCE IMAGES...",
    "report": " RUN...",
    "resume": " RUN",
    "verify": " RUN",
}
_LISTS = ("methods", "models", "datasets", "recipes")

_EXAMPLES = {
    "distillab": """\
  distillab demo
  distillab train --recipe digits-modern --role teacher --output runs/teacher
  distillab distill --recipe digits-modern --teacher runs/teacher""",
    "train": """\
  distillab train --recipe digits-modern --role teacher --output runs/teacher
  distillab train --data photos/ --model cnn16 --training.epochs 20""",
    "distill": """\
  distillab distill --recipe digits-modern --teacher runs/teacher
  distillab distill --method takd --teacher runs/teacher --seed 5 --dry-run
  distillab distill --method st --distill.temperature 2
  distillab distill --method st --help          (shows the method's settings)""",
    "evaluate": """\
  distillab evaluate runs/student
  distillab evaluate student.pth --model cnn16 --data cifar10 --teacher runs/teacher""",
    "predict": """\
  distillab predict runs/student photos/ > predictions.csv
  distillab predict runs/student cat.png dog.png --json""",
    "compare": """\
  distillab compare --recipe digits-modern --methods st,mbd-soft --seeds 3 --dry-run
  distillab compare --recipe digits-modern --methods st --axis distill.temperature=2,4,8 --seeds 5
  distillab compare --recipe digits-modern --methods st,mbd-soft --seeds 5 --tune 20
  distillab compare --recipe cifar10-cnn-modern --teacher runs/teacher --output runs/table""",
    "report": """\
  distillab report runs/table
  distillab report runs/teacher runs/alone runs/st --output report.html --title "Flowers, CNN8 to CNN16"
  distillab report runs/table --json > rows.json""",
    "resume": """\
  distillab resume runs/student
  distillab train --recipe digits-modern --output runs/student --resume auto""",
    "verify": """\
  distillab verify runs/student
  distillab verify runs/student --json > verification.json""",
    "demo": """\
  distillab demo --output runs/demo --json > demo.json""",
    "bench": """\
  distillab bench
  distillab bench --work cnn8-cnn16,cnn8 --method st,alone --batch-size 128 --json > bench.json
  distillab bench --work cnn8-cnn16 --method st --profile trace.json""",
    "doctor": """\
  distillab doctor""",
    "list": """\
  distillab list methods
  distillab list recipes --json""",
}


def run(words: Sequence[str], screen: Screen) -> None:
    """Do what the words of a command line say.

    Args:
        words: Those after the program's name.
        screen: Where results and progress go.

    Raises:
        DistillabError: Anything deliberate; wrong words are a ConfigError.
    """
    dispatch(build_app(words, screen), words, screen)


def build_app(words: Sequence[str], screen: Screen) -> App:
    """All commands, their modules loaded when they are named.

    Args:
        words: Those after the program's name. The flags of `distill` depend on them: a method has its own.
        screen: Where help is shown.
    """
    app = new_app(
        screen,
        name="distillab",
        help="Knowledge distillation of image classifiers: train a teacher, distil it into a student, compare.",
        help_epilogue=_epilogue("distillab"),
        default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
    )
    for name, home, summary in _VERBS:
        # The usage is written here, since cyclopts would go through all flags once more to find it.
        usage = f"Usage: distillab {name}{_ARGUMENTS.get(name, '')} [OPTIONS]"
        command: Any = f"distillab.commands.{home}"
        if name == "distill" and words[:1] == ["distill"]:
            from distillab.commands.distill import distill_command, distill_flags

            command = distill_command(distill_flags(words[1:]))
        app.command(command, name=name, help=summary, usage=usage, help_epilogue=_epilogue(name))
    lists = App(
        name="list", help="What there is: methods, models, data sets, recipes.", help_epilogue=_epilogue("list")
    )
    for name in _LISTS:
        lists.command(f"distillab.commands.list:list_{name}", name=name)
    app.command(lists)
    app.register_install_completion_command(help="Teach this shell to complete distillab's words.")
    return app


def _epilogue(name: str) -> str:
    return f"Examples:\n{_EXAMPLES[name]}"
