"""`distillab evaluate` and `distillab predict`: what a saved model is worth, and what it sees."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
import csv
import io
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from distillab.commands.flags import EVERY_FIELD, AllowCode, Injected, Json, Quiet, Whole, flags_of
from distillab.config import RunConfig, merged
from distillab.errors import ConfigError
from distillab.recipe import load_recipe
from distillab.report.table import results_table
from distillab.runtime.files import write_text
from distillab.settings import validated

_FIELDS = ("data", "data_dir", "offline", "image_size", "device", "threads", "split")
EvaluateFlags = flags_of(RunConfig, only=_FIELDS)

Source = Annotated[Path, Parameter(help="A run folder or a weight file (.safetensors, .pth).")]
Architecture = Annotated[
    str | None, Parameter(help="Architecture of a weight file that does not say its own, such as cnn16.")
]
BatchSize = Annotated[Whole, Parameter(help="Images at once.", validator=lambda _, size: _positive(size))]


def evaluate(
    source: Source,
    /,
    *,
    settings: Annotated[EvaluateFlags | None, EVERY_FIELD] = None,  # type: ignore[valid-type]
    model: Architecture = None,
    teacher: Annotated[str | None, Parameter(help="Run folder or weight file to compare with.")] = None,
    teacher_model: Architecture = None,
    batch_size: BatchSize = 512,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Measure a saved model on the test images: by default those of the run that it comes from."""
    from distillab.inference import evaluate_file

    screen.quiet, screen.json = quiet, json
    config = validated(RunConfig, merged(settings_of_run(source, allow_code), settings or {}))
    with screen.watching() as observer:
        result = evaluate_file(
            str(source),
            config,
            teacher=teacher,
            teacher_model=teacher_model,
            model=model,
            batch_size=batch_size,
            allow_code=allow_code,
            observer=observer,
        )
    row = {"model": source.name, **result["test"], **result["cost"]}
    screen.show(result, results_table([row]), result["noise"])


def settings_of_run(source: Path, allow_code: bool) -> dict[str, Any]:
    """What the run that weights come from says of evaluation.

    Args:
        source: A run folder, or a weight file in one.
        allow_code: Let it name functions of packages.

    Returns:
        Values of `RunConfig`; none where the weights stand alone.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / "config.toml").is_file():
        return {}
    recipe = load_recipe(str(folder), allow_code=allow_code)
    precision = {key: value for key, value in recipe.get("training", {}).items() if key == "precision"}
    return {"training": precision, **{key: value for key, value in recipe.items() if key in _FIELDS}}


def predict(
    source: Source,
    images: Annotated[list[Path], Parameter(help="Image files, and folders to search for images.")],
    /,
    *,
    output: Annotated[Path | None, Parameter(help="Write to this file (.csv or .json) instead of stdout.")] = None,
    model: Architecture = None,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    batch_size: BatchSize = 256,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Say what a saved model sees in images: CSV with one line an image, or JSON."""
    from distillab.inference import predict_files

    if output is not None and output.suffix not in (".csv", ".json"):
        raise ConfigError(f"unknown kind of file '{output.suffix}'", where="--output", hint="end it in .csv or .json")
    screen.quiet, screen.json = quiet, json
    with screen.watching() as observer:
        records = predict_files(
            str(source),
            images,
            model=model,
            device=device,
            batch_size=batch_size,
            allow_code=allow_code,
            observer=observer,
        )
    if output is None:
        screen.show({"predictions": records}, as_csv(records))
        return
    write_text(output, dumps(records, indent=2) + "\n" if output.suffix == ".json" else as_csv(records) + "\n")
    screen.show({"images": len(records), "output": str(output)}, f"{len(records)} predictions: {output}")


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Predictions as CSV: a head, then one line an image.

    Args:
        records: As `predict_files` gives them.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("file", "class", "label", "confidence"))
    for record in records:
        writer.writerow((record["file"], record["class"], record["label"], f"{record['confidence']:.6f}"))
    return stream.getvalue().rstrip("\n")


def _positive(size: int) -> None:
    if size < 1:
        raise ValueError("it must be at least 1")
