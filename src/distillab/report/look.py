"""One model held against the images of a report: choices, calibration, features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillab.config import AnyConfig
from distillab.data.batches import EvaluationBatches
from distillab.data.config import SplitConfig
from distillab.data.dataset import Dataset, ImageSet
from distillab.data.splits import evenly_spread, validation_split
from distillab.errors import DataError
from distillab.evaluation.calibration import ConfidenceBin, fit_temperature, reliability
from distillab.evaluation.evaluate import collect_logits
from distillab.evaluation.metrics import expected_calibration_error
from distillab.evaluation.similarity import linear_cka, main_layers, pooled, principal_plane
from distillab.feeding import check_fits
from distillab.models.classifier import Classifier, evaluation_mode
from distillab.models.features import forward_features
from distillab.report.collect import Variant
from distillab.results.run_record import readable
from distillab.runtime.device import Compute
from distillab.runtime.events import Observer
from distillab.scene import run_image_size

_MOST_TEST_IMAGES = 10_000
_HELD_OUT_IMAGES = 400
_FEATURE_IMAGES = 256
_TOLERANCE = 0.005  # of top-1: another device or precision may turn an image or two


@dataclass(frozen=True)
class Calibration:
    """How sure a model is.

    Attributes:
        bins: By confidence.
        ece: Expected calibration error, 0..1.
    """

    bins: tuple[ConfidenceBin, ...]
    ece: float


@dataclass(frozen=True, eq=False)
class Look:
    """What was found of one model.

    Attributes:
        variant: The row that it stands for.
        choices: [N] the class that it chooses for each test image.
        calibration: On the test images.
        temperature: Fitted on images that neither trained nor test; None where there are none.
        mended: Calibration on the test images at that temperature.
        similarity: (its layer, the teacher's layer, CKA), from the input on; empty for the teacher itself.
        plane: [n, 2] some test images in the plane in which its last features vary most.
        plane_share: Share of their variance that lies in it, 0..1.
    """

    variant: Variant
    choices: NDArray[np.int64]
    calibration: Calibration
    temperature: float | None
    mended: Calibration | None
    similarity: tuple[tuple[str, str, float], ...]
    plane: NDArray[np.float64]
    plane_share: float


class Desk:
    """The images that all models are shown.

    Attributes:
        dataset: Where they come from.
        num_test: Test images, the first ones.
        num_held_out: Images that neither trained nor test; temperatures are fitted on them.
        shown: [n] positions of the test images whose features are kept, in rising order.

    Args:
        config: Says how large images are shown.
        splits: How the models' training images were chosen: what one of them has seen is held out from none.
        dataset: The images.
        compute: Device and precision.
    """

    def __init__(self, config: AnyConfig, splits: Iterable[SplitConfig], dataset: Dataset, compute: Compute) -> None:
        self.dataset = dataset
        self._compute = compute
        self._size = run_image_size(config)
        self.num_test = min(len(dataset.test), _MOST_TEST_IMAGES)
        self.shown = evenly_spread(np.arange(self.num_test), _FEATURE_IMAGES)
        self._is_shown = torch.zeros(self.num_test, dtype=torch.bool)
        self._is_shown[self.shown] = True
        trained = [
            validation_split(
                dataset.train.labels, fraction=split.validation_fraction, seed=split.seed, limit=split.train_limit
            )[0]
            for split in dict.fromkeys(splits)
        ]
        unseen = np.setdiff1d(np.arange(len(dataset.train)), np.concatenate(trained))
        held_out = evenly_spread(unseen, _HELD_OUT_IMAGES)
        self.num_held_out = len(held_out)

        def batches(part: ImageSet, rows: NDArray[np.int64]) -> EvaluationBatches:
            return EvaluationBatches(part.images, part.labels, rows, device=compute.device, image_size=self._size)

        self._test = batches(dataset.test, np.arange(self.num_test))
        self._held_out = batches(dataset.train, held_out) if len(held_out) else None

    def look(
        self, variant: Variant, model: Classifier, reference: Mapping[str, Tensor], observer: Observer
    ) -> tuple[Look, dict[str, Tensor]]:
        """Run one model over all images.

        Args:
            variant: Its row.
            model: It, on the device.
            reference: Its teacher's features; none where there is no teacher, or it has not been looked at.
            observer: Is told of other classes and normalisation than the data's.

        Returns:
            What was found, and its features: layer -> [n, K], from the input on.

        Raises:
            DataError: It is another model, or these are other images, than when it was tested.
            ShapeError: It takes other images, or knows other classes.
        """
        check_fits(model, self.dataset, self._size, where=variant.name, observer=observer)
        logits, labels, features = self._tested(model)
        top1 = (logits.argmax(dim=1) == labels).double().mean().item()
        recorded = variant.first.result.test
        if recorded.num_samples == self.num_test and abs(top1 - recorded.top1) > max(_TOLERANCE, 2 / self.num_test):
            raise DataError(
                f"it is right on {top1:.1%} of the test images, its run says {recorded.top1:.1%}: "
                "weights or images are others than they were",
                where=variant.name,
            )
        temperature = None
        if self._held_out is not None and variant.first.is_own:  # else it may have learned from them
            held_out = collect_logits(model, self._held_out, autocast_dtype=self._compute.autocast_dtype)
            temperature = fit_temperature(*held_out)
        # A model that is one layer has no features but its logits.
        last = features[list(features)[max(0, len(features) - 2)]] if features else logits[self._is_shown]
        plane, share = principal_plane(last)
        look = Look(
            variant,
            logits.argmax(dim=1).numpy(),
            _calibration(logits, labels),
            temperature,
            None if temperature is None else _calibration(logits / temperature, labels),
            _similarity(features, reference) if variant.place != "teacher" else (),
            plane.numpy(),
            share,
        )
        return look, features

    def choices(self, model: Classifier) -> NDArray[np.int64]:
        """[N] the class that a model chooses for each test image."""
        logits, _ = collect_logits(model, self._test, autocast_dtype=self._compute.autocast_dtype)
        return logits.argmax(dim=1).cpu().numpy()

    def _tested(self, model: Classifier) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Logits [N, C], labels [N], and features of the images that are shown."""
        layers = main_layers(model)
        parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        logits, labels = [], []
        with evaluation_mode(model), torch.no_grad(), self._compute.autocast():
            for batch in self._test:
                found = forward_features(model, batch.images, layers)
                assert found.logits is not None, "a forward pass that does not stop ends in logits"
                logits.append(found.logits.float().cpu())
                labels.append(batch.labels.cpu())
                assert batch.indices is not None, "our own batches tell which images they are of"
                rows = self._is_shown[batch.indices.cpu()].to(batch.images.device)
                for layer in layers:
                    parts[layer].append(pooled(found.features[layer][rows]))
        return torch.cat(logits), torch.cat(labels), {layer: torch.cat(pieces) for layer, pieces in parts.items()}


def _similarity(features: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> tuple[tuple[str, str, float], ...]:
    """Each layer held against the teacher's at the same share of the way from input to logits."""
    own, others = list(features), list(reference)
    if not others:
        return ()
    found = []
    for position, layer in enumerate(own):
        other = others[round(position * (len(others) - 1) / max(1, len(own) - 1))]
        found.append((readable(layer), readable(other), linear_cka(features[layer], reference[other])))
    return tuple(found)


def _calibration(logits: Tensor, labels: Tensor) -> Calibration:
    return Calibration(tuple(reliability(logits, labels)), expected_calibration_error(logits, labels).item())
