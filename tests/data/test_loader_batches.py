import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from distillab.data.batches import Batch, LoaderBatches
from distillab.errors import DataError, ShapeError

CPU = torch.device("cpu")
IMAGES = torch.rand(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(10) % 3


def first(item, **settings):
    return next(LoaderBatches([item], device=CPU, **settings).epoch(0))


def test_a_dataloader_gives_batches():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    batches = LoaderBatches(loader, device=CPU)
    assert (batches.num_samples, batches.steps_per_epoch) == (10, 3)
    parts = list(batches.epoch(2))
    assert torch.equal(torch.cat([part.images for part in parts]), IMAGES)
    assert torch.equal(torch.cat([part.labels for part in parts]), LABELS)
    assert all(part.view == 2 and part.indices is None for part in parts)
    assert all(part.images.is_contiguous(memory_format=torch.channels_last) for part in parts)


def test_resuming_skips_batches():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    parts = list(LoaderBatches(loader, device=CPU).epoch(0, start_step=1))
    assert torch.equal(torch.cat([part.images for part in parts]), IMAGES[4:])


def test_batches_are_made_of_what_the_loader_gives_as_it_is():
    pixels, indices = (IMAGES * 255).to(torch.uint8), torch.arange(10, dtype=torch.int32)
    batches = LoaderBatches([(pixels, LABELS, indices)], device=CPU)
    (raw,) = batches.raw(4)
    assert all(torch.equal(one, other) for one, other in zip(raw, (pixels, LABELS, indices), strict=True))
    assert raw[0].dtype == torch.uint8
    made, (batch,) = batches.make(raw, view := torch.tensor(4)), batches.epoch(4)
    assert made.view is view
    assert torch.equal(made.images, batch.images)
    assert torch.equal(made.labels, batch.labels)
    assert torch.equal(made.indices, batch.indices)
    (raw,) = LoaderBatches([(IMAGES, LABELS)], device=CPU).raw(0)
    assert len(raw) == 2
    assert batches.make(raw, 0).indices is None


def test_a_loader_shows_as_many_views_as_epochs_and_does_not_tell_what_it_leaves_out():
    batches = LoaderBatches(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, drop_last=True), device=CPU)
    assert (batches.batch_size, batches.view_of(17)) == (4, 17)
    assert list(batches.left_out(0)) == []
    assert LoaderBatches([(IMAGES, LABELS)], device=CPU).batch_size is None


def test_it_can_be_evaluated_with():
    batches = LoaderBatches([(IMAGES, LABELS)], device=CPU)
    assert batches.num_samples is None
    assert len(list(batches)) == len(list(batches)) == len(batches) == 1


def test_bytes_are_divided_by_255():
    pixels = (IMAGES * 255).to(torch.uint8)
    assert torch.equal(first((pixels, LABELS)).images, pixels / 255.0)


def test_indices_and_ready_batches_pass_through():
    indices = torch.arange(10, dtype=torch.int32)
    assert first((IMAGES, LABELS, indices)).indices.dtype == torch.int64
    batch = first(Batch(IMAGES, LABELS, indices, 7))
    assert torch.equal(batch.indices, indices.long())


def test_other_number_types_become_float32_and_int64():
    batch = first([IMAGES.double(), LABELS.int()])
    assert (batch.images.dtype, batch.labels.dtype) == (torch.float32, torch.int64)
    soft = torch.full((10, 3), 1 / 3, dtype=torch.float64)
    assert first((IMAGES, soft)).labels.dtype == torch.float32


def test_samplers_are_told_the_epoch():
    data = TensorDataset(IMAGES, LABELS)
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True)
    batches = LoaderBatches(DataLoader(data, batch_size=10, sampler=sampler), device=CPU)
    orders = [next(batches.epoch(epoch)).labels.tolist() for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize(
    ("item", "kind", "words"),
    [
        ((IMAGES.permute(0, 2, 3, 1), LABELS), ShapeError, "permute"),
        ((IMAGES[:, :1], LABELS), ShapeError, "expand"),
        ((IMAGES[0], LABELS), ShapeError, r"\[N, 3, H, W\]"),
        ((IMAGES * 2 - 1, LABELS), DataError, "normalised"),
        ((IMAGES * float("nan"), LABELS), DataError, "nan"),
        ((IMAGES.long(), LABELS), DataError, "uint8"),
        ((IMAGES.numpy(), LABELS), DataError, "ndarray"),
        ((IMAGES, LABELS[:4]), ShapeError, "labels"),
        ((IMAGES, LABELS.float()), ShapeError, "probabilities"),
        ((IMAGES, LABELS - 1), DataError, "start at 0"),
        ((IMAGES, LABELS.tolist()), DataError, "list"),
        ((IMAGES, LABELS, LABELS[:3]), ShapeError, "indices"),
        ((IMAGES, LABELS, LABELS.float()), DataError, "whole numbers"),
        ((IMAGES,), DataError, "tuple of 1"),
        ({"images": IMAGES}, DataError, "dict"),
    ],
)
def test_what_does_not_work_is_named_at_the_first_batch(item, kind, words):
    with pytest.raises(kind, match=words):
        first(item)


def test_a_loader_without_a_length_or_batches_is_refused():
    with pytest.raises(DataError, match="length"):
        LoaderBatches(iter([(IMAGES, LABELS)]), device=CPU)
    with pytest.raises(DataError, match="no batches"):
        LoaderBatches([], device=CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_order_without_a_generator_is_a_function_of_seed_and_epoch(workers):
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3, shuffle=True, num_workers=workers)

    def order(seed, epoch, callers_seed):
        torch.manual_seed(callers_seed)
        before = torch.get_rng_state()
        parts = [batch.images for batch in LoaderBatches(loader, device=CPU, seed=seed).epoch(epoch)]
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat(parts)

    reference = order(0, 1, 5)
    assert torch.equal(order(0, 1, 6), reference)
    assert not torch.equal(order(0, 2, 5), reference)
    assert not torch.equal(order(1, 1, 5), reference)


def test_what_transforms_draw_does_not_hang_on_what_the_caller_draws_between_batches():
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(3, 4, 4), index % 2

    batches = LoaderBatches(DataLoader(Noise(), batch_size=2), device=CPU)
    first_pass = [batch.images for batch in batches.epoch(0)]
    second_pass = [(batch.images, torch.rand(3))[0] for batch in batches.epoch(0)]
    assert all(torch.equal(a, b) for a, b in zip(first_pass, second_pass, strict=True))
    assert not torch.equal(first_pass[0], first_pass[1])


def test_labels_outside_the_classes_are_named_in_later_batches_too():
    batches = LoaderBatches([(IMAGES, LABELS), (IMAGES, LABELS + 1)], device=CPU, num_classes=3)
    with pytest.raises(DataError, match="the largest label is 3, the models know 0 to 2"):
        list(batches.epoch(0))
    with pytest.raises(ShapeError, match=r"\[10, 4\] for 3 classes"):
        first((IMAGES, torch.full((10, 4), 0.25)), num_classes=3)
    assert first((IMAGES, torch.full((10, 3), 1 / 3)), num_classes=3).labels.shape == (10, 3)
