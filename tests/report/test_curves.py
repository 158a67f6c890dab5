"""Learning curves as numbers: whose epochs they are of, what is averaged, which epochs are listed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from distillab.report.charts import series_of
from distillab.report.collect import collect
from distillab.report.curves import learning_curves
from distillab.tables import Table
from made_up_runs import write, write_run


def run_with(folder: Path, seed: int, *epochs: Mapping[str, float | str]) -> None:
    """A distilled student that has told of these epochs."""
    run = write_run(folder / f"st-{seed}", "st", seed=seed)
    told = [{"role": "student", "stage": "only", **epoch} for epoch in epochs]
    write(run / "metrics.jsonl", "".join(json.dumps(epoch) + "\n" for epoch in told))


def numbers_of(folder: Path) -> Table:
    variants = collect([folder]).of("distilled")
    chart = learning_curves(variants, series_of(variants))
    assert chart is not None
    return chart.numbers


def test_a_curve_is_the_mean_over_the_seeds_that_have_come_so_far(tmp_path: Path) -> None:
    names = ("train_top1", "validation_top1", "loss", "validation_loss")
    first = [(0.50, 0.40, 3.0, 2.0), (0.60, 0.50, 2.0, 1.5), (0.75, 0.65, 1.0, 1.25)]
    second = [(0.60, 0.42, 5.0, 4.0), (0.70, 0.54, 3.0, 2.5)]
    for seed, epochs in enumerate((first, second)):
        run_with(tmp_path, seed, *(dict(zip(names, epoch, strict=True)) for epoch in epochs))
    numbers = numbers_of(tmp_path)
    assert [column.title for column in numbers.columns] == ["method", "curve", "epoch 1", "epoch 2", "epoch 3"]
    assert numbers.rows == (
        ("st", "Training top-1, %", "55.00", "65.00", "75.00"),
        ("st", "Validation top-1, %", "41.00", "52.00", "65.00"),
        ("st", "Training loss, each method's own", "4.00", "2.50", "1.00"),
        ("st", "Validation loss, nats", "3.00", "2.00", "1.25"),
    )


def test_epochs_of_those_that_taught_in_the_same_run_are_not_the_students(tmp_path: Path) -> None:
    run_with(tmp_path, 0, {"role": "teacher", "loss": 9.0}, {"role": "assistant", "loss": 8.0}, {"loss": 1.0})
    assert numbers_of(tmp_path).rows == (("st", "Training loss, each method's own", "1.00"),)


def test_of_many_epochs_twelve_at_most_are_listed_and_the_last_is_one_of_them(tmp_path: Path) -> None:
    run_with(tmp_path, 0, *({"loss": float(n)} for n in range(1, 32)))
    numbers = numbers_of(tmp_path)
    titles = [column.title for column in numbers.columns[2:]]
    assert titles == [f"epoch {n}" for n in (1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31)]
    assert numbers.rows[0][2:] == tuple(f"{n}.00" for n in (1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31))
    for epochs in (12, 13, 24, 36, 37):
        folder = tmp_path / f"{epochs} epochs"
        run_with(folder, 0, *({"loss": float(n)} for n in range(1, epochs + 1)))
        assert len(numbers_of(folder).columns) <= 2 + 12
        assert numbers_of(folder).columns[-1].title == f"epoch {epochs}"


def ticks_of(folder: Path) -> set[str]:
    """What stands at the axes of the only panel."""
    variants = collect([folder]).of("distilled")
    chart = learning_curves(variants, series_of(variants))
    assert chart is not None
    (panel,) = chart.panels
    return {text.text or "" for text in ElementTree.fromstring(panel.svg).iter("text")}


def test_the_first_epoch_is_drawn_at_1(tmp_path: Path) -> None:
    run_with(tmp_path, 0, {"loss": 2.9}, {"loss": 2.1})
    assert {"1", "2"} <= ticks_of(tmp_path)
    assert "0" not in ticks_of(tmp_path)


def test_the_axes_of_a_long_run_show_what_matters_at_its_end(tmp_path: Path) -> None:
    run_with(tmp_path, 0, {"loss": 5000.0}, *({"loss": 3.0 - 0.1 * n} for n in range(12)))
    numbers = [float(text) for text in ticks_of(tmp_path) if re.fullmatch(r"[\d.]+", text)]
    assert {1.8, 3.0} & set(numbers)
    assert max(numbers) < 100


def test_runs_that_tell_of_no_epoch_have_no_curves(tmp_path: Path) -> None:
    run_with(tmp_path, 0)
    variants = collect([tmp_path]).of("distilled")
    assert learning_curves(variants, series_of(variants)) is None
