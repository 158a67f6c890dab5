"""What may be said of a table, word by word: none claims more than its test."""

from __future__ import annotations

import re

import pytest

from distillab.results.sentences import sentences
from distillab.results.statistics import (
    compare,
)
from tables_of_runs import table


def test_a_method_that_is_better_is_told_with_interval_p_value_and_seeds():
    # The differences are 1.1, 1.3, 1.2, 1.4 and 1.0 points: mean 1.2, standard error sqrt(0.025 / 5) = 0.0707,
    # t = 16.97, and 2.776 * 0.0707 = 0.196.
    lines = sentences(compare(table(alone=(0.90,) * 5, mbd_soft=(0.911, 0.913, 0.912, 0.914, 0.910))))
    assert lines == [
        "mbd-soft beats the student alone by 1.20 points (95 % interval 1.00 to 1.40, corrected p < 0.001, 5 seeds).",
    ]


def test_a_method_that_is_worse_is_told_and_the_rest_is_not_shown_to_differ():
    runs = table(alone=(0.9, 0.91, 0.92), st=(0.80, 0.81, 0.821), takd=(0.92, 0.90, 0.93), multi=(0.9, 0.92, 0.91))
    found = compare(runs).versus["alone"]
    assert found["st"].p_value == pytest.approx(3 * found["st"].uncorrected_p_value)
    first, second, third, both, fourth, fifth, last = sentences(compare(runs))
    assert both == "takd and multi are shown to beat st, by 9.97 to 10.63 points."
    assert first == "No method is shown to beat the student alone with 3 seeds."
    assert second.startswith(
        "st is worse than the student alone by 9.97 points (95 % interval 9.82 to 10.11, corrected p"
    )
    assert third == (
        "No difference to the student alone is shown for takd, multi: a true difference must be about "
        "5.67 (multi) to 8.66 (takd) points to be found four times out of five."
    )
    assert fourth.startswith("takd beats st by 10.63 points (95 % interval 6.86 to 14.40, corrected p = 0.0074, ")
    assert fifth.startswith("multi beats st by 9.97 points ")
    assert last == "No method is shown to be better than every other; the best may be any of alone, takd, multi."


def test_several_that_are_better_are_told_together_first():
    runs = table(alone=(0.9, 0.91, 0.9), takd=(0.951, 0.96, 0.95), multi=(0.93, 0.9395, 0.93), fitnet=(0.9, 0.92, 0.91))
    first, second, third, *_ = sentences(compare(runs))
    assert first == "takd and multi are shown to beat the student alone, by 2.98 to 5.03 points."
    assert second.startswith("takd beats the student alone by 5.03 points")
    assert third.startswith("multi beats the student alone by 2.98 points")


def test_soft_targets_of_several_settings_are_no_baseline_and_that_is_told():
    (pair,) = table(st=(0.9, 0.91)).values()
    runs = {**table(alone=(0.9, 0.91)), "st, temperature 2": pair, "st, temperature 4": pair, "takd": pair}
    lines = sentences(compare(runs))
    assert lines[-1] == "st is there with several settings, so nothing is held against it."
    assert "may be any of alone; st, temperature 2; st, temperature 4; takd." in lines[-2]


def test_one_seed_is_told_to_be_too_few():
    assert sentences(compare(table(alone=(0.9,), mbd_hard=(0.95,), multi=(0.91,)))) == [
        "No method is shown to beat the student alone with 1 seed.",
        "No difference to the student alone is shown for mbd-hard, multi: "
        "testing takes two seeds or more that both have, and differences that are not all equal.",
        "No method is shown to be better than every other; the best may be any of alone, mbd-hard, multi.",
    ]


def test_where_no_difference_is_large_enough_that_is_told_instead_of_its_size():
    _, unclear, *_ = sentences(compare(table(alone=(0.2, 0.3), st=(0.1, 0.6))))
    assert unclear == (
        "No difference to the student alone is shown for st: "
        "with so few seeds that spread so far none would be found four times out of five."
    )


def test_a_table_of_one_row_says_nothing():
    assert sentences(compare(table(alone=(0.9, 0.91)))) == []


def test_one_wild_method_does_not_hide_what_the_others_could_have_shown():
    steady, wild = (0.901, 0.909, 0.922, 0.899, 0.911), (0.9, 0.5, 0.95, 0.6, 0.9)
    runs = table(alone=(0.90, 0.91, 0.92, 0.90, 0.91), mbd_hard=steady, fitnet=wild)
    line = next(line for line in sentences(compare(runs)) if line.startswith("No difference"))
    assert re.search(r"must be about 0\.\d\d \(mbd-hard\) to \d\d\.\d\d \(fitnet\) points", line)


def test_a_difference_that_no_accuracies_can_have_is_told_as_more_than_100_points():
    runs = table(alone=(0.2, 0.3), mbd_hard=(0.201, 0.302), fitnet=(0.1, 0.6))
    line = next(line for line in sentences(compare(runs)) if line.startswith("No difference"))
    assert re.search(r"must be about \d\.\d\d \(mbd-hard\) to more than 100 \(fitnet\) points", line)


def test_of_rows_with_several_numbers_of_seeds_the_most_are_told():
    runs = table(alone=(0.90, 0.91, 0.92), takd=(0.90, 0.92, None), fitnet=(0.92, 0.90, 0.93), multi=(0.91, None, None))
    assert sentences(compare(runs))[0] == "No method is shown to beat the student alone with 3 seeds."


def test_who_is_shown_to_be_worse_than_somebody_is_not_among_those_that_may_be_the_best():
    runs = table(alone=(0.90, 0.91, 0.92), st=(0.91, 0.93, 0.95), takd=(0.92, 0.932, 0.948))
    assert compare(runs).ranks == {"alone": (2, 3), "st": (1, 3), "takd": (1, 2)}
    assert sentences(compare(runs))[-1].endswith("the best may be any of st, takd.")


def test_soft_targets_that_are_held_against_the_others_are_not_said_to_be_no_baseline():
    runs = {**table(alone=(0.9, 0.91), st=(0.9, 0.92)), "st, temperature 2": table(st=(0.92, 0.93))["st"]}
    assert not any("several settings" in line for line in sentences(compare(runs)))
