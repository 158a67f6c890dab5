"""The part of a report that lets its rows be made again: commands, versions, settings."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from distillab.config import TrainConfig, to_toml
from distillab.outside_code import mentions_code
from distillab.report.collect import Collection, Variant
from distillab.report.document import Block, Figures, Listing
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
    settings = [_settings(variant.first) for variant in made if variant.first.is_own]
    shared = _shared(settings) if len(settings) > 1 else {}  # told once: what differs is to be seen
    if shared:
        blocks.append(Listing("Settings that all rows share", "\n".join(_comments(_lines(shared)))))
    return [*blocks, *(_record(variant, shared) for variant in made)]


def _settings(run: Run) -> dict[str, Any]:
    return tomllib.loads(to_toml(run.config))


def _shared(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all of them have alike, table by table."""
    first, *others = settings
    found = {}
    for name, value in first.items():
        values = [one.get(name) for one in others]
        tables = [one for one in values if isinstance(one, dict)]
        if isinstance(value, dict) and len(tables) == len(values):
            found[name] = _shared([value, *tables])
        elif all(one == value for one in values):
            found[name] = value
    return {name: value for name, value in found.items() if value != {}}


def _without(settings: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """What is not shared, table by table."""
    found = {
        name: _without(value, shared.get(name, {})) if isinstance(value, dict) else value
        for name, value in settings.items()
        if isinstance(value, dict) or name not in shared
    }
    return {name: value for name, value in found.items() if value != {}}


def _lines(settings: Mapping[str, Any]) -> list[str]:
    return [f"  {line}" for line in tomli_w.dumps(settings).splitlines() if line]


def _comments(lines: Sequence[str]) -> list[str]:
    return [f"# {spelt(line)}" for line in lines]


def _record(variant: Variant, shared: Mapping[str, Any]) -> Listing:
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
        *_lines(_without(_settings(run), shared)),
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
