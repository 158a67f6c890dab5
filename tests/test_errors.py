"""Errors that travel between processes, and the words that they are made of."""

import pickle

import pytest

from distillab.errors import ConfigError, DistillabError, Interrupted, few_of


def kinds(root=DistillabError):
    """All kinds of errors that there are."""
    return [root, *(kind for child in root.__subclasses__() for kind in kinds(child))]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_arrives_as_it_was(kind):
    more = {"signal_number": 15} if issubclass(kind, Interrupted) else {}
    error = kind("what", where="here", hint="do that", **more)
    error.add_note("seen on the way")
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is kind
    assert str(found) == str(error) == "what\n  where: here\n  try:   do that"
    assert found.args == error.args
    assert vars(found) == vars(error)
    assert found.exit_code == error.exit_code


def test_what_it_holds_besides_arrives_as_well():
    error = ConfigError("no", where="work")
    error.hint = "found out later"
    assert pickle.loads(pickle.dumps(error)).hint == "found out later"


@pytest.mark.parametrize(
    ("words", "line"),
    [(["a"], "a"), (["a", "b", "c"], "a; b; c"), (["a", "b", "c", "d", "e"], "a; b; c (and 2 more)")],
)
def test_of_many_differences_three_are_told(words, line):
    assert few_of(words) == line
