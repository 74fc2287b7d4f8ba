"""The settings: their schema, their defaults in config.yaml, and overrides from a file or the shell."""

from __future__ import annotations

import safety.startup  # noqa: F401  before any other import

import argparse
import io
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from ruamel.yaml import YAML

from backbones.table import BASES
from safety import limits
from safety.errors import InputError, nearest
from safety.schema import (
    Amount,
    AutoOrCount,
    AutoOrNumbers,
    Choices,
    Count,
    Momentum,
    Positive,
    PrintableStr,
    Range,
    RunName,
    Section,
    Switch,
    explain,
)

DEFAULTS = Path(__file__).with_name("config.yaml")
# The way out that messages about missing data give.
GET_DATA = (
    "get BreakHis as README.md describes and set data.root and data.folds, or run `make train`, which draws a sample "
    "that --config sample.yaml reads, or `make real`, which needs no data set"
)


# Earlier versions had a switch.
Upsample = BeforeValidator(lambda value: ("none", "both")[value] if isinstance(value, bool) else value)
Schema = TypeVar("Schema", bound=Section)


class Data(Section):
    root: PrintableStr = Field(description="folder that contains BreaKHis_v1 or BreaKHis_v1/BreaKHis_v1")
    folds: PrintableStr = Field(description="table of images and official folds, or tree to read the folders instead")
    protocol: Literal["row", "image", "slide", "patient", "fold"] = Field(
        description="what the split never divides: row (the thesis; leaks), image, slide, patient or fold"
    )
    fold: int = Field(ge=1, le=5, description="official fold that is tested under protocol fold, 1 to 5")
    magnification: Literal["all", 40, 100, 200, 400] = Field(description="all, 40, 100, 200 or 400")
    test_per_class: AutoOrCount = Field(
        description="images of each class held out for the test, 1 or more, or auto (those in a fifth of the units)"
    )
    valid_fraction: float = Field(gt=0, lt=1, description="share of the rest used for validation, above 0 and below 1")
    on_bad_image: Literal["stop", "drop"] = Field(
        description="unusable images: stop (names them all) or drop (before the split, listed in environment.json)"
    )
    upsample: Annotated[Literal["minority", "both", "none"], Upsample] = Field(
        description="draw rows until the classes are equal: minority (of the smaller), both (anew, the thesis) or none"
    )
    image_size: int = Field(ge=32, le=1024, description="pixels a side after resizing, 32 to 1024")
    # Runs and checkpoints from before these settings have no keys for them.
    stain: Literal["none", "macenko", "reinhard"] = Field(
        "none", description="normalise the stain of every image before anything else: none, macenko or reinhard"
    )
    stain_target: AutoOrNumbers = Field(
        "auto", description="stain to normalise to: auto (fitted on training images, then kept) or what a run has kept"
    )
    test_views: Literal[1, 8] = Field(1, description="exact turns of an image that an evaluation averages, 1 or 8")
    seed: int = Field(ge=0, lt=2**32, description="random seed of split, head, shuffling and augmentation, 0 or more")

    @model_validator(mode="after")
    def _stain_target_is_that_of_stain(self) -> Data:
        count, positive = {"macenko": (8, 2), "reinhard": (6, 3), "none": (0, 0)}[self.stain]
        if (given := self.stain_target) != "auto" and (not count or len(given) != count or min(given[-positive:]) <= 0):
            raise ValueError(
                "stain_target must be auto, 8 numbers with macenko, the last 2 above 0, or 6 numbers with reinhard, "
                f"the last 3 above 0; got {given} with {self.stain}"
            )
        return self


class Augment(Section):
    rotation: Amount = Field(ge=0, le=180, description="degrees to either side, 0 to 180")
    shift: Amount = Field(ge=0, le=0.5, description="share of the side, in all four directions, 0 to 0.5")
    shear: Amount = Field(ge=0, le=45, description="degrees to either side, 0 to 45")
    zoom: Amount = Field(ge=0, le=0.9, description="share of the size, in or out, 0 to 0.9")
    flip: Switch = Field(description="mirror half of the images left to right")
    # Runs and checkpoints from before these settings have no keys for them.
    turns: Switch = Field(False, description="turn each image to one of its 8 exact quarter turns and mirrors")
    stain: Amount = Field(
        0.0, ge=0, le=0.5, description="random change of haematoxylin, eosin and the residual, as a share, 0 to 0.5"
    )
    contrast: Amount = Field(0.0, ge=0, le=0.9, description="share of the contrast, more or less, 0 to 0.9")
    brightness: Amount = Field(0.0, ge=0, le=0.5, description="share of the range from black to white, 0 to 0.5")
    views: int = Field(ge=1, le=1000, description="augmented versions of each image in the feature cache, 1 or more")

    @property
    def active(self) -> bool:
        """Whether any kind of augmentation is on."""
        return any(self.model_dump(exclude={"views"}).values())


class Model(Section):
    base: Literal[(*BASES, "cnn", "file")] = Field(
        description=f"{', '.join(BASES)} (frozen up to trainable_from), cnn (trained from scratch) or file (imported)"
    )
    weights: PrintableStr = Field(
        description="imagenet, random, or the path of a .h5 without top or of imported features"
    )
    standardize: bool = Field(description="scale pooled features by their training mean and deviation")
    trainable_from: str = Field(
        description="first block of the base to fine-tune (later ones follow), as docs/backbones.md lists them, or none"
    )

    @property
    def frozen(self) -> bool:
        """Whether the pooled features of an image stay the same while the head is trained."""
        return self.base != "cnn"

    @property
    def imported(self) -> bool:
        """Whether the pooled features come from a file, so that a run opens no image."""
        return self.base == "file"


class Train(Section):
    run: RunName = Field(description="name of the folder under runs/; auto takes protocol, seed and time")
    epochs: Count = Field(description="passes over the training rows, 1 to 100000")
    batch_size: Count = Field(description="images a step, 1 to 100000")
    momentum: Momentum = Field(description="momentum of the gradient descent, 0 to below 1")
    initial_lr: float = Field(gt=0, description="lowest value of the cyclical learning rate, above 0")
    maximal_lr: float = Field(gt=0, description="highest value of the first cycle, at least initial_lr")
    step_size_epochs: Count = Field(description="epochs from the lowest to the highest learning rate, 1 to 100000")
    fine_tune_epochs: Count = Field(
        description="epochs of fine-tuning after those of the head, if trainable_from is set, 1 to 100000"
    )
    fine_tune_lr: float = Field(gt=0, description="constant learning rate of fine-tuning, above 0")
    features: Literal["cached", "end_to_end"] = Field(
        description="cached (base runs once for each image and view; fixed warps) or end_to_end (whole network each "
        "epoch; fresh warps)"
    )
    cache_gib: float = Field(
        gt=0,
        le=1_000_000,
        description="limit of cache/ in GiB, above 0, to 1000000; the longest unused entries are deleted first",
    )
    # Runs and checkpoints from before this setting have no key for it: they chose by the plain loss.
    select: Literal["balanced", "plain"] = Field(
        "plain", description="validation loss that chooses the epoch: balanced (both classes count equally) or plain"
    )
    deterministic: bool = Field(description="same numbers in every run on a GPU too, where this is slower")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        description="auto (the fastest on the device), float32, bfloat16 or float16"
    )
    # Runs and checkpoints from before this setting have no key for it: theirs was TensorFlow.
    engine: Literal["auto", "tensorflow", "openvino"] = Field(
        "tensorflow", description="what runs the frozen base: auto (the fastest), tensorflow or openvino (if installed)"
    )
    strategy: Literal["auto", "one", "mirrored"] = Field(
        description="auto (all GPUs, and the hosts of TF_CONFIG), one (device) or mirrored (all devices of this host)"
    )

    @model_validator(mode="after")
    def _initial_lr_at_most_maximal_lr(self) -> Train:
        if self.initial_lr > self.maximal_lr:
            raise ValueError(f"initial_lr must be at most maximal_lr, {self.maximal_lr:g}, got {self.initial_lr:g}")
        return self

    @model_validator(mode="after")
    def _openvino_is_for_one_processor(self) -> Train:
        if self.engine == "openvino" and (self.precision == "float16" or self.strategy == "mirrored"):
            raise ValueError("engine must be auto or tensorflow with float16 or with strategy mirrored, got openvino")
        return self

    @property
    def monitor(self) -> str:
        """The column of history.csv whose lowest value chooses the epoch."""
        return "val_balanced_loss" if self.select == "balanced" else "val_loss"


class Tune(Section):
    objective: Literal["val_loss", "val_auc"] = Field(
        description="what --tune optimises: val_loss (that of train.select) or val_auc, at the epoch that a run keeps"
    )
    maximal_lr: Range[Positive] = Field(description="range of train.maximal_lr, [low, high] above 0; logarithmic")
    initial_share: Range[Annotated[float, Field(gt=0, le=1)]] = Field(
        description="range of train.initial_lr / train.maximal_lr, above 0 to 1; logarithmic"
    )
    momentum: Choices[Momentum] = Field(description="choices for train.momentum; one choice alone is not searched")
    batch_size: Choices[Count] = Field(description="choices for train.batch_size")
    epochs: Choices[Count] = Field(description="choices for train.epochs")
    step_size_epochs: Choices[Count] = Field(description="choices for train.step_size_epochs")
    standardize: Choices[bool] = Field(description="choices for model.standardize")


class Settings(Section):
    """All settings of a run; config.yaml holds the defaults."""

    data: Data
    augment: Augment
    model: Model
    train: Train
    tune: Tune

    @model_validator(mode="after")
    def _suit_the_base(self) -> Settings:
        name, block, size = self.model.base, self.model.trainable_from, self.data.image_size
        base = BASES.get(name)
        blocks = ["none", *(base.blocks if base else ())]
        if block not in blocks:
            alike = f"; the nearest is {nearest(block, blocks)}" * bool(nearest(block, blocks))
            allowed = f"allowed with base {name}: {', '.join(blocks)}"
            raise ValueError(f"model.trainable_from: {allowed}, got {block!r}{alike}")
        if self.train.engine == "openvino" and (not self.cached or self.model.imported):
            raise ValueError(
                "train.engine: must be auto or tensorflow where no frozen base computes features (train.features="
                "end_to_end, model.base=cnn or file), got openvino"
            )
        if base and size < base.smallest:
            raise ValueError(f"data.image_size: must be at least {base.smallest} with base {name}, got {size}")
        return self

    @model_validator(mode="after")
    def _imported_features_open_no_image(self) -> Settings:
        weights, features, stain, views = self.model.weights, self.train.features, self.data.stain, self.data.test_views
        broken = {
            f"model.weights must be the path of a file with the features (docs/features.md), got {weights}": weights
            in ("imagenet", "random"),
            f"augment must be off, got {self.augment}": self.augment.active,
            f"train.features must be cached, got {features}": features != "cached",
            f"data.stain must be none, got {stain}": stain != "none",
            f"data.test_views must be 1, got {views}": views != 1,
            "data.folds must be a Folds.csv, got tree": self.data.folds == "tree",
        }
        for rule in filter(broken.get, broken if self.model.imported else ()):
            raise ValueError(f"model.base=file opens no image: {rule}")
        return self

    @property
    def cached(self) -> bool:
        """Whether the head trains on features that are computed once; a base that is trained has no constant ones."""
        return self.train.features == "cached" and self.model.frozen

    @property
    def fine_tuned(self) -> bool:
        """Whether blocks of the base are trained after the head."""
        return self.model.trainable_from != "none"

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.train.epochs + (self.train.fine_tune_epochs if self.fine_tuned else 0)

    def to_yaml(self) -> str:
        """The text of a config file that loads to the same settings."""
        text = io.StringIO()
        YAML().dump(self.model_dump(), text)
        return text.getvalue()


def load_settings(
    path: str | Path | None = None, overrides: list[str] | tuple[str, ...] = (), of_run: bool = False
) -> Settings:
    """Loads the settings: the defaults of config.yaml, then the file `path`, then the overrides; the last one wins.

    Args:
        path: YAML file with the settings that differ from config.yaml; None for none.
        overrides: texts `section.key=value`; the value is read as YAML.
        of_run: whether the file is the config.yaml of a run, which an earlier version may have written; keys that it
            did not know then have the value that it used.

    Returns:
        The validated settings.

    Raises:
        InputError: a file is missing or is not plain YAML, a key is unknown, or a value has the wrong type or range.
    """
    values = limits.read_sections(DEFAULTS)
    for section, keys in _fields().items() if of_run else ():
        # The schema itself has a default for these keys alone.
        values[section] = {key: values[section][key] for key, field in keys.items() if field.is_required()}
    files = {f"{section}.{key}": DEFAULTS.name for section, keys in values.items() for key in keys}
    changes = [(path, limits.read_sections(Path(path)))] if path else []
    for file, change in changes + [(None, _parse_override(text)) for text in overrides]:
        for section, keys in change.items():
            values.setdefault(section, {}).update(keys)
            files |= {f"{section}.{key}": file for key in keys}
    return validate(Settings, values, files)


def validate(schema: type[Schema], values: Any, files: dict[str, str | Path | None] | None = None) -> Schema:
    """Validates values against a schema.

    Args:
        schema: Settings or another subclass of Section.
        values: nested dictionaries, as read from a file.
        files: name of a setting -> the file that it is from, for the message; None where it is from the shell.

    Returns:
        An instance of the schema.

    Raises:
        InputError: names up to three keys, what is allowed and what was got.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        known = {**descriptions(), **dict.fromkeys(Settings.model_fields, "")}
        raise InputError("; ".join(explain(item, known, files or {}) for item in error.errors()[:3])) from None


def _parse_override(text: str) -> dict:
    name, equals, value = text.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise InputError(f"a setting must be section.key=value, such as train.epochs=5, got {text!r}")
    field = _fields().get(section, {}).get(key)
    # For a text setting 2026 must stay a text; the shell strips the quotes that would tell YAML so.
    return {section: {key: value if field and field.annotation is str else limits.parse_yaml(value, name)}}


def descriptions() -> dict[str, str]:
    """The names of all settings, `section.key`, in the order of the schema -> what they are, with their range."""
    return {f"{section}.{key}": field.description for section, keys in _fields().items() for key, field in keys.items()}


def _fields() -> dict:
    return {section: field.annotation.model_fields for section, field in Settings.model_fields.items()}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds `--config FILE` and `section.key=value ...` to a command's arguments, and all settings to its --help."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings that differ from config.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="single settings; they win over those of the files"
    )
    defaults = limits.read_sections(DEFAULTS)
    parser.epilog = "settings [default]:\n" + "\n".join(
        f"  {section}.{key + '=':<18} {field.description} [{limits.to_yaml(defaults[section][key])}]"
        for section, keys in _fields().items()
        for key, field in keys.items()
    )
