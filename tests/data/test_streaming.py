import threading
import time

import numpy as np
import pytest
import torch

from distillab.data.batches import EvaluationBatches, TrainingBatches
from distillab.data.config import AugmentConfig
from distillab.data.streaming import StreamedImages, fits_on_device

CPU = torch.device("cpu")
AUGMENTATIONS = {
    "none": AugmentConfig(),
    "crop": AugmentConfig(crop_padding=2),
    "flip": AugmentConfig(horizontal_flip=True),
    "cutout": AugmentConfig(cutout=3),
    "mixup": AugmentConfig(mixup=0.4),
    "cutmix": AugmentConfig(cutmix=1.0),
    "all": AugmentConfig(crop_padding=2, horizontal_flip=True, cutout=3, mixup=0.4, cutmix=1.0),
}


@pytest.fixture
def stored(tmp_path):
    """Memory-mapped images, as a store gives them, and labels."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    return np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(60) % 5


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def training(images, labels, **changes):
    settings = {
        "batch_size": 8,
        "num_classes": 5,
        "augment": AUGMENTATIONS["all"],
        "label_smoothing": 0.1,
        "seed": 0,
        "device": CPU,
        "image_size": 8,
    }
    return TrainingBatches(images, labels, np.arange(0, 60, 2), **{**settings, **changes})


def same(one, other):
    return all(
        torch.equal(getattr(one, part).cpu(), getattr(other, part).cpu()) for part in ("images", "labels", "indices")
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("image_size", [8, 6])
def test_streamed_batches_are_those_of_resident_images_to_the_last_bit(stored, name, image_size):
    images, labels = stored
    settings = {"augment": AUGMENTATIONS[name], "image_size": image_size}
    resident = training(images, labels, **settings)
    streamed = training(StreamedImages(images), labels, **settings)
    for epoch in (0, 3):
        assert all(same(one, other) for one, other in zip(resident.epoch(epoch), streamed.epoch(epoch), strict=True))
    assert same(resident.replay(2, 1), streamed.replay(2, 1))
    pairs = zip(resident.left_out(1, seen_from_step=2), streamed.left_out(1, seen_from_step=2), strict=True)
    assert all(same(one, other) for one, other in pairs)


@pytest.mark.parametrize(("name", "rows"), [("crop", 8), ("cutmix", 16)])
def test_pixels_travel_with_those_of_partners(stored, name, rows):
    images, labels = stored
    batches = training(StreamedImages(images), labels, augment=AUGMENTATIONS[name])
    for positions, pixels in batches.raw(0, start_step=1):
        assert (positions.shape, pixels.shape, pixels.dtype) == ((8,), (rows, 8, 8, 3), torch.uint8)
        assert torch.equal(pixels[:8], torch.from_numpy(images[2 * positions.numpy()]))


def test_what_raw_gives_is_not_overwritten_by_later_batches(stored):
    images, labels = stored
    batches = training(StreamedImages(images), labels)
    made = [batches.make(raw, 0) for raw in list(batches.raw(0))]
    assert all(same(one, other) for one, other in zip(made, batches.epoch(0), strict=True))


def test_evaluation_streams_the_same_batches(stored):
    images, labels = stored
    rows = np.array([4, 2, 30, 31, 7])
    resident, streamed = (
        EvaluationBatches(source, labels, rows, batch_size=2, device=CPU, image_size=6)
        for source in (images, StreamedImages(images))
    )
    for _ in range(2):
        assert all(same(one, other) for one, other in zip(resident, streamed, strict=True))
    assert [count for _, count in streamed.raw()] == [2, 2, 1]
    assert same(streamed.make(list(streamed.raw())[-1][0]), resident.make(list(resident.raw())[-1][0]))


def test_an_iterator_that_is_left_early_takes_its_threads_with_it(stored):
    images, labels = stored
    batches = training(StreamedImages(images), labels)
    before = threading.active_count()
    for _ in batches.epoch(0):
        assert threading.active_count() > before
        break
    assert threading.active_count() == before

    def step_that_fails():
        for _ in batches.raw(0):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step_that_fails()
    assert threading.active_count() == before
    iterator = iter(EvaluationBatches(StreamedImages(images), labels, batch_size=2, device=CPU, image_size=8))
    next(iterator)
    iterator.close()
    assert threading.active_count() == before


class Broken(np.ndarray):
    """Images of which only the first twenty can be read, as on a failing disk."""

    def take(self, indices, *args, **kwargs):
        if max(indices) >= 20:
            raise OSError("the disk is gone")
        return super().take(indices, *args, **kwargs)


def test_what_goes_wrong_in_a_thread_reaches_the_caller_in_its_turn(stored):
    images, labels = stored
    source = StreamedImages(np.array(images).view(Broken))
    batches = iter(EvaluationBatches(source, labels, batch_size=8, device=CPU, image_size=8))
    assert [len(next(batches).images) for _ in range(2)] == [8, 8]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


class Slow(np.ndarray):
    """Images that take their time."""

    def take(self, *args, **kwargs):
        time.sleep(0.05)
        return super().take(*args, **kwargs)


def test_batches_are_gathered_while_the_one_before_is_used(stored):
    images, labels = stored
    batches = EvaluationBatches(
        StreamedImages(np.array(images).view(Slow)), labels, batch_size=10, device=CPU, image_size=8
    )
    waits = []
    iterator = iter(batches)
    for _ in range(6):
        started = time.perf_counter()
        next(iterator)
        waits.append(time.perf_counter() - started)
        time.sleep(0.06)
    # The first batch alone takes 0.05 s; the others were on their way.
    assert sorted(waits)[3] < 0.04


def test_images_fit_up_to_the_limit_and_a_cpu_has_none_of_its_own():
    assert fits_on_device(1 << 50, CPU)
    assert fits_on_device(1 << 30, CPU, limit_gib=1.0)
    assert not fits_on_device((1 << 30) + 1, CPU, limit_gib=1.0)
    assert not fits_on_device(1, CPU, limit_gib=0.0)


@pytest.mark.gpu
def test_images_may_take_half_of_the_memory_that_a_gpu_has_free():
    device = torch.device("cuda")
    free, _ = torch.cuda.mem_get_info()
    assert fits_on_device(free // 4, device)
    assert not fits_on_device(free // 4, device, limit_gib=free / 8 / 2**30)
    assert not fits_on_device(free // 4 * 3, device)


@pytest.mark.gpu
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_gpu_is_sent_the_batches_that_it_makes_of_resident_images(stored, name):
    images, labels = stored
    settings = {"augment": AUGMENTATIONS[name], "device": torch.device("cuda")}
    resident, streamed = (training(source, labels, **settings) for source in (images, StreamedImages(images)))
    for epoch in range(3):
        assert all(same(one, other) for one, other in zip(resident.epoch(epoch), streamed.epoch(epoch), strict=True))


@pytest.mark.gpu
def test_pixels_on_a_gpu_stay_until_the_steps_that_read_them_are_over():
    number = 64
    images = np.repeat(np.arange(number, dtype=np.uint8), 64 * 64 * 3).reshape(number, 64, 64, 3)
    batches = EvaluationBatches(
        StreamedImages(images), np.zeros(number, np.int64), batch_size=1, device=torch.device("cuda"), image_size=64
    )
    sums = torch.zeros(number, device="cuda")
    for place, ((_, pixels), _) in enumerate(batches.raw()):
        torch.cuda._sleep(2_000_000)  # about a millisecond: copies would overtake it if they could
        sums[place] = pixels.float().mean()
    assert sums.tolist() == list(range(number))


@pytest.mark.gpu
def test_a_graph_can_be_captured_while_batches_are_on_their_way(stored):
    images, labels = stored
    batches = training(StreamedImages(images), labels, device=torch.device("cuda"))
    view = torch.full((), 2, dtype=torch.int64, device="cuda")
    static, graph, made = None, torch.cuda.CUDAGraph(), []
    for raw in batches.raw(2):
        if static is None:
            static = tuple(part.clone() for part in raw)
            batches.make(static, view)
            with torch.cuda.graph(graph):
                result = batches.make(static, view)
        for place, part in zip(static, raw, strict=True):
            place.copy_(part)
        graph.replay()
        made.append((result.images.clone(), result.labels.clone()))
    for (found, shares), batch in zip(made, batches.epoch(2), strict=True):
        assert torch.equal(found, batch.images)
        assert torch.equal(shares, batch.labels)
