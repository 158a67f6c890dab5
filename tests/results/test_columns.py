"""Rows as a terminal and a report show them: each column has its own number, in its own unit."""

from distillab.results.columns import rows_table

ALONE = {
    "difference": 0.0123,
    "interval": (0.01, 0.02),
    "p_value": 0.012,
    "uncorrected_p_value": 0.003,
    "verdict": "better",
    "points_per_extra_minute": 1.25,
}
ST = {
    "difference": -0.0321,
    "interval": (-0.04, 0.02),
    "p_value": 0.134,
    "uncorrected_p_value": 0.045,
    "verdict": "no difference shown",
    "points_per_extra_minute": None,
}
ROW = {
    "method": "takd",
    "model": "cnn16",
    "num_seeds": 5,
    "top1_mean": 0.9123,
    "top1_std": 0.0045,
    "top1_interval": (0.90, 0.92),
    "versus_alone": ALONE,
    "versus_st": ST,
    "rank": (1, 2),
    "num_teachers": 2,
    "top1_last_mean": 0.911,
    "top1_best_mean": 0.905,
    "nll": 0.456,
    "ece": 0.0312,
    "teacher_agreement": 0.876,
    "teacher_divergence": 0.543,
    "top1_where_teacher_wrong": 0.654,
    "parameters": 1_234_567,
    "seconds_mean": 12.34,
}
NOTHING = {**dict.fromkeys(ROW), "method": "st", "num_seeds": 0, "num_teachers": 1}

SHOWN = {
    "method": ("method", "takd"),
    "model": ("model", "cnn16"),
    "seeds": ("seeds", "5"),
    "top1": ("top-1 %", "91.23"),
    "std": ("std", "0.45"),
    "interval": ("95 % interval", "90.00 to 92.00"),
    "versus_alone": ("versus alone", "+1.23"),
    "alone_interval": ("its interval", "+1.00 to +2.00"),
    "alone_p_value": ("p (Holm)", "0.012"),
    "alone_shown": ("shown", "better"),
    "versus_st": ("versus st", "-3.21"),
    "st_interval": ("its interval", "-4.00 to +2.00"),
    "st_p_value": ("p (Holm)", "0.134"),
    "st_shown": ("shown", "nothing"),
    "rank": ("rank", "1 to 2"),
    "teachers": ("teachers", "2"),
    "last": ("last step %", "91.10"),
    "best": ("best epoch %", "90.50"),
    "nll": ("NLL", "0.456"),
    "ece": ("ECE %", "3.1"),
    "agreement": ("agreement %", "87.6"),
    "parameters": ("params M", "1.23"),
    "seconds": ("seconds", "12.3"),
    "gain": ("points/min", "1.25"),
}


def test_every_column_shows_its_own_number():
    table = rows_table([ROW, NOTHING], list(SHOWN))
    assert [column.title for column in table.columns] == [title for title, _ in SHOWN.values()]
    assert table.rows[0] == tuple(cell for _, cell in SHOWN.values())
    assert table.rows[1] == ("st", "-", "0", *["-"] * (len(SHOWN) - 3))


def test_a_column_without_any_value_is_left_out_and_one_rank_is_one_number():
    table = rows_table([{**NOTHING, "rank": (1, 1)}, {**NOTHING, "rank": (2, 3)}], list(SHOWN))
    assert [column.title for column in table.columns] == ["method", "seeds", "rank"]
    assert [row[-1] for row in table.rows] == ["1", "2 to 3"]
