import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillab.errors import ConfigError
from distillab.methods.base import Method, logits_of, method_class, method_names
from distillab.models.features import ModelOutput
from distillab.settings import Section

DOCS = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
PLANS = ("st", "fitnet", "takd", "multi", "mbd-delta", "mbd-hard", "mbd-soft")

every_method = pytest.mark.parametrize("name", method_names())


def test_every_file_beside_the_base_is_a_method():
    folder = Path(inspect.getfile(Method)).parent
    stems = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert set(method_names()) == stems
    assert stems >= {"cross_entropy", "soft_target", "hint", "merit_based"}


@every_method
def test_a_method_has_the_name_of_its_file_and_says_what_it_is(name):
    method = method_class(name)
    assert issubclass(method, Method)
    assert method.name == name
    assert len(method.summary) > 10
    assert len(method.source) > 10
    assert inspect.getdoc(method) != inspect.getdoc(Method)


@every_method
def test_every_setting_is_explained_and_has_a_default(name):
    config = method_class(name).Config
    assert issubclass(config, Section)
    assert config.__doc__
    config()
    for field, info in config.model_fields.items():
        assert info.description, f"{name}.{field} has no description"
        assert info.description.endswith("."), f"{name}.{field} is not described by a sentence"


@every_method
def test_a_method_has_a_pure_loss_that_keeps_samples_apart_on_request(name):
    module = importlib.import_module(f"distillab.methods.{name}")
    loss = getattr(module, f"{name}_loss")
    assert inspect.signature(loss).parameters["reduction"].default == "mean"
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in inspect.getdoc(loss)


@pytest.mark.parametrize("name", [*PLANS, *method_names()])
def test_the_methods_page_has_a_row_for_it(name):
    assert re.search(rf"^\| `{re.escape(name)}`", DOCS, re.MULTILINE), f"docs/methods.md has no row for {name}"


def test_the_code_on_the_methods_page_runs():
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert blocks
    model = torch.nn.Linear(4, 3)
    names = {"teacher": model, "student": model, "images": torch.rand(2, 4), "labels": torch.tensor([0, 2])}
    for block in blocks:
        exec(block, names)
    assert names["loss"].shape == ()
    assert names["losses"].shape == (2,)


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'soft_target'"):
        method_class("soft_targets")


@pytest.mark.parametrize("output", [None, ModelOutput(None)])
def test_missing_logits_are_refused_by_role(output):
    with pytest.raises(ConfigError, match="needs the teacher's logits"):
        logits_of(output, "teacher")


def test_names_are_found_without_importing_torch():
    code = "import sys, distillab.methods.base as b; print(b.method_names()); assert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "merit_based" in found.stdout
