"""Rows as they are counted, and as a spreadsheet has them."""

import csv
import io

from distillab.results.rows import as_csv


def test_what_is_nested_has_columns_of_its_own():
    rows = [
        {"method": "alone", "top1_interval": None, "versus_alone": None, "seeds": [0, 1]},
        {
            "method": "st",
            "top1_interval": (0.1, 0.2),
            "versus_alone": {"difference": 0.5, "interval": None},
            "seeds": [0],
        },
        {
            "method": "=x",
            "top1_interval": (0.3, 0.4),
            "versus_alone": {"difference": 1, "interval": (0, 2)},
            "seeds": [],
        },
    ]
    alone, st, formula = csv.DictReader(io.StringIO(as_csv(rows)))
    names = ["method", "seeds", "top1_interval", "versus_alone.difference", "versus_alone.interval"]
    assert sorted(name.removesuffix(".low").removesuffix(".high") for name in alone) == sorted([*names, *names[2:5:2]])
    assert (alone["top1_interval.low"], alone["versus_alone.difference"], alone["seeds"]) == ("", "", "0 1")
    assert (st["top1_interval.low"], st["top1_interval.high"], st["versus_alone.difference"]) == ("0.1", "0.2", "0.5")
    assert (formula["versus_alone.interval.low"], formula["versus_alone.interval.high"]) == ("0", "2")
    assert formula["method"] == "'=x"
