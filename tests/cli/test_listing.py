from __future__ import annotations

import json

import pytest

import shell
from distillab.data.catalog import DATASETS
from distillab.models.catalog import MODELS
from distillab.stages import PLANS

KNOWN = {
    "methods": set(PLANS),
    "models": set(MODELS),
    "datasets": set(DATASETS),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_a_listing_names_everything_once(kind: str, command: shell.Command) -> None:
    lines = command("list", kind).out.splitlines()
    assert lines[0].startswith("name")
    names = [line.split()[0] for line in lines[1:]]
    assert len(names) == len(set(names))
    assert set(names) == KNOWN[kind]


@pytest.mark.parametrize("kind", [*KNOWN, "recipes"])
def test_a_listing_as_json_is_one_object(kind: str, command: shell.Command) -> None:
    outcome = command("list", kind, "--json")
    listed = json.loads(outcome.out)
    assert list(listed) == [kind]
    assert all(record["name"] and record["summary"] for record in listed[kind])
    assert outcome.err == ""


def test_models_are_listed_with_what_they_cost(command: shell.Command) -> None:
    listed = {record["name"]: record for record in json.loads(command("list", "models", "--json").out)["models"]}
    assert listed["cnn8"]["parameters"] == 4_756_170
    assert listed["resnet98"]["parameters"] == 2_831_578
    assert listed["cnn16"]["macs"] < listed["cnn8"]["macs"]
    assert "4,756,170" in command("list", "models").out


def test_methods_are_listed_with_their_stages(command: shell.Command) -> None:
    listed = {record["name"]: record for record in json.loads(command("list", "methods", "--json").out)["methods"]}
    assert listed["multi"]["stages"] == [
        "teacher to assistant: hint then soft_target",
        "assistant to student: hint then soft_target",
    ]
