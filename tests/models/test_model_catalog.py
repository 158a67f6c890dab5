import importlib.util
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from distillab.data.catalog import open_dataset
from distillab.errors import ConfigError, ShapeError
from distillab.evaluation.cost import count_macs, count_parameters
from distillab.models import catalog
from distillab.models.catalog import MODELS, ModelInfo, build_model
from distillab.models.classifier import Classifier, NormalizedModel


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module `user_models` as a user would write it."""
    (tmp_path / "user_models.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            answer = 42

            def small(num_classes):
                return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))

            def wrong(num_classes):
                return "no module"

            def failing(num_classes):
                raise RuntimeError("out of ideas")
            """
        )
    )
    (tmp_path / "broken_models.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_models"
    sys.modules.pop("user_models", None)


def test_records_are_read_without_importing_torch():
    code = "import sys, distillab.models.catalog as c; assert len(c.MODELS) == 6; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("name", MODELS)
def test_every_record_builds_its_model(name):
    info = MODELS[name]
    assert info.name == name
    model = build_model(name, 7).eval()
    with torch.no_grad():
        logits = model(torch.rand(1, 3, info.input_size, info.input_size))
    assert logits.shape == (1, 7)
    assert (model.spec, model.num_classes, model.image_size) == (name, 7, 32)
    assert model.hint_layer in dict(model.named_modules())


@pytest.mark.parametrize("name", MODELS)
def test_what_a_record_says_that_its_model_costs_is_what_it_costs(name):
    info = MODELS[name]
    with torch.device("meta"):  # shapes without numbers: a ResNet's are counted in no time
        model = build_model(name, 10)
        assert count_parameters(model) == info.parameters
        assert count_macs(model, info.input_size) == info.macs


def test_each_family_has_one_model_of_each_role():
    roles = sorted((info.family, info.role) for info in MODELS.values())
    assert roles == [(f, r) for f in ("normal", "resnet") for r in ("assistant", "student", "teacher")]


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'cnn16'"):
        build_model("cnn_16", 10)


@pytest.mark.parametrize("num_classes", [1, 0, -3])
def test_fewer_than_two_classes_are_refused(num_classes):
    with pytest.raises(ConfigError, match="at least 2 classes") as caught:
        build_model("cnn16", num_classes)
    assert caught.value.where == "num_classes"


def test_an_image_size_that_the_model_does_not_take_is_refused_when_it_is_built():
    with pytest.raises(ShapeError, match="32x32, not 64x64"):
        build_model("resnet98", 10, image_size=64)


def test_a_function_of_the_user_builds_a_model(user_module):
    model = build_model(f"{user_module}:small", 4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert isinstance(model, NormalizedModel)
    assert model.spec == "user_models:small"
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert list(model.published().state_dict()) == ["1.weight", "1.bias"]


def test_code_from_outside_is_not_even_imported_unless_it_is_allowed(user_module):
    with pytest.raises(ConfigError, match="--allow-code"):
        build_model(f"{user_module}:small", 4, allow_code=False)
    assert user_module not in sys.modules
    assert build_model("cnn16", 4, allow_code=False).num_classes == 4


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("user_models:smal", "did you mean 'small'"),
        ("user_models:answer", "no function 'answer'"),
        ("user_models:wrong", "returned a str"),
        ("user_models:failing", "RuntimeError: out of ideas"),
        ("not_a_module_at_all:build", "'not_a_module_at_all' cannot be imported"),
        ("user_models.py:small", "name the module, not its file: user_models:small"),
        ("broken_models:build", "a_package_that_is_not_there"),
        ("user_models:", "names no model"),
        (":small", "names no model"),
        ("torchvision:", "names no model"),
    ],
)
def test_code_that_gives_no_model_is_refused_by_name(user_module, spec, says):
    with pytest.raises(ConfigError, match=says) as caught:
        build_model(spec, 4)
    assert caught.value.where == "model"


@pytest.fixture
def beside_me(tmp_path, monkeypatch):
    """A module `beside_me` in the current folder, which is not on Python's path."""
    text = "from torch.nn import Flatten, Linear, Sequential\ndef small(num_classes):\n    {}\n"
    (tmp_path / "beside_me.py").write_text(text.format("return Sequential(Flatten(), Linear(3072, num_classes))"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "beside_me"
    sys.modules.pop("beside_me", None)


def test_a_module_in_the_current_folder_is_found(beside_me):
    assert build_model(f"{beside_me}:small", 4).num_classes == 4


def test_a_module_in_the_current_folder_takes_nobodys_place(beside_me, tmp_path, monkeypatch):
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / f"{beside_me}.py").write_text("def small(num_classes):\n    return 'installed'\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    with pytest.raises(ConfigError, match="returned a str"):
        build_model(f"{beside_me}:small", 4)


def test_models_and_data_of_ours_let_nothing_of_the_current_folder_in(beside_me, tmp_path):
    build_model("cnn16", 4)
    open_dataset("digits", data_dir=tmp_path / "data")
    with pytest.raises(ConfigError, match="--allow-code"):
        build_model(f"{beside_me}:small", 4, allow_code=False)
    assert str(tmp_path) not in sys.path


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_package_that_is_missing_is_named_with_the_command_to_install_it():
    with pytest.raises(ConfigError, match="pip install timm"):
        build_model("timm:resnet50", 10)


def test_a_record_may_say_where_the_logits_are(monkeypatch):
    class Named(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.fc = nn.Linear(3, num_classes)

        def forward(self, images):
            return {"scores": self.fc(images.mean((2, 3)))}

    record = ModelInfo(
        "named",
        "student",
        "normal",
        "returns a dict",
        parameters=12,
        macs=9,
        builder=Named,
        input_size=8,
        output=lambda found: found["scores"],
    )
    monkeypatch.setitem(catalog.MODELS, "named", record)
    model = build_model("named", 3, image_size=8)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_a_function_that_returns_a_model_of_ours_is_not_wrapped_again():
    model = build_model("distillab.models.plain_cnn:cnn16", 5)
    assert isinstance(model, Classifier)
    assert not isinstance(model, NormalizedModel)
    assert model.spec == "distillab.models.plain_cnn:cnn16"


@pytest.mark.slow
def test_torchvision_names_are_found_or_refused():
    assert build_model("torchvision:resnet18", 10)(torch.rand(2, 3, 64, 64)).shape == (2, 10)
    with pytest.raises(ConfigError, match="did you mean"):
        build_model("torchvision:resnet_18", 10)
