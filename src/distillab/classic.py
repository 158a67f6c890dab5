"""The two classic commands, `python train.py` and `python train_kd.py`: their flags, recipes and file names."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from distillab.commands.dispatch import dispatch, new_app
from distillab.commands.flags import EVERY_FIELD, Injected, Whole
from distillab.commands.outcome import show_run
from distillab.config import RunConfig, resolve_distill, resolve_train
from distillab.errors import CheckpointError, ConfigError, DataError
from distillab.recipe import load_recipe
from distillab.runtime.files import storage_error
from distillab.terminal import Screen
from distillab.training.config import Role

LOGS = Path("logs")

_ROLES: dict[str, Role] = {"teacher": "teacher", "ta": "assistant", "student": "student"}
_FAMILIES = {"normal": "cnn", "resnet": "resnet"}


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of both commands.

    Attributes:
        model_type: Plain CNNs or bottleneck ResNets.
        epoch: Epochs, of every stage.
        batch_size: Images a step.
        num_class: 10 is CIFAR-10, 100 is CIFAR-100; other numbers need --data.
        data: A folder of images, or a local copy of CIFAR, instead of the download.
        seed: Of initial weights, order of the images and dropout.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    model_type: Literal["normal", "resnet"] = "normal"
    epoch: Whole = 100
    batch_size: Whole = 128
    num_class: Whole = 10
    data: str | None = None
    seed: Whole = 0
    device: str = "auto"

    def file(self, size: str, kd: str | None = None) -> Path:
        """Where a model's weights stand."""
        parts = (self.model_type, self.epoch, self.batch_size, self.num_class, *([kd] if kd else []))
        return LOGS / size / ("_".join(map(str, parts)) + "_param.pth")

    def recipe(self) -> dict[str, Any]:
        """Values of the classic recipe for these models.

        Raises:
            ConfigError: There is no download with so many classes.
        """
        if self.data is None and self.num_class not in (10, 100):
            raise ConfigError(
                f"there is no data set with {self.num_class} classes to download",
                where="--num_class",
                hint="give 10 or 100, or a folder of images by --data",
            )
        family = _FAMILIES[self.model_type]
        return load_recipe(f"cifar{100 if self.num_class == 100 else 10}-{family}-classic")

    def values(self) -> dict[str, Any]:
        """The flags as settings, to be laid over the recipe."""
        given = {} if self.data is None else {"data": self.data}
        training = {"epochs": self.epoch, "batch_size": self.batch_size}
        return {"training": training, "seed": self.seed, "device": self.device, **given}

    def train_command(self, size: str) -> str:
        """The command that trains a model with these flags."""
        words = ["python", "train.py", "--model_type", self.model_type, "--model_size", size]
        words += ["--epoch", str(self.epoch), "--batch_size", str(self.batch_size)]
        words += ["--num_class", str(self.num_class), *(["--data", self.data] if self.data is not None else [])]
        return shlex.join(words)

    def check_classes(self, config: RunConfig) -> None:
        """See that the images given by `--data` have as many classes as `--num_class` says.

        Raises:
            DataError: They have another number.
        """
        if self.data is None:
            return
        from distillab.data.catalog import open_dataset

        dataset = open_dataset(self.data, data_dir=config.data_dir, image_size=32, split=config.split)
        if dataset.num_classes != self.num_class:
            raise DataError(
                f"the data has {dataset.num_classes} classes, not {self.num_class}",
                where=f"--data {self.data}",
                hint=f"give --num_class {dataset.num_classes}",
            )


def train(
    *,
    flags: Annotated[Flags, EVERY_FIELD] = Flags(),
    model_size: Annotated[
        Literal["teacher", "ta", "student"], Parameter(help="Which of the three; ta is the assistant.")
    ] = "teacher",
    screen: Injected,
) -> None:
    """Train a model alone and save it as logs/<size>/<type>_<epoch>_<batch>_<classes>_param.pth."""
    role = _ROLES[model_size]
    config = resolve_train(flags.recipe(), {**flags.values(), "role": role})
    path = flags.file(model_size)
    _check_writable(path)
    flags.check_classes(config)
    from distillab.run import run_one

    with screen.watching() as observer:
        result = run_one(config, observer=observer, save_run=False)
    _save(result.models[role], path, result.summary)
    show_run(screen, result, f"saved: {path}")


def train_kd(
    *,
    flags: Annotated[Flags, EVERY_FIELD] = Flags(),
    kd: Annotated[
        Literal["st", "fitnet", "takd", "multi", "mbd-delta", "mbd-hard", "mbd-soft"], Parameter(help="The method.")
    ] = "st",
    teacher: Annotated[
        Path | None, Parameter(help="The teacher's weights, where their name does not follow from the flags.")
    ] = None,
    screen: Injected,
) -> None:
    """Distil the teacher that train.py has saved, and save the student (and assistant) under logs/ as well."""
    weights = teacher or flags.file("teacher")
    if not weights.exists():
        raise CheckpointError(
            "the teacher's weights are not there", where=str(weights), hint=flags.train_command("teacher")
        )
    # An absolute path: a file that is called like a model is a file all the same.
    config = resolve_distill(flags.recipe(), {**flags.values(), "method": kd, "teacher": str(weights.absolute())})
    _check_writable(flags.file("student", kd))
    flags.check_classes(config)
    from distillab.run import run_one

    with screen.watching() as observer:
        result = run_one(config, observer=observer, save_run=False)
    saved = []
    for size in ("ta", "student"):
        if (model := result.models.get(_ROLES[size])) is not None:
            path = flags.file(size, kd)
            _save(model, path, result.summary if size == "student" else result.summary["assistant"])
            saved.append(f"saved: {path}")
    show_run(screen, result, *saved)


def _check_writable(path: Path) -> None:
    """See that weights can be written where they will be, before hours go into them.

    Raises:
        StorageError: They cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise storage_error(error, path) from error


def _save(model: Any, path: Path, outcome: Mapping[str, Any]) -> None:
    from distillab.models.weights import save_classic

    kept = ("seed", "data", "test", "validation", "cost")
    save_classic(model, path, {"result": {key: outcome[key] for key in kept}})


def run_train_py(words: Sequence[str], screen: Screen) -> None:
    """What `train.py` does with its words; errors as in `cli.run`."""
    dispatch(_app("train.py", train, screen), words, screen)


def run_train_kd_py(words: Sequence[str], screen: Screen) -> None:
    """What `train_kd.py` does with its words; errors as in `cli.run`."""
    dispatch(_app("train_kd.py", train_kd, screen), words, screen)


def _app(name: str, command: Callable[..., None], screen: Screen) -> App:
    app = new_app(
        name=f"python {name}",
        screen=screen,
        default_parameter=Parameter(name_transform=str),  # the classic flags are spelt with underscores
    )
    app.default(command)
    return app
