"""`distillab predict`: what a saved model sees."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
import csv
import io
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from distillab.commands.flags import AllowCode, Architecture, BatchSize, Injected, Json, Quiet, Source, Whole
from distillab.errors import ConfigError
from distillab.runtime.files import write_text


def predict(
    source: Source,
    images: Annotated[list[Path], Parameter(help="Image files, and folders to search for images.")],
    /,
    *,
    output: Annotated[Path | None, Parameter(help="Write to this file (.csv or .json) instead of stdout.")] = None,
    model: Architecture = None,
    num_classes: Annotated[Whole | None, Parameter(help="Of a weight file that does not say how many.")] = None,
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
            num_classes=num_classes,
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
