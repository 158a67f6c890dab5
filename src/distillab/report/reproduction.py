"""The part of a report that lets its rows be made again: commands, versions, settings."""

from __future__ import annotations

import shlex

from distillab.config import TrainConfig, to_toml
from distillab.outside_code import mentions_code
from distillab.report.collect import Collection, Variant
from distillab.report.document import Block, Figures, Listing
from distillab.results.run_record import Run, shown_path, spelt
from distillab.tables import Column, Table


def reproduction(collection: Collection) -> list[Block]:
    """What tells rows apart, then a listing for each.

    Args:
        collection: What the report is about.
    """
    blocks: list[Block] = []
    if collection.differing:
        heads = (Column("method"), *(Column(name) for name in collection.differing))
        cells = tuple(
            (variant.name, *(values[n] for values in collection.differing.values()))
            for n, variant in enumerate(collection.variants)
        )
        series = tuple(range(len(collection.variants)))
        blocks.append(Figures("Settings in which rows differ.", Table(heads, cells), series))
    return [*blocks, *(_record(variant) for variant in collection.variants if variant.runs)]


def _record(variant: Variant) -> Listing:
    """How a row came about, and the commands that make it again; all else is a comment, so that it can be pasted."""
    run = variant.first
    environment = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    commit = f" at {environment.git.commit}{' (changed)' if environment.git.changed else ''}" if environment.git else ""
    told = [
        *(f"seed {one.result.seed}: {shown_path(one.folder)}" for one in variant.runs),
        f"it was run as: {run.command}",
        f"distillab {environment.distillab}{commit}, python {environment.python}, {versions}",
        f"on {environment.device_name or environment.device}, {environment.threads} threads, {environment.platform}",
        "settings of the first run:",
        *(f"  {line}" for line in to_toml(run.config).splitlines() if line),
    ]
    if not run.is_own:
        told.insert(0, "this teacher was trained elsewhere, and what follows is of a student of it")
    if mentions_code(run.config.model_dump(mode="json")):
        told.insert(0, "the settings name code, which is run only with --allow-code: read it first")
    again = [_command(one) for one in variant.runs]
    return Listing(
        f"{variant.name}: commands, versions and settings",
        "\n".join([*again, *(f"# {spelt(line)}" for line in told)]),
    )


def _command(run: Run) -> str:
    verb = "train" if isinstance(run.config, TrainConfig) else "distill"
    return shlex.join(["distillab", verb, "--recipe", shown_path(run.folder)])
