import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from distillab.data.augment import Augmentation, unit_images
from distillab.data.config import AugmentConfig

EVERYTHING = AugmentConfig(crop_padding=2, horizontal_flip=True, cutout=3, mixup=0.4, cutmix=1.0)


def random_images(number, side):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8))


def augmentation(image_size, *, seed=0, device="cpu", config=None, **settings):
    config = config or AugmentConfig(**settings)
    return Augmentation(config, seed=seed, image_size=image_size, device=torch.device(device))


def changed(images, rows, *, view=0, **settings):
    rows = torch.as_tensor(rows)
    return augmentation(images.shape[1], **settings)(images[rows], rows, view)


def crops_by_hand(image, padding):
    """Every (shift_y, shift_x, is_flipped) -> the crop, by padding with NumPy and slicing."""
    side = image.shape[0]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    found = {}
    for y in range(2 * padding + 1):
        for x in range(2 * padding + 1):
            crop = padded[y : y + side, x : x + side]
            found[y, x, False] = crop
            found[y, x, True] = crop[:, ::-1]
    return found


def test_without_changes_images_are_divided_by_255_and_nothing_else():
    images = random_images(3, 4)
    result = changed(images, [2, 0])
    assert torch.equal(result, images[[2, 0]].permute(0, 3, 1, 2) / 255.0)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == torch.float32


def test_each_crop_is_one_of_those_made_by_hand_and_all_of_them_come_up():
    image = random_images(1, 5)
    padding = 2
    by_hand = crops_by_hand(image[0].numpy(), padding)
    content = {crop.tobytes(): key for key, crop in by_hand.items()}
    assert len(content) == 2 * 5 * 5
    seen = set()
    for view in range(600):
        result = changed(image, [0], view=view, crop_padding=padding, horizontal_flip=True)
        pixels = (result[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        seen.add(content[pixels.tobytes()])
    assert seen == set(by_hand)


def test_a_crop_worked_by_hand():
    # One bright pixel in the middle of 3 x 3; padding 1 moves it by -1, 0 or 1 each way, never out of the image.
    image = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    image[0, 1, 1] = 255
    places = {
        tuple(int(v) for v in changed(image, [0], view=view, crop_padding=1)[0, 0].nonzero()[0]) for view in range(120)
    }
    assert places == {(y, x) for y in range(3) for x in range(3)}


def test_offsets_are_uniform_and_half_of_the_images_are_flipped():
    side, padding, number = 11, 2, 9000
    image = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    image[0, 5, 5], image[0, 5, 6] = 255, 51
    images = image.expand(number, -1, -1, -1).contiguous()
    result = changed(images, torch.arange(number), crop_padding=padding, horizontal_flip=True)[:, 0]
    bright = (result == 1.0).flatten(1).to(torch.int8).argmax(1)
    dim = (result == 0.2).flatten(1).to(torch.int8).argmax(1)
    flipped = dim < bright
    y, x = bright // side, bright % side
    place = (y - 5 + padding) * 5 + (x - 5 + padding)
    assert stats.chisquare(np.bincount(place.numpy(), minlength=25)).pvalue > 0.01
    assert stats.binomtest(int(flipped.sum()), number).pvalue > 0.01


def test_cutout_blanks_a_square_that_may_hang_over_the_border():
    images = torch.full((4000, 8, 8, 3), 255, dtype=torch.uint8)
    result = changed(images, torch.arange(4000), cutout=3)
    blank = result[:, 0] == 0
    assert torch.equal(blank, (result == 0).all(1))
    rows, columns = blank.any(2).sum(1), blank.any(1).sum(1)
    assert torch.equal(blank.sum((1, 2)), rows * columns)
    # Centres 0..7 are equally likely; a square from centre - 1 to centre + 1 keeps 2 rows at 0 and 7, else 3.
    assert set(rows.tolist()) == {2, 3}
    assert stats.binomtest(int((rows == 2).sum()), 4000, 2 / 8).pvalue > 0.01
    assert stats.binomtest(int((columns == 2).sum()), 4000, 2 / 8).pvalue > 0.01


def test_other_sizes_are_resized_as_torch_does_it():
    images = random_images(3, 12)
    result = unit_images(images, 8)
    expected = F.interpolate(images.permute(0, 3, 1, 2) / 255.0, size=(8, 8), mode="bilinear", antialias=True)
    assert torch.allclose(result, expected, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert unit_images(torch.full((1, 12, 12, 3), 255, dtype=torch.uint8), 7).max() <= 1.0


def run_mix(images, rows, pool, *, config=EVERYTHING, seed=0, view=0):
    """Mixed images, their partners' rows, and the share of their own labels."""
    changes = augmentation(images.shape[1], config=config, seed=seed, device=images.device)
    rows, pool = torch.as_tensor(rows, device=images.device), torch.as_tensor(pool, device=images.device)
    shown = changes.with_partners(rows, pool, view)
    mixed, share = changes.mix(changes(images[shown], shown, view), rows, view)
    return mixed, shown[len(rows) :], share


def test_an_image_comes_out_the_same_in_any_batch():
    images = random_images(40, 8)
    pool = torch.arange(40)
    together = run_mix(images, pool, pool)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = run_mix(images, order, pool)
    alone = run_mix(images, [17], pool)
    for whole, mixed_up, one in zip(together, shuffled, alone, strict=True):
        assert torch.equal(whole[order], mixed_up)
        assert torch.equal(whole[17], one[0])


@pytest.mark.parametrize("other", [{"seed": 1}, {"view": 1}])
def test_other_seeds_and_views_give_other_images(other):
    images = random_images(20, 8)
    first = run_mix(images, range(20), range(20))
    second = run_mix(images, range(20), range(20), **other)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_partners_come_from_the_pool_alone_and_are_uniform():
    images = random_images(10, 2)
    pool = [1, 4, 5, 9]
    rows = torch.arange(8000) % 10
    views = [run_mix(images, rows[:10], pool, config=AugmentConfig(mixup=1.0), view=v)[1] for v in range(400)]
    counts = np.bincount(torch.cat(views).numpy(), minlength=10)
    assert set(np.flatnonzero(counts)) == set(pool)
    assert stats.chisquare(counts[pool]).pvalue > 0.01


def test_mixing_is_a_weighted_mean_of_the_augmented_image_and_its_augmented_partner():
    images = random_images(30, 8)
    rows = torch.arange(30)
    mixed, partners, share = run_mix(images, rows, rows, view=5)
    changes = augmentation(8, config=EVERYTHING)
    weights, share_of_weights = changes.own_weights(rows, 5)
    assert torch.equal(share, share_of_weights)
    weights = weights.double()
    own, other = changes(images, rows, 5).double(), changes(images[partners], partners, 5).double()
    for index in range(30):
        expected = weights[index] * own[index] + (1 - weights[index]) * other[index]
        assert torch.allclose(mixed[index].double(), expected, atol=1e-6)
        assert abs(weights[index].mean().item() - share[index].item()) < 1e-6


def weights_of(number, **settings):
    weights, _ = augmentation(16, **settings).own_weights(torch.arange(number), 0)
    assert weights.shape == (number, 3, 16, 16)
    assert torch.equal(weights[:, :1].expand(-1, 3, -1, -1), weights)
    return weights[:, 0]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_lambda_of_mixup_follows_its_beta_distribution(alpha):
    weights = weights_of(8000, mixup=alpha)
    assert torch.equal(weights.amin((1, 2)), weights.amax((1, 2)))
    assert stats.kstest(weights[:, 0, 0].numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_cutmix_cuts_a_square_and_shares_labels_by_its_real_area():
    weights = weights_of(8000, cutmix=1.0)
    assert set(weights.unique().tolist()) == {0.0, 1.0}
    cut = weights == 0
    height, width = cut.any(2).sum(1), cut.any(1).sum(1)
    assert torch.equal(cut.sum((1, 2)), height * width)
    # Squares that do not touch the border are whole: as wide as they are high.
    free = ~(cut[:, 0].any(1) | cut[:, -1].any(1) | cut[:, :, 0].any(1) | cut[:, :, -1].any(1))
    assert free.sum() > 500
    assert torch.equal(height[free], width[free])
    # lambda is uniform for alpha 1: the side is floor(16 sqrt(1 - lambda)), so P(side < s) = (s / 16)^2, and a
    # square of side s around a uniform centre covers each way, on average, what this loop counts.
    expected = 0.0
    for side in range(17):
        probability = ((side + 1) / 16) ** 2 - (side / 16) ** 2 if side < 16 else 0.0
        covered = [
            sum(0 <= place < 16 for place in range(centre - side // 2, centre - side // 2 + side))
            for centre in range(16)
        ]
        expected += probability * np.mean(covered) ** 2
    assert abs((height * width).double().mean().item() - expected) < 3.0


def test_with_both_switched_on_half_of_the_images_take_each():
    weights = weights_of(4000, mixup=1.0, cutmix=1.0).flatten(1)
    is_cut = ((weights == 0) | (weights == 1)).all(1)
    assert stats.binomtest(int(is_cut.sum()), 4000).pvalue > 0.01


@pytest.mark.parametrize("config", [AugmentConfig(mixup=0.4), AugmentConfig(cutmix=1.0), EVERYTHING])
def test_a_view_may_be_a_number_or_a_tensor(config):
    images, rows = random_images(20, 8), torch.arange(20)
    for view in (0, 7):
        as_number = run_mix(images, rows, rows, config=config, view=view)
        as_tensor = run_mix(images, rows, rows, config=config, view=torch.tensor(view))
        assert all(torch.equal(one, other) for one, other in zip(as_number, as_tensor, strict=True))


def test_images_are_not_changed_in_place():
    images, rows = random_images(10, 8), torch.arange(10)
    before = images.clone()
    changes = augmentation(8, config=EVERYTHING)
    shown = changes.with_partners(rows, rows, 0)
    views = changes(images[shown], shown, 0)
    kept = views.clone()
    changes.mix(views, rows, 0)
    changes(images, rows, 0)
    assert torch.equal(images, before)
    assert torch.equal(views, kept)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_view():
    images, rows = random_images(64, 16), torch.arange(64)
    here = run_mix(images, rows, rows)
    there = run_mix(images.cuda(), rows.cuda(), rows.cuda())
    assert torch.equal(here[1], there[1].cpu())
    assert torch.allclose(here[0], there[0].cpu(), atol=1e-6)
