import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import distillab
import tiny
from distillab import build_model, distill, evaluate, train
from distillab.errors import ConfigError
from distillab.models.classifier import get_normalization

SETTINGS = {"epochs": 6, "batch_size": 16, "device": "cpu", "threads": 1, "training": {"precision": "float32"}}


def tensors(images):
    return torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255.0, torch.from_numpy(images.labels)


def loaders():
    data = tiny.dataset()
    generator = torch.Generator().manual_seed(0)
    training = DataLoader(TensorDataset(*tensors(data.train)), batch_size=16, shuffle=True, generator=generator)
    return training, DataLoader(TensorDataset(*tensors(data.test)), batch_size=16)


def test_every_public_name_is_there():
    for name in distillab.__all__:
        assert getattr(distillab, name) is not None
    assert set(distillab.__all__) <= set(dir(distillab))
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = distillab.distil


def test_five_lines_do_the_whole_job():
    data = tiny.dataset()
    teacher = train(build_model("tiny:build_wide", 3, image_size=tiny.SIZE), data, **SETTINGS).model
    student = build_model("tiny:build", 3, image_size=tiny.SIZE)
    result = distill(teacher, student, data, method="mbd-soft", options={"temperature": 2.0}, **SETTINGS)
    assert result.model is student
    assert result.test.top1 > 0.8
    assert result.test.teacher_agreement > 0.8
    assert get_normalization(student) == ((0.3,) * 3, (0.2,) * 3)


def test_models_and_loaders_of_ones_own():
    training, test = loaders()
    teacher = train(tiny.TinyNet(3, width=9), training, test=test, **SETTINGS)
    assert teacher.test.top1 > 0.8
    result = distill(
        teacher.model,
        tiny.TinyNet(3),
        training,
        test=test,
        method="multi",
        assistant=tiny.TinyNet(3, width=7),
        options={"hint_layer": "second", "guided_layer": "second"},
        **{**SETTINGS, "epochs": 8},
    )
    assert result.test.top1 > 0.6
    assert isinstance(result.assistant, tiny.TinyNet)
    assert [stage.method for stage in result.stages] == ["hint", "soft_target", "hint", "soft_target"]
    assert evaluate(result.model, test, device="cpu").top1 == pytest.approx(result.test.top1)


def test_nothing_is_printed_or_written(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(build_model("tiny:build", 3, image_size=tiny.SIZE), tiny.dataset(), **{**SETTINGS, "epochs": 1})
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "takd"}, "needs a model for the assistant"),
        ({"assistant": tiny.TinyNet(3)}, "has no assistant"),
        ({"options": {"temprature": 1}}, "unknown setting 'temprature'"),
        ({"epoch": 3}, "unknown setting 'epoch'"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "no effect"),
        ({"method": "kdd"}, "unknown method 'kdd'"),
    ],
)
def test_wrong_use_is_told_by_name(more, message):
    with pytest.raises(ConfigError, match=message):
        distill(tiny.TinyNet(3), tiny.TinyNet(3), tiny.dataset(), **{**SETTINGS, **more})
