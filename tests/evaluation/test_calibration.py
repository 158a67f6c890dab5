from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distillab.errors import ConfigError, ShapeError
from distillab.evaluation.calibration import fit_temperature, reliability
from distillab.evaluation.metrics import expected_calibration_error


def sampled(num: int = 20_000, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from the very distribution that they stand for: calibrated as they are."""
    random = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(num, classes, generator=random, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(dim=1), 1, generator=random).squeeze(1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    logits, labels = sampled()
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.03)


def test_the_fitted_temperature_calibrates_and_changes_no_choice() -> None:
    logits, labels = sampled()
    overconfident = 3.0 * logits
    mended = overconfident / fit_temperature(overconfident, labels)
    assert expected_calibration_error(overconfident, labels) > 0.1
    assert expected_calibration_error(mended, labels) < 0.02
    assert torch.equal(mended.argmax(dim=1), logits.argmax(dim=1))


def test_the_temperature_is_a_minimum_of_the_surprise() -> None:
    logits, labels = sampled(500)
    best = fit_temperature(logits, labels)

    def surprise(temperature: float) -> float:
        shares = (logits / temperature).softmax(dim=1).numpy()
        return -float(np.mean([math.log(shares[n, label]) for n, label in enumerate(labels.tolist())]))

    assert surprise(best) <= min(surprise(best * 1.05), surprise(best / 1.05))


def test_who_is_never_wrong_may_be_surer_and_who_is_never_right_may_not_be_sure_at_all() -> None:
    labels = torch.arange(40) % 4
    sure = 5.0 * torch.nn.functional.one_hot(labels, 4).double()
    assert fit_temperature(sure, labels) < 0.2  # below that no float64 tells surprises apart
    assert fit_temperature(sure, (labels + 1) % 4) == pytest.approx(20.0, rel=0.01)


def by_loops(logits: torch.Tensor, labels: torch.Tensor, bins: int) -> list[tuple[int, float | None, float | None]]:
    """Reliability as the paper has it: which samples lie in ((m - 1) / bins, m / bins], how sure, how often right."""
    found: list[tuple[int, float | None, float | None]] = []
    for m in range(1, bins + 1):
        sure, right = [], []
        for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
            total = sum(math.exp(value - max(z)) for value in z)
            shares = [math.exp(value - max(z)) / total for value in z]
            confidence = max(shares)
            if (m - 1) / bins < confidence <= m / bins:
                sure.append(confidence)
                right.append(shares.index(confidence) == y)
        found.append((len(sure), sum(sure) / len(sure), sum(right) / len(right)) if sure else (0, None, None))
    return found


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_reliability_is_that_of_a_loop_over_samples(bins: int) -> None:
    logits, labels = sampled(300, 4)
    parts = reliability(logits, labels, bins=bins)
    assert [(part.low, part.high) for part in parts] == [(m / bins, (m + 1) / bins) for m in range(bins)]
    for part, (count, confidence, accuracy) in zip(parts, by_loops(logits, labels, bins), strict=True):
        assert part.count == count
        assert (part.confidence is None) == (confidence is None)
        if count:
            assert part.confidence == pytest.approx(confidence)
            assert part.accuracy == pytest.approx(accuracy)


def test_the_parts_add_up_to_the_calibration_error() -> None:
    logits, labels = sampled(1000)
    total = sum(
        part.count / len(labels) * abs(part.accuracy - part.confidence)
        for part in reliability(3.0 * logits, labels)
        if part.accuracy is not None and part.confidence is not None
    )
    assert total == pytest.approx(expected_calibration_error(3.0 * logits, labels).item())


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(ShapeError):
        reliability(torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError):
        fit_temperature(torch.zeros(3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="0 bins"):
        reliability(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), bins=0)
