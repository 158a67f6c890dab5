"""A teacher whose logits are cached says what the live one says, and is run once a view."""

import pytest
import torch

import tiny
from distillab.data.batch import Batch
from distillab.data.batches import TrainingBatches
from distillab.data.config import AugmentConfig
from distillab.errors import ConfigError, DataError
from distillab.guidance import cached as cached_module
from distillab.guidance.cache import CacheKey, LogitsCache, teacher_sha256
from distillab.guidance.cached import CachedTeacher, with_cache
from distillab.guidance.live import LiveTeacher
from distillab.models.catalog import build_model
from distillab.models.weight_files import write_safetensors
from distillab.runtime.capture import Capture
from distillab.runtime.device import Compute

CPU = Compute(torch.device("cpu"), None)
PLENTY = 2**30
IMAGES = 72
BATCH = 16  # 4 steps, and 8 images are left out
AUGMENTATIONS = {
    "none": AugmentConfig(),
    "one image": AugmentConfig(crop_padding=2, horizontal_flip=True, cutout=4),
    "mixup": AugmentConfig(crop_padding=2, mixup=0.4),
    "cutmix": AugmentConfig(horizontal_flip=True, cutmix=1.0),
    "mixup or cutmix": AugmentConfig(mixup=0.4, cutmix=1.0),
}
CROPPED = AugmentConfig(crop_padding=2)


class CountingTeacher(LiveTeacher):
    """A live teacher that counts the images it is asked about."""

    asked = 0

    def __call__(self, batch):
        self.asked += len(batch.images)
        return super().__call__(batch)


def live_teacher(compute=CPU, **settings):
    """A teacher that tells images apart, the same every time."""
    torch.manual_seed(0)
    model = build_model("tiny:build_wide", 3, image_size=tiny.SIZE, mean=(0.3,) * 3, std=(0.2,) * 3)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "running_var" in name:
                buffer.mul_(0.1 * (1 + torch.rand_like(buffer)))
    model.to(compute.device, memory_format=torch.channels_last)
    return CountingTeacher(model, compute=compute, **settings)


def batches(augment=CROPPED, *, seed=0, batch_size=BATCH, views=None, device=CPU.device):
    train = tiny.dataset().train
    return TrainingBatches(
        train.images,
        train.labels,
        None,
        batch_size=batch_size,
        num_classes=3,
        augment=augment,
        label_smoothing=0.1,
        seed=seed,
        device=device,
        image_size=tiny.SIZE,
        views=views,
    )


def cached_teacher(folder=None, *, augment=CROPPED, seed=0, compute=CPU, observer=None, cache=None):
    live = live_teacher(compute)
    key = CacheKey(
        teacher=teacher_sha256(live.model),
        data="tiny",
        images="train",
        num_samples=IMAGES,
        num_classes=3,
        image_size=tiny.SIZE,
        compute=compute,
        augment=augment,
        seed=seed,
    )
    cache = cache or LogitsCache(folder, limit_bytes=PLENTY, observer=observer or (lambda event: None))
    return CachedTeacher(live, cache, key)


def run_epoch(teacher, source, epoch):
    """What a loop does; gives the batches and the answers."""
    teacher.begin_epoch(epoch, source)
    told = [(batch, teacher(batch).logits) for batch in source.epoch(epoch)]
    teacher.end_epoch(source.left_out(epoch))
    return told


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_cached_is_live_to_the_last_bit_for_the_batches_that_filled_the_cache(tmp_path, name):
    augment, source = AUGMENTATIONS[name], batches(AUGMENTATIONS[name])
    run_epoch(cached_teacher(tmp_path, augment=augment), source, 0)
    teacher, live = cached_teacher(tmp_path, augment=augment), live_teacher()
    told = run_epoch(teacher, source, 0)
    assert len(told) == 4
    assert teacher.live.asked == 0
    assert all(torch.equal(logits, live(batch).logits) for batch, logits in told)
    assert len(torch.cat([logits for _, logits in told]).unique(dim=0)) > 8  # it does not say the same of everything


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_cached_is_live_within_a_millionth_part_in_batches_of_another_composition(tmp_path, name):
    augment = AUGMENTATIONS[name]
    run_epoch(cached_teacher(tmp_path, augment=augment), batches(augment), 0)
    teacher, live = cached_teacher(tmp_path, augment=augment), live_teacher()
    told = run_epoch(teacher, batches(augment, batch_size=IMAGES), 0)
    assert teacher.live.asked == 0
    for batch, logits in told:
        torch.testing.assert_close(logits, live(batch).logits, rtol=1e-6, atol=1e-6)


def test_while_the_cache_is_filled_the_live_teacher_answers():
    teacher, live = cached_teacher(), live_teacher()
    assert all(torch.equal(logits, live(batch).logits) for batch, logits in run_epoch(teacher, batches(), 0))


def test_logits_are_kept_in_the_type_that_the_teacher_gives(tmp_path):
    compute = Compute(torch.device("cpu"), torch.bfloat16)
    first = run_epoch(cached_teacher(tmp_path, compute=compute), batches(), 0)
    teacher = cached_teacher(tmp_path, compute=compute)
    again = run_epoch(teacher, batches(), 0)
    assert teacher.live.asked == 0
    for (_, one), (_, other) in zip(first, again, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert torch.equal(one, other)


def test_a_later_run_never_asks_the_teacher(tmp_path):
    first = cached_teacher(tmp_path)
    for epoch in range(3):
        run_epoch(first, batches(), epoch)
    assert first.live.asked == 3 * IMAGES
    second = cached_teacher(tmp_path)
    for epoch in range(3):
        run_epoch(second, batches(), epoch)
    assert second.live.asked == 0


def test_runs_of_one_process_share_what_is_in_memory():
    cache = LogitsCache(None, limit_bytes=PLENTY)
    first, second = cached_teacher(cache=cache), cached_teacher(cache=cache)
    one, other = run_epoch(first, batches(), 0), run_epoch(second, batches(), 0)
    assert (first.live.asked, second.live.asked) == (IMAGES, 0)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one, other, strict=True))


def test_two_views_are_asked_for_once_each_however_many_epochs_there_are():
    teacher, live, source = cached_teacher(), live_teacher(), batches(views=2)
    phases = []
    for epoch in range(4):
        for batch, logits in run_epoch(teacher, source, epoch):
            torch.testing.assert_close(logits, live(batch).logits, rtol=1e-6, atol=1e-6)
        phases.append(teacher.phase)
    assert phases == ["filling", "filling", "reading", "reading"]
    assert teacher.live.asked == 2 * IMAGES


def test_without_augmentation_one_epoch_is_enough_for_all_epochs_and_seeds(tmp_path):
    plain = AugmentConfig()
    teacher = cached_teacher(tmp_path, augment=plain)
    for epoch in range(3):
        run_epoch(teacher, batches(plain), epoch)
    assert teacher.live.asked == IMAGES
    assert len(list(tmp_path.rglob("view-*"))) == 1
    other, live = cached_teacher(tmp_path, augment=plain, seed=1), live_teacher()
    for batch, logits in run_epoch(other, batches(plain, seed=1), 5):
        torch.testing.assert_close(logits, live(batch).logits, rtol=1e-6, atol=1e-6)
    assert other.live.asked == 0


def test_a_view_that_is_in_the_table_needs_no_cache(monkeypatch):
    plain = AugmentConfig()
    teacher = cached_teacher(augment=plain)
    run_epoch(teacher, batches(plain), 0)
    monkeypatch.setattr(LogitsCache, "find", lambda *_args, **_kwargs: None)
    run_epoch(teacher, batches(plain), 1)
    assert teacher.live.asked == IMAGES


@pytest.mark.parametrize("change", [{"seed": 1}, {"augment": AugmentConfig(crop_padding=1)}], ids=["seed", "augment"])
def test_other_images_are_asked_for(tmp_path, change):
    run_epoch(cached_teacher(tmp_path), batches(), 0)
    teacher = cached_teacher(tmp_path, **change)
    run_epoch(teacher, batches(**change), 0)
    assert teacher.live.asked == IMAGES


def test_an_epoch_that_was_cut_short_leaves_nothing(tmp_path):
    teacher, source = cached_teacher(tmp_path), batches()
    run_epoch(teacher, source, 0)
    teacher.begin_epoch(1, source)
    teacher(next(source.epoch(1)))  # and then something went wrong
    assert [path.name for path in tmp_path.rglob("view-*")] == ["view-0.safetensors"]
    live = live_teacher()
    for epoch in (0, 1):
        for batch, logits in run_epoch(teacher, source, epoch):
            assert torch.equal(logits, live(batch).logits)
    assert teacher.live.asked == IMAGES + BATCH + IMAGES


def test_an_epoch_that_was_resumed_is_completed():
    teacher, source = cached_teacher(), batches()
    teacher.begin_epoch(0, source)
    for batch in source.epoch(0, start_step=3):
        teacher(batch)
    teacher.end_epoch(source.left_out(0, seen_from_step=3))
    assert teacher.live.asked == IMAGES
    live = live_teacher()
    for batch, logits in run_epoch(teacher, source, 0):
        torch.testing.assert_close(logits, live(batch).logits, rtol=1e-6, atol=1e-6)
    assert teacher.live.asked == IMAGES


def test_a_table_with_holes_is_refused(tmp_path):
    teacher, source = cached_teacher(tmp_path), batches()
    run_epoch(teacher, source, 0)
    teacher.begin_epoch(1, source)
    for batch in source.epoch(1):
        teacher(batch)
    with pytest.raises(DataError, match="64 of 72 images"):
        teacher.end_epoch([])
    assert [path.name for path in tmp_path.rglob("view-*")] == ["view-0.safetensors"]


def test_no_images_are_made_of_what_was_left_out_if_nobody_asks():
    teacher, source = cached_teacher(), batches()
    run_epoch(teacher, source, 0)

    def unwanted():
        raise AssertionError
        yield

    for guidance in (teacher, live_teacher()):
        guidance.begin_epoch(0, source)
        guidance.end_epoch(unwanted())


def test_a_damaged_table_is_told_and_the_teacher_asked_again(tmp_path):
    told = []
    run_epoch(cached_teacher(tmp_path), batches(), 0)
    (path,) = tmp_path.rglob("view-0.safetensors")
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    teacher, live = cached_teacher(tmp_path, observer=told.append), live_teacher()
    assert all(torch.equal(logits, live(batch).logits) for batch, logits in run_epoch(teacher, batches(), 0))
    assert teacher.live.asked == IMAGES
    assert len(told) == 1
    again = cached_teacher(tmp_path, observer=told.append)
    run_epoch(again, batches(), 0)
    assert again.live.asked == 0
    assert len(told) == 1


def test_a_table_of_another_type_than_the_view_before_is_asked_for_again(tmp_path):
    run_epoch(cached_teacher(tmp_path), batches(), 0)
    (path,) = tmp_path.rglob("view-0.safetensors")
    teacher = cached_teacher(tmp_path)
    key = teacher._key.parts
    write_safetensors(
        path.with_name("view-1.safetensors"), {"logits": torch.zeros(IMAGES, 3).half()}, {"key": key, "view": 1}
    )
    for epoch in (0, 1):
        assert all(logits.dtype == torch.float32 for _, logits in run_epoch(teacher, batches(), epoch))
    assert teacher.live.asked == IMAGES


def test_a_recorded_step_goes_on_through_all_views_that_are_read(tmp_path):
    source = batches(views=3)
    filling = cached_teacher(tmp_path)
    for epoch in range(3):
        run_epoch(filling, source, epoch)
    teacher, live = cached_teacher(tmp_path), live_teacher()
    answers = check_recorded(teacher, live, source, epochs=range(3, 9))
    assert answers == {"reading": 6 * 4}
    assert teacher.live.asked == 0


def test_a_recorded_step_fills_the_table_and_another_one_reads_it():
    teacher, live = cached_teacher(), live_teacher()
    answers = check_recorded(teacher, live, batches(views=2), epochs=range(4))
    assert answers == {"filling": 2 * 4, "reading": 2 * 4}


def check_recorded(teacher, live, source, *, epochs, tolerance=1e-6):
    """Record a step a phase, replay it over epochs and compare with the live teacher; counts answers by phase.

    A graph holds the table's address, which no stand-in of a graph would notice: it is looked at.
    """
    device = teacher.live.compute.device
    view, recorded, answers = torch.zeros((), dtype=torch.int64, device=device), {}, {}
    place = tuple(tensor.clone() for tensor in next(source.raw(0)))
    addresses = set()
    for epoch in epochs:
        teacher.begin_epoch(epoch, source)
        view.fill_(source.view_of(epoch))
        for raw in source.raw(epoch):
            for static, tensor in zip(place, raw, strict=True):
                static.copy_(tensor)
            if teacher.phase not in recorded:
                recorded[teacher.phase] = Capture(lambda: teacher(source.make(place, view)), device=device)
            logits = recorded[teacher.phase]().logits
            wanted = live(source.make(raw, source.view_of(epoch))).logits
            torch.testing.assert_close(logits, wanted, rtol=tolerance, atol=tolerance)
            answers[teacher.phase] = answers.get(teacher.phase, 0) + 1
        teacher.end_epoch(source.left_out(epoch))
        addresses.add(teacher._table.data_ptr())
    assert len(addresses) == 1
    return answers


def test_constants_come_out_and_the_teacher_stays_as_it_is():
    teacher, source = cached_teacher(), batches()
    before = {name: tensor.clone() for name, tensor in teacher.live.model.state_dict().items()}
    for _ in range(2):
        assert not any(logits.requires_grad for _, logits in run_epoch(teacher, source, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.live.model.state_dict().items())


def test_features_are_not_cached():
    live = live_teacher(layers=["first"])
    with pytest.raises(ConfigError, match="features"):
        CachedTeacher(live, LogitsCache(None, limit_bytes=PLENTY), cached_teacher()._key)


def test_batches_that_do_not_tell_their_images_are_refused():
    teacher = cached_teacher()
    teacher.begin_epoch(0, batches())
    with pytest.raises(DataError, match="do not tell which images"):
        teacher(Batch(torch.rand(2, 3, tiny.SIZE, tiny.SIZE), torch.zeros(2, dtype=torch.int64), None, 0))


def test_a_table_that_is_too_large_for_the_device_is_not_kept_and_that_is_told(monkeypatch):
    known, told = cached_teacher(), []
    cache = LogitsCache(None, limit_bytes=PLENTY, observer=told.append)
    assert isinstance(with_cache(known.live, cache, known._key), CachedTeacher)
    assert not told
    monkeypatch.setattr(cached_module, "_memory_bytes", lambda device: 4 * (IMAGES * 3 * 4) - 1)
    assert with_cache(known.live, cache, known._key) is known.live
    assert "72 x 3" in told[0].text


def test_teachers_with_equal_keys_are_one_source():
    live = live_teacher()
    assert cached_teacher().source == cached_teacher().source
    assert cached_teacher().source != cached_teacher(seed=1).source
    assert live.source == LiveTeacher(live.model, layers=["first"], compute=CPU).source
    assert live.source != live_teacher().source


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 5e-3), (torch.bfloat16, 5e-2)], ids=["float32", "bfloat16"])
def test_on_a_gpu_cached_is_live_within_a_tolerance_and_can_be_recorded(tmp_path, dtype, tolerance):
    # TF32 may round the products of float32; kernels differ between compositions and from run to run.
    compute = Compute(torch.device("cuda"), dtype)
    source = batches(AugmentConfig(crop_padding=2, mixup=0.4), views=2, device=compute.device)
    augment = AugmentConfig(crop_padding=2, mixup=0.4)
    teacher, live = cached_teacher(tmp_path, augment=augment, compute=compute), live_teacher(compute)
    answers = check_recorded(teacher, live, source, epochs=range(4), tolerance=tolerance)
    assert answers == {"filling": 2 * 4, "reading": 2 * 4}
    later = cached_teacher(tmp_path, augment=augment, compute=compute)
    assert check_recorded(later, live, source, epochs=range(4), tolerance=tolerance) == {"reading": 4 * 4}
    assert later.live.asked == 0
    assert later._table.dtype == (dtype or torch.float32)


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_while_a_view_is_read(tmp_path):
    compute = Compute(torch.device("cuda"), None)
    source = batches(views=2, device=compute.device)
    filling, teacher = (cached_teacher(tmp_path, compute=compute) for _ in range(2))
    for epoch in range(2):
        run_epoch(filling, source, epoch)
    run_epoch(teacher, source, 0)  # tables are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        for epoch in (1, 2):
            run_epoch(teacher, source, epoch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
