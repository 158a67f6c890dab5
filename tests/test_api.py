from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import distillab
import tiny
from distillab import build_model, distill, evaluate, train
from distillab.data.dataset import ImageSet
from distillab.errors import ConfigError, DataError, ShapeError
from distillab.models.classifier import NormalizedModel, get_normalization

FOR_LOADERS = {"epochs": 6, "device": "cpu", "threads": 1, "training": {"precision": "float32"}}
SETTINGS = {**FOR_LOADERS, "batch_size": 16}


def tensors(images):
    return torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255.0, torch.from_numpy(images.labels)


def loaders():
    data = tiny.dataset()
    generator = torch.Generator().manual_seed(0)
    training = DataLoader(TensorDataset(*tensors(data.train)), batch_size=16, shuffle=True, generator=generator)
    return training, DataLoader(TensorDataset(*tensors(data.test)), batch_size=16)


def shuffled_loader():
    """Draws its order from torch's global generator."""
    return DataLoader(TensorDataset(*tensors(tiny.dataset().train)), batch_size=24, shuffle=True)


def sorted_loader():
    """Its first batch holds the first class only."""
    return DataLoader(TensorDataset(*tensors(tiny.dataset().train)), batch_size=24)


def doubled(images):
    """The same images, each pixel four times."""
    return ImageSet(images.images.repeat(2, axis=1).repeat(2, axis=2), images.labels)


class Curious(nn.Module):
    """Notes the shapes of the images that it is shown."""

    def __init__(self):
        super().__init__()
        self.net = tiny.TinyNet(3)
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return self.net(images)


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
    teacher = train(tiny.TinyNet(3, width=9), training, test=test, **FOR_LOADERS)
    assert teacher.test.top1 > 0.8
    result = distill(
        teacher.model,
        tiny.TinyNet(3),
        training,
        test=test,
        method="multi",
        assistant=tiny.TinyNet(3, width=7),
        options={"hint_layer": "second", "guided_layer": "second"},
        **{**FOR_LOADERS, "epochs": 8},
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
        ({"temperature": 2.0}, "temperature is a setting of the method"),
        ({"epoch": 3}, "unknown setting 'epoch'"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "no effect"),
        ({"method": "kdd"}, "unknown method 'kdd'"),
    ],
)
def test_wrong_use_is_told_by_name(more, message):
    with pytest.raises(ConfigError, match=message):
        distill(tiny.TinyNet(3), tiny.TinyNet(3), tiny.dataset(), **{**SETTINGS, **more})


def test_a_name_is_no_model():
    for call in (lambda: train("cnn16", tiny.dataset()), lambda: distill(tiny.TinyNet(3), "cnn16", tiny.dataset())):
        with pytest.raises(ConfigError, match=r"a torch\.nn\.Module is needed, not 'cnn16'"):
            call()


def test_what_is_shown_of_a_result_is_no_flood():
    assert len(repr(tiny.dataset())) < 500
    result = train(tiny.TinyNet(3), tiny.dataset(), **SETTINGS)
    assert len(repr(result)) < 1000
    assert all(len(repr(stage)) < 2000 for stage in result.stages)


@pytest.mark.parametrize("teacher", [tiny.TinyNet(3), NormalizedModel(tiny.TinyNet(3), 3, image_size=tiny.SIZE)])
def test_classes_are_those_of_the_models_and_not_of_the_first_batch(teacher):
    result = distill(teacher, tiny.TinyNet(3), sorted_loader(), **{**FOR_LOADERS, "epochs": 1})
    assert [stage.epochs for stage in result.stages] == [1]


def test_models_of_different_classes_are_named():
    with pytest.raises(ShapeError, match="'teacher': 5, 'student': 3"):
        distill(tiny.TinyNet(5), tiny.TinyNet(3), sorted_loader(), **FOR_LOADERS)


def test_labels_that_the_model_does_not_know_are_named():
    with pytest.raises(DataError, match="the largest label is 2, the models know 0 to 1"):
        train(tiny.TinyNet(2), sorted_loader(), **FOR_LOADERS)
    with pytest.raises(DataError, match="labels run from 0 to 2, the model knows 0 to 1"):
        evaluate(tiny.TinyNet(2), tiny.dataset(), device="cpu")


def test_evaluation_reads_the_test_images_at_the_size_of_the_models():
    data = tiny.dataset()
    enlarged = replace(data, train=doubled(data.train), test=doubled(data.test))
    model = Curious()
    evaluate(NormalizedModel(model, 3, image_size=tiny.SIZE), enlarged, device="cpu")
    evaluate(model, enlarged, device="cpu")
    assert model.seen == [(30, 3, tiny.SIZE, tiny.SIZE), (30, 3, 2 * tiny.SIZE, 2 * tiny.SIZE)]
    with pytest.raises(ShapeError, match="different sizes"):
        evaluate(
            build_model("tiny:build", 3, image_size=tiny.SIZE), data, teacher=build_model("cnn16", 3), device="cpu"
        )


def test_evaluation_takes_so_many_images_at_once():
    model = Curious()
    evaluate(model, tiny.dataset(), batch_size=7, device="cpu")
    assert [shape[0] for shape in model.seen] == [7, 7, 7, 7, 2]
    with pytest.raises(ConfigError, match="batch_size has no effect"):
        evaluate(model, sorted_loader(), batch_size=7, device="cpu")


def test_a_shuffling_loader_shows_model_and_teacher_the_same_images():
    model = tiny.TinyNet(3)
    found = evaluate(model, shuffled_loader(), teacher=model, device="cpu")
    assert found.teacher_agreement == 1.0
    own = DataLoader(shuffled_loader().dataset, batch_size=24, shuffle=True, generator=torch.Generator())
    with pytest.raises(DataError, match="another order"):
        evaluate(model, own, teacher=model, device="cpu")


def test_a_loaders_order_hangs_on_the_seed_and_not_on_the_callers_generator():
    def trained(callers_seed, seed=0):
        torch.manual_seed(0)
        model = tiny.TinyNet(3)
        torch.manual_seed(callers_seed)
        before = torch.get_rng_state()
        train(model, shuffled_loader(), test=shuffled_loader(), seed=seed, **{**FOR_LOADERS, "epochs": 2})
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    reference = trained(1)
    assert torch.equal(trained(2), reference)
    assert not torch.equal(trained(1, seed=1), reference)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # on one core
def test_weights_do_not_hang_on_the_number_of_a_loaders_workers():
    def trained(workers):
        torch.manual_seed(0)
        model = tiny.TinyNet(3)
        loader = DataLoader(shuffled_loader().dataset, batch_size=24, shuffle=True, num_workers=workers)
        train(model, loader, **{**FOR_LOADERS, "epochs": 2})
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    reference = trained(0)
    assert torch.equal(trained(1), reference)
    assert torch.equal(trained(2), reference)


def test_the_teachers_modes_are_put_back():
    teacher = tiny.TinyNet(3).train()
    teacher.second.eval()
    before = [module.training for module in teacher.modules()]
    state = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distill(teacher, tiny.TinyNet(3), tiny.dataset(), **{**SETTINGS, "epochs": 1})
    assert [module.training for module in teacher.modules()] == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())


def test_a_frozen_model_has_nothing_to_train():
    with pytest.raises(ConfigError, match="nothing to train"):
        train(tiny.TinyNet(3).requires_grad_(False), tiny.dataset(), **SETTINGS)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("training.label_smoothing", {"training": {"label_smoothing": 0.1}}),
        ("training.batch_size", {"batch_size": 16}),
        ("augment.horizontal_flip", {"augment": {"horizontal_flip": True}}),
        ("split.seed", {"split": {"seed": 1}}),
        ("image_size", {"image_size": 32}),
        ("output", {"output": "run"}),
        ("data_dir", {"data_dir": "data"}),
        ("offline", {"offline": True}),
    ],
)
def test_settings_without_effect_on_a_loader_are_refused(field, settings):
    with pytest.raises(ConfigError, match="has no effect") as caught:
        train(tiny.TinyNet(3), sorted_loader(), **settings)
    assert caught.value.where == field


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("validation", {"validation": sorted_loader()}),
        ("test", {"test": sorted_loader()}),
        ("output", {"output": "run"}),
        ("data_dir", {"data_dir": "data"}),
        ("offline", {"offline": False}),
        ("split.test_fraction", {"split": {"test_fraction": 0.3}}),
    ],
)
def test_settings_without_effect_on_a_data_set_are_refused(field, settings):
    with pytest.raises(ConfigError, match="has no effect") as caught:
        distill(tiny.TinyNet(3), tiny.TinyNet(3), tiny.dataset(), **settings)
    assert caught.value.where == field


def test_early_stopping_of_loaders_needs_one_to_validate_with():
    patient = {**FOR_LOADERS, "epochs": 1, "training": {"precision": "float32", "early_stop_patience": 1}}
    with pytest.raises(ConfigError, match="needs validation images"):
        train(tiny.TinyNet(3), sorted_loader(), **patient)
    assert train(tiny.TinyNet(3), sorted_loader(), validation=sorted_loader(), **patient).validation is not None
