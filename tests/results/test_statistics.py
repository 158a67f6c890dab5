from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats

from distillab.errors import ConfigError
from distillab.results.sentences import sentences
from distillab.results.statistics import (
    Difference,
    Run,
    as_rows,
    compare,
    detectable_difference,
    differences,
    holm,
    rank_intervals,
    summarise,
)
from tables_of_runs import table

examples = settings(derandomize=True, max_examples=50, deadline=None)
SIMULATIONS = 2000
SEVEN = ("st", "fitnet", "takd", "multi", "mbd-delta", "mbd-hard", "mbd-soft")


def difference(runs, method="st", baseline="alone"):
    return differences(runs, [(method, baseline)])[0]


def simulated(methods, seeds, effects=0.0, generator=None):
    """Tables whose methods share what a seed does to all of them; the spread of a run around that is 1 % by itself."""
    shared = generator.normal(0.0, 0.02, (SIMULATIONS, 1, seeds))
    own = generator.normal(0.0, 0.01, (SIMULATIONS, len(methods), seeds))
    values = 0.9 + np.reshape(effects, (-1, 1)) + shared + own
    for one in values.tolist():
        yield {m: {s: Run(v, 60.0) for s, v in enumerate(top1)} for m, top1 in zip(methods, one, strict=True)}


# One sample and pairs


def test_a_comparison_by_hand():
    # Differences of 2, 1 and 3 points: mean 2, squares around it 0 + 1 + 1, over 2 is 1, so the standard deviation is 1
    # and the standard error 1 / sqrt(3) = 0.57735. t = 2 / 0.57735 = 3.4641. With 2 degrees of freedom
    # p = 1 - t / sqrt(2 + t^2) = 1 - 3.4641 / sqrt(14) = 0.07418, and 95 % of t lie within 4.30265, so the interval is
    # 2 -+ 4.30265 * 0.57735 = 2 -+ 2.48414.
    found = difference(table(alone=(0.90, 0.91, 0.92), st=(0.92, 0.92, 0.95)))
    assert found.mean == pytest.approx(0.02)
    assert found.std == pytest.approx(0.01)
    assert found.interval == pytest.approx((-0.0048414, 0.0448414), abs=1e-7)
    assert found.uncorrected_p_value == pytest.approx(0.07418, abs=1e-5)
    assert found.num_pairs == 3


@examples
@given(thousandths=some.lists(some.integers(0, 1000), min_size=2, max_size=8).filter(lambda v: len(set(v)) > 1))
def test_a_summary_is_the_textbooks_loop_and_scipys_interval(thousandths):
    values = [v / 1000 for v in thousandths]
    total = 0.0
    for value in values:
        total += value
    mean = total / len(values)
    squares = 0.0
    for value in values:
        squares += (value - mean) ** 2
    std = math.sqrt(squares / (len(values) - 1))

    found = summarise([Run(value, 5.0 + i) for i, value in enumerate(values)])
    assert (found.mean, found.std) == (pytest.approx(mean), pytest.approx(std))
    expected = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=std / math.sqrt(len(values)))
    assert found.interval == pytest.approx(np.clip(expected, 0, 1))
    assert found.num_seeds == len(values)
    assert found.seconds == pytest.approx(5 + (len(values) - 1) / 2)


@examples
@given(
    pairs=some.lists(some.tuples(some.integers(0, 1000), some.integers(0, 1000)), min_size=2, max_size=8).filter(
        lambda pairs: len({a - b for a, b in pairs}) > 1
    )
)
def test_a_difference_is_scipys_paired_t_test(pairs):
    ours, theirs = ([value / 1000 for value in side] for side in zip(*pairs, strict=True))
    found = difference(table(st=ours, alone=theirs))
    expected = stats.ttest_rel(ours, theirs)
    assert found.uncorrected_p_value == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(np.clip(expected.confidence_interval(0.95), -1, 1))
    assert found.mean == pytest.approx(np.mean(ours) - np.mean(theirs))


def test_only_seeds_that_both_have_are_compared():
    runs = table(alone=(0.1, 0.90, 0.91, 0.92, None), st=(None, 0.92, 0.92, 0.95, 0.99))
    assert difference(runs) == difference(table(alone=(None, 0.90, 0.91, 0.92), st=(None, 0.92, 0.92, 0.95)))
    assert difference(runs).num_pairs == 3


def test_one_seed_gives_a_mean_and_claims_nothing():
    comparison = compare(table(alone=(0.90,), st=(0.99,)))
    assert comparison.summaries["st"].mean == 0.99
    assert (comparison.summaries["st"].std, comparison.summaries["st"].interval) == (None, None)
    found = comparison.versus["alone"]["st"]
    assert found.mean == pytest.approx(0.09)
    assert (found.std, found.interval, found.uncorrected_p_value, found.p_value) == (None, None, None, None)
    assert found.verdict == "no difference shown"


def test_no_common_seed_gives_no_difference_at_all():
    found = difference(table(alone=(0.90, 0.91, None, None), st=(None, None, 0.92, 0.95)))
    assert found == Difference("st", "alone", 0, None, None, None, None, None)
    assert found.verdict == "no difference shown"
    assert found.points_per_extra_minute is None


@pytest.mark.parametrize("gain", [0.0, 0.0279, 0.00001])
def test_equal_differences_are_an_accident_and_no_certainty(gain):
    # In floats these differences are equal only up to rounding, which a t test would take for a tiny spread.
    alone = (0.9, 0.7, 0.4, 0.35, 0.61)
    found = difference(table(alone=alone, st=[value + gain for value in alone]))
    assert found.mean == pytest.approx(gain)
    assert (found.std, found.interval, found.uncorrected_p_value) == (0.0, None, None)
    assert found.verdict == "no difference shown"


def test_equal_runs_have_no_interval():
    assert summarise([Run(0.9, 1.0)] * 3).interval is None
    assert summarise([Run(0.0, 1.0)] * 3).std == 0.0


def test_the_verdict_follows_the_corrected_p_value_and_the_sign():
    def verdict(mean, corrected):
        return Difference("st", "alone", 5, 0.0, mean, 0.01, (0.0, 0.0), 0.001, corrected).verdict

    assert verdict(0.02, 0.049) == "better"
    assert verdict(-0.02, 0.049) == "worse"
    assert verdict(0.02, 0.05) == "no difference shown"


# Families


def test_holm_by_hand():
    # Sorted: 0.01 * 4 = 0.04, 0.02 * 3 = 0.06, 0.025 * 2 = 0.05, which may not fall below 0.06, and 0.7 * 1.
    assert holm([0.02, 0.7, 0.01, 0.025]) == pytest.approx([0.06, 0.7, 0.04, 0.06])


@examples
@given(p_values=some.lists(some.floats(0, 1) | some.sampled_from([0.01, 0.5]), max_size=7))
def test_holm_is_the_closed_test_over_all_subsets_by_bonferroni(p_values):
    def by_definition(index):
        others = [i for i in range(len(p_values)) if i != index]
        sets = [{index, *more} for size in range(len(p_values)) for more in itertools.combinations(others, size)]
        return max(min(1.0, len(each) * min(p_values[i] for i in each)) for each in sets)

    assert holm(p_values) == pytest.approx([by_definition(i) for i in range(len(p_values))])


@examples
@given(p_values=some.lists(some.none() | some.floats(0, 1), max_size=7))
def test_what_could_not_be_tested_counts_as_found_nothing(p_values):
    expected = holm([1.0 if p is None else p for p in p_values])
    assert holm(p_values) == [None if p is None else e for p, e in zip(p_values, expected, strict=True)]


def test_each_baseline_is_a_family_and_two_baselines_are_compared_once():
    runs = table(alone=(0.90, 0.91, 0.92), st=(0.92, 0.92, 0.95), takd=(0.93, 0.95, 0.95), multi=(0.90, 0.93, 0.91))
    comparison = compare(runs)
    assert {name: list(family) for name, family in comparison.versus.items()} == {
        "alone": ["st", "takd", "multi"],
        "st": ["takd", "multi"],
    }
    for name, family in comparison.versus.items():
        plain = [difference(runs, method, name).uncorrected_p_value for method in family]
        assert [d.p_value for d in family.values()] == holm(plain)


def test_a_table_without_a_baseline_is_described_and_ranked():
    comparison = compare(table(takd=(0.90, 0.91, 0.92), multi=(0.95, 0.97, 0.96)))
    assert comparison.versus == {}
    assert comparison.ranks == {"takd": (2, 2), "multi": (1, 1)}
    assert sentences(comparison) == ["multi is shown to be better than every other method of the table."]


# Ranks


def separated():
    """Two methods far above two others, which do not differ, and one that never ended."""
    return table(
        alone=(0.800, 0.811, 0.820, 0.829, 0.840),
        st=(0.801, 0.810, 0.821, 0.828, 0.841),
        takd=(0.901, 0.911, 0.921, 0.928, 0.940),
        multi=(0.900, 0.911, 0.919, 0.931, 0.939),
        fitnet=(None,) * 5,
    )


def test_rows_that_are_not_separated_share_their_ranks():
    comparison = compare(separated())
    assert comparison.ranks == {"alone": (3, 4), "st": (3, 4), "takd": (1, 2), "multi": (1, 2)}
    assert comparison.winner is None


def test_the_winner_is_better_than_every_other():
    runs = separated() | table(mbd_soft=(0.951, 0.961, 0.969, 0.981, 0.991))
    comparison = compare(runs)
    assert comparison.winner == "mbd-soft"
    assert comparison.ranks["mbd-soft"] == (1, 1)
    assert comparison.ranks["takd"] == (2, 3)


def test_nobody_wins_alone():
    assert compare(table(alone=(0.9, 0.91, 0.92))).winner is None
    assert compare({}).winner is None


# Cost


ALONE = (0.900, 0.910, 0.920, 0.900, 0.910)
BETTER = (0.920, 0.931, 0.939, 0.921, 0.929)
WORSE = (0.890, 0.901, 0.909, 0.891, 0.899)


def test_the_gain_is_told_by_the_minute_that_it_costs():
    # 2 points for 90 seconds more are 4 / 3 points a minute.
    runs = table(alone=ALONE) | table(seconds=150.0, st=BETTER, takd=WORSE)
    assert difference(runs).points_per_extra_minute == pytest.approx(4 / 3)
    assert difference(runs, "takd").points_per_extra_minute == pytest.approx(-1 / 1.5)


@pytest.mark.parametrize("seconds", [65.0, 60.0, 59.0])
def test_a_method_that_takes_no_longer_has_no_gain_by_the_minute(seconds):
    runs = table(alone=ALONE) | table(seconds=seconds, st=BETTER)
    assert difference(runs).points_per_extra_minute is None


def test_a_tenth_of_the_baselines_time_and_a_second_are_the_least_that_is_longer():
    def gain(alone, seconds):
        runs = table(seconds=alone, alone=ALONE) | table(seconds=seconds, st=BETTER)
        return difference(runs).points_per_extra_minute

    assert gain(60.0, 65.9) is None
    assert gain(60.0, 66.1) == pytest.approx(2 / 6.1 * 60), "it is not a tenth of its own time"
    assert gain(2.0, 2.9) is None
    assert gain(2.0, 3.1) == pytest.approx(2 / 1.1 * 60)


def test_a_difference_that_is_not_shown_has_no_gain_by_the_minute():
    runs = table(alone=ALONE) | table(seconds=150.0, st=(0.93, 0.90, 0.95, 0.89, 0.93))
    assert difference(runs).mean > 0
    assert difference(runs).points_per_extra_minute is None


# What must not matter


tables = (
    some.integers(1, 5)
    .flatmap(
        lambda seeds: some.dictionaries(
            some.sampled_from(("alone", *SEVEN)),
            some.lists(some.none() | some.integers(700, 730), min_size=seeds, max_size=seeds),
            min_size=1,
        )
    )
    .map(
        lambda rows: {
            m: {s: Run(v / 1000, 60.0 + v) for s, v in enumerate(r) if v is not None} for m, r in rows.items()
        }
    )
)


@examples
@given(runs=tables, order=some.randoms(use_true_random=False))
def test_the_order_of_rows_and_seeds_does_not_matter(runs, order):
    def mixed(mapping):
        return dict(order.sample(list(mapping.items()), len(mapping)))

    assert compare(mixed({method: mixed(by_seed) for method, by_seed in runs.items()})) == compare(runs)


@examples
@given(runs=tables)
def test_shifting_all_values_shifts_the_means_and_nothing_else(runs):
    shifted = {m: {s: Run(run.top1 + 0.25, run.seconds) for s, run in row.items()} for m, row in runs.items()}
    before, after = compare(runs), compare(shifted)
    assert after.ranks == before.ranks
    for method, summary in before.summaries.items():
        if summary.mean is not None:
            assert after.summaries[method].mean == pytest.approx(summary.mean + 0.25)
            assert after.summaries[method].std == pytest.approx(summary.std)
    for name, family in before.versus.items():
        for method, found in family.items():
            assert after.versus[name][method].mean in (None, pytest.approx(found.mean or 0.0, abs=1e-12))
            assert (found.uncorrected_p_value is None) == (after.versus[name][method].uncorrected_p_value is None)
            assert after.versus[name][method].uncorrected_p_value in (
                None,
                pytest.approx(found.uncorrected_p_value or 0.0, rel=1e-6),
            )


@examples
@given(runs=tables)
def test_every_table_has_rows_for_json_and_ranks_that_hold_together(runs):
    comparison = compare(runs)
    rows = json.loads(json.dumps(as_rows(comparison), allow_nan=False))
    assert [row["method"] for row in rows] == list(runs)
    ranks = comparison.ranks.values()
    assert all(1 <= best <= worst <= len(ranks) for best, worst in ranks)
    assert sum(best - 1 for best, _ in ranks) == sum(len(ranks) - worst for _, worst in ranks)
    assert all(line.endswith(".") and "None" not in line and "nan" not in line for line in sentences(comparison))


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match="leave out runs that diverged") as caught:
        compare(table(alone=(0.9, 0.91), st=(0.9, math.nan)))
    assert caught.value.where == "st, seed 1"


# Rows


def test_rows_have_the_documented_keys():
    runs = table(alone=(0.90, 0.91, 0.92)) | table(seconds=150.0, st=(0.92, 0.92, 0.95), takd=(None, None, None))
    alone, st, takd = as_rows(compare(runs))
    assert alone == {
        "method": "alone",
        "num_seeds": 3,
        "top1_mean": pytest.approx(0.91),
        "top1_std": pytest.approx(0.01),
        "top1_interval": pytest.approx((0.91 - 0.0248414, 0.91 + 0.0248414), abs=1e-7),
        "seconds_mean": 60.0,
        "rank": (1, 2),
        "versus_alone": None,
        "versus_st": None,
    }
    assert st["versus_alone"] == {
        "difference": pytest.approx(0.02),
        "interval": pytest.approx((-0.0048414, 0.0448414), abs=1e-7),
        "uncorrected_p_value": pytest.approx(0.07418, abs=1e-5),
        "p_value": pytest.approx(2 * 0.07418, abs=1e-5),
        "num_pairs": 3,
        "verdict": "no difference shown",
        "points_per_extra_minute": None,
    }
    assert takd["num_seeds"] == 0
    assert takd["versus_st"]["num_pairs"] == 0
    assert [takd[key] for key in ("top1_mean", "top1_std", "top1_interval", "seconds_mean", "rank")] == [None] * 5


def test_nothing_heavy_is_imported_before_something_is_tested():
    code = "import sys, distillab.results.statistics; sys.exit('scipy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Simulations with known truth


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_95_times_in_100(seeds):
    means = pairs = 0
    for runs in simulated(("alone", "st"), seeds, effects=(0.0, 0.015), generator=np.random.default_rng(seeds)):
        low, high = summarise(list(runs["st"].values())).interval
        means += low <= 0.915 <= high
        low, high = difference(runs).interval
        pairs += low <= 0.015 <= high
    assert 0.93 <= means / SIMULATIONS <= 0.97
    assert 0.93 <= pairs / SIMULATIONS <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
def test_equal_methods_are_hardly_ever_told_apart(seeds):
    winners = separations = beaten_baselines = 0
    for runs in simulated(SEVEN, seeds, generator=np.random.default_rng(10 + seeds)):
        ranks = rank_intervals(runs)
        winners += any(rank == (1, 1) for rank in ranks.values())
        separations += any(rank != (1, 7) for rank in ranks.values())
        family = differences(runs, [(method, "st") for method in SEVEN[1:]])
        beaten_baselines += any(d.verdict == "better" for d in family)
    assert winners / SIMULATIONS <= 0.06
    assert separations / SIMULATIONS <= 0.06
    assert beaten_baselines / SIMULATIONS <= 0.06
    # Tests that never find anything would pass, too.
    assert separations > 0
    assert beaten_baselines > 0


def test_a_large_difference_is_found_most_of_the_time_among_seven():
    # The differences of two runs have a standard deviation of sqrt(2) %; the effect is three times that.
    effect = 3 * math.sqrt(2) * 0.01
    found = false = 0
    for runs in simulated(("alone", *SEVEN), 5, effects=(0.0,) * 7 + (effect,), generator=np.random.default_rng(20)):
        family = differences(runs, [(method, "alone") for method in SEVEN])
        found += family[-1].verdict == "better"
        false += any(d.verdict != "no difference shown" for d in family[:-1])
    assert found / SIMULATIONS > 0.75
    assert false / SIMULATIONS <= 0.06


def test_a_true_winner_is_found():
    wins = 0
    generator = random.Random(0)
    for _ in range(50):
        values = {m: [0.9 + 0.1 * (m == "st") + generator.gauss(0, 0.01) for _ in range(5)] for m in SEVEN}
        wins += compare(table(**{m.replace("-", "_"): v for m, v in values.items()})).winner == "st"
    assert wins > 40


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("comparisons", [1, 7])
def test_the_detectable_difference_is_found_four_times_out_of_five(seeds, comparisons):
    difference = Difference("a", "alone", seeds, 0.0, 0.0, 0.02, (0.0, 0.0), 0.5)
    detectable = detectable_difference(difference, num_comparisons=comparisons)
    threshold = stats.t.isf(0.05 / comparisons / 2, seeds - 1)
    assert stats.nct.sf(threshold, seeds - 1, detectable / 0.02 * math.sqrt(seeds)) == pytest.approx(0.8, abs=1e-4)

    sample = np.random.default_rng(30).normal(detectable, 0.02, (SIMULATIONS, seeds))
    p_values = stats.ttest_1samp(sample, 0.0, axis=1).pvalue
    assert (p_values < 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.03)


def test_what_was_not_tested_has_no_detectable_difference():
    single = Difference("a", "alone", 1, 0.0, 0.0, None, None, None)
    equal = Difference("a", "alone", 5, 0.0, 0.0, 0.0, None, None)
    assert detectable_difference(single, num_comparisons=1) is None
    assert detectable_difference(equal, num_comparisons=1) is None
