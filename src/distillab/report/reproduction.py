"""The part of a report that lets its rows be made again: commands, versions, settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from distillab.config import TrainConfig
from distillab.outside_code import mentions_code
from distillab.report.collect import Collection, Variant
from distillab.report.document import Block, Figures, Listing
from distillab.report.telling_apart import all_settings
from distillab.results.run_record import Run, shown_path, spelt
from distillab.tables import Column, Table


def reproduction(collection: Collection) -> list[Block]:
    """What tells rows apart, what they share, then a listing for each.

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
    made = [variant for variant in collection.variants if variant.runs]
    settings = [all_settings(variant.first.config) for variant in made if variant.first.is_own]
    shared = {}
    if len(settings) > 1:  # told once: what differs is to be seen
        shared = {name: value for name, value in settings[0].items() if all(one.get(name) == value for one in settings)}
        blocks.append(Listing("Settings that all rows share", "\n".join(_comments(_lines(shared)))))
    return [*blocks, *(_record(variant, shared) for variant in made)]


def _lines(settings: Mapping[str, str]) -> list[str]:
    return [f"  {name} = {value}" for name, value in settings.items()]


def _comments(lines: Sequence[str]) -> list[str]:
    return [f"# {spelt(line)}" for line in lines]


def _record(variant: Variant, shared: Mapping[str, str]) -> Listing:
    """How a row came about, and the commands that make it again; all else is a comment, so that it can be pasted.

    Args:
        variant: With a run at least.
        shared: Settings that are told elsewhere.
    """
    run = variant.first
    environment = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    commit = f" at {environment.git.commit}{' (changed)' if environment.git.changed else ''}" if environment.git else ""
    told = [
        *(f"seed {one.result.seed}: {shown_path(one.folder)}" for one in variant.runs),
        *([f"it was run as: {run.command}"] if run.command else []),
        f"distillab {environment.distillab}{commit}, python {environment.python}, {versions}",
        f"on {environment.device_name or environment.device}, {environment.threads} threads, {environment.platform}",
        f"settings of the first run{', beside those that all rows share' if shared else ''}:",
        *_lines({name: value for name, value in all_settings(run.config).items() if shared.get(name) != value}),
    ]
    if not run.is_own:
        told.insert(0, "this teacher was trained elsewhere, and what follows is of a student of it")
    if mentions_code(run.config.model_dump(mode="json")):
        told.insert(0, "the settings name code, which is run only with --allow-code: read it first")
    again = [_command(one) for one in variant.runs]
    return Listing(
        f"{variant.name}: commands, versions and settings",
        "\n".join([*again, *_comments(told)]),
    )


def _command(run: Run) -> str:
    verb = "train" if isinstance(run.config, TrainConfig) else "distill"
    return shlex.join(["distillab", verb, "--recipe", shown_path(run.folder)])
