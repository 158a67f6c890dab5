import numpy as np
import pytest
import torch

from distillab.data.batches import EvaluationBatches, TrainingBatches, on_device
from distillab.data.config import AugmentConfig
from distillab.errors import ConfigError, DataError

CPU = torch.device("cpu")
EVERYTHING = AugmentConfig(crop_padding=1, horizontal_flip=True, cutout=2, mixup=0.4, cutmix=1.0)


def images_and_labels(number=50, side=6, classes=5):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (number, side, side, 3), dtype=np.uint8)
    return images, np.arange(number) % classes


def training(indices=None, *, number=50, **changes):
    images, labels = images_and_labels(number)
    settings = {
        "batch_size": 8,
        "num_classes": 5,
        "augment": AugmentConfig(),
        "label_smoothing": 0.0,
        "seed": 0,
        "device": CPU,
        "image_size": 6,
    }
    return TrainingBatches(images, labels, indices, **{**settings, **changes})


def same(one, other):
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and torch.equal(one.indices, other.indices)
        and one.view == other.view
    )


def test_an_epoch_shows_each_image_once_and_drops_the_incomplete_batch():
    batches = training()
    assert (batches.num_samples, batches.steps_per_epoch) == (50, 6)
    epoch = list(batches.epoch(0))
    shown = torch.cat([batch.indices for batch in epoch]).tolist()
    assert [len(batch.images) for batch in epoch] == [8] * 6
    assert len(set(shown)) == 48
    assert set(shown) <= set(range(50))


def test_batches_hold_the_images_and_labels_that_their_indices_name():
    rows = np.array([3, 7, 40, 41, 12, 9, 30, 2, 1, 20])
    images, labels = images_and_labels()
    batches = training(rows, batch_size=5)
    for batch in batches.epoch(4):
        chosen = rows[batch.indices.numpy()]
        assert torch.equal(batch.images, torch.from_numpy(images[chosen]).permute(0, 3, 1, 2) / 255.0)
        assert batch.labels.tolist() == labels[chosen].tolist()
        assert batch.labels.dtype == torch.int64
        assert batch.view == 4


def test_orders_differ_between_epochs_and_seeds_and_repeat_otherwise():
    def order(seed, epoch):
        return torch.cat([batch.indices for batch in training(seed=seed).epoch(epoch)]).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_any_batch_can_be_made_again_and_an_epoch_resumed():
    batches = training(augment=EVERYTHING, label_smoothing=0.1)
    epoch = list(batches.epoch(3))
    resumed = list(training(augment=EVERYTHING, label_smoothing=0.1).epoch(3, start_step=4))
    assert all(same(one, other) for one, other in zip(epoch[4:], resumed, strict=True))
    assert same(batches.replay(3, 2), epoch[2])
    with pytest.raises(IndexError):
        batches.replay(3, 6)


@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(cutout=2), EVERYTHING])
def test_a_batch_is_made_of_its_positions_and_a_view_that_may_be_a_tensor(augment):
    batches = training(augment=augment, label_smoothing=0.1)
    raws = list(batches.raw(3))
    assert [[part.shape for part in raw] for raw in raws] == [[(8,)]] * 6
    view = torch.tensor(3)
    for raw, batch in zip(raws, batches.epoch(3), strict=True):
        made = batches.make(raw, view)
        assert made.view is view
        assert torch.equal(made.images, batch.images)
        assert torch.equal(made.labels, batch.labels)
        assert torch.equal(made.indices, batch.indices)


@pytest.mark.parametrize("seen_from_step", [0, 2, 6])
def test_steps_and_what_they_leave_out_are_the_whole_set_once_in_one_view(seen_from_step):
    batches = training(augment=EVERYTHING)
    seen = list(batches.epoch(5, start_step=seen_from_step))
    left_out = list(batches.left_out(5, seen_from_step=seen_from_step))
    assert len(seen) == 6 - seen_from_step
    assert [len(batch.images) for batch in left_out] == [8] * seen_from_step + [2]
    assert {batch.view for batch in left_out} == {5}
    shown = torch.cat([batch.indices for batch in (*seen, *left_out)])
    assert sorted(shown.tolist()) == list(range(50))
    assert torch.equal(left_out[0].images, batches.replay(5, 0).images) or not seen_from_step


def test_a_set_of_whole_batches_leaves_nothing_out():
    assert list(training(number=48).left_out(0)) == []


def test_views_come_round_again_in_another_order():
    batches = training(augment=EVERYTHING, views=3)
    assert [batches.view_of(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert training().view_of(7) == 7

    def by_image(epoch):
        parts = [*batches.epoch(epoch), *batches.left_out(epoch)]
        order = torch.cat([part.indices for part in parts])
        return order, torch.cat([part.images for part in parts])[order.argsort()]

    (order, images), (again_order, again), (_, other) = (by_image(epoch) for epoch in (1, 4, 2))
    assert torch.equal(images, again)
    assert not torch.equal(order, again_order)
    assert not torch.equal(images, other)
    assert {batch.view for batch in batches.epoch(4)} == {1}


def test_fewer_views_do_not_change_the_first_ones():
    few, many = training(augment=EVERYTHING, views=2), training(augment=EVERYTHING)
    for epoch in (0, 1):
        assert all(same(one, other) for one, other in zip(few.epoch(epoch), many.epoch(epoch), strict=True))


def test_a_set_smaller_than_a_batch_is_one_batch():
    batches = training(number=5)
    (batch,) = batches.epoch(0)
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 3, 4]


def test_smoothed_labels_keep_their_sum():
    smooth = next(training(label_smoothing=0.2).epoch(0))
    plain = next(training().epoch(0))
    # 0.8 + 0.2 / 5 for the right class, 0.2 / 5 for the others.
    expected = torch.full((8, 5), 0.04)
    expected[torch.arange(8), plain.labels] = 0.84
    assert torch.allclose(smooth.labels, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_are_probabilities_of_two_classes(smoothing):
    batches = training(augment=AugmentConfig(mixup=1.0), label_smoothing=smoothing)
    labels = torch.cat([batch.labels for batch in batches.epoch(0)])
    assert labels.shape == (48, 5)
    assert torch.allclose(labels.sum(1), torch.ones(48))
    floor = smoothing / 5
    assert ((labels > floor + 1e-6).sum(1) <= 2).all()
    assert ((labels > floor + 1e-6).sum(1) == 2).any()


def test_mixing_never_uses_an_image_that_is_held_out():
    images, labels = images_and_labels()
    images[:25], images[25:] = 0, 255
    settings = {"batch_size": 25, "num_classes": 5, "label_smoothing": 0.0, "seed": 0, "device": CPU}
    batches = TrainingBatches(
        images, labels, np.arange(25), augment=AugmentConfig(cutmix=1.0), image_size=6, **settings
    )
    assert all(not batch.images.any() for epoch in range(5) for batch in batches.epoch(epoch))


def test_evaluation_goes_through_all_images_in_order_as_often_as_wanted():
    images, labels = images_and_labels()
    rows = np.array([4, 2, 30, 31, 7])
    batches = EvaluationBatches(images, labels, rows, batch_size=2, device=CPU, image_size=6)
    assert (batches.num_samples, len(batches)) == (5, 3)
    for _ in range(2):
        parts = list(batches)
        assert [len(part.images) for part in parts] == [2, 2, 1]
        expected = torch.from_numpy(images[rows]).permute(0, 3, 1, 2) / 255.0
        assert torch.equal(torch.cat([part.images for part in parts]), expected)
        assert torch.cat([part.labels for part in parts]).tolist() == labels[rows].tolist()
        assert torch.cat([part.indices for part in parts]).tolist() == [0, 1, 2, 3, 4]


def test_evaluation_batches_can_be_made_all_of_one_size_with_the_last_image_repeated():
    images, labels = images_and_labels()
    rows = np.array([4, 2, 30, 31, 7])
    batches = EvaluationBatches(images, labels, rows, batch_size=2, device=CPU, image_size=6)
    raws = list(batches.raw())
    assert [count for _, count in raws] == [2, 2, 1]
    made = [batches.make(raw) for raw, _ in raws]
    assert [batch.images.shape for batch in made] == [(2, 3, 6, 6)] * 3
    assert [batch.indices.tolist() for batch in made] == [[0, 1], [2, 3], [4, 4]]
    assert torch.equal(made[2].images[1], made[2].images[0])
    for batch, exact, (_, count) in zip(made, batches, raws, strict=True):
        assert torch.equal(batch.images[:count], exact.images)
        assert torch.equal(batch.labels[:count], exact.labels)


def test_without_a_size_evaluation_takes_large_batches_of_nearly_one_size():
    images, labels = images_and_labels(number=100, side=128)
    batches = EvaluationBatches(images, labels, device=CPU, image_size=128)
    assert (batches.batch_size, [len(batch.images) for batch in batches]) == (50, [50, 50])
    few = EvaluationBatches(images[:7], labels[:7], device=CPU, image_size=128)
    assert [len(batch.images) for batch in few] == [7]


def test_images_of_another_size_are_resized_for_training_and_evaluation_alike():
    images, labels = images_and_labels(number=8)
    batch = next(training(number=8, image_size=4).epoch(0))
    (whole,) = EvaluationBatches(images, labels, batch_size=8, device=CPU, image_size=4)
    assert batch.images.shape == (8, 3, 4, 4)
    assert torch.allclose(batch.images, whole.images[batch.indices], atol=1e-6)


def test_a_cpu_shares_the_memory_of_arrays_even_of_read_only_ones(tmp_path):
    array = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    array.setflags(write=False)
    assert on_device(array, CPU).data_ptr() == array.ctypes.data
    np.save(tmp_path / "images.npy", array)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    tensor = on_device(mapped, CPU)
    assert tensor.data_ptr() == mapped.ctypes.data
    assert on_device(tensor, CPU).data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"augment": AugmentConfig(crop_padding=6)}, "augment.crop_padding"),
        ({"augment": AugmentConfig(cutout=6)}, "augment.cutout"),
        ({"batch_size": 0}, "training.batch_size"),
        ({"views": 0}, "views"),
    ],
)
def test_settings_that_do_not_fit_the_images_are_refused(changes, field):
    with pytest.raises(ConfigError) as caught:
        training(**changes)
    assert caught.value.where == field


def test_no_images_is_an_error():
    with pytest.raises(DataError, match="no images"):
        training(np.array([], dtype=np.int64))


@pytest.mark.gpu
@pytest.mark.parametrize("augment", [AugmentConfig(), EVERYTHING])
def test_a_graph_makes_the_batches_of_any_view(augment):
    batches = training(augment=augment, label_smoothing=0.1, device=torch.device("cuda"))
    (positions,) = (part.clone() for part in next(batches.raw(0)))
    view = torch.zeros((), dtype=torch.int64, device="cuda")
    batches.make((positions,), view)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = batches.make((positions,), view)
    for epoch in (0, 4):
        view.fill_(epoch)
        for (raw,), batch in zip(batches.raw(epoch), batches.epoch(epoch), strict=True):
            positions.copy_(raw)
            graph.replay()
            assert torch.equal(made.images, batch.images)
            assert torch.equal(made.labels, batch.labels)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_batches_and_nothing_waits_for_it():
    here = training(augment=EVERYTHING, label_smoothing=0.1)
    there = training(augment=EVERYTHING, label_smoothing=0.1, device=torch.device("cuda"))
    list(there.epoch(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(there.epoch(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(here.epoch(1), batches, strict=True):
        assert torch.equal(one.indices, other.indices.cpu())
        assert torch.allclose(one.images, other.images.cpu(), atol=1e-6)
        assert torch.allclose(one.labels, other.labels.cpu(), atol=1e-6)
