"""The bases: what is known of each pretrained network. Adding one is a line here; nothing imports Keras."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Base(NamedTuple):
    """A network of `keras.applications` without its classifier.

    Attributes:
        constructor: its name in `keras.applications`.
        preprocessing: what its weights expect of RGB from 0 to 255, as Keras names it: caffe (BGR minus the ImageNet
            means), tf (from -1 to 1) or torch (standardised by the ImageNet means and deviations).
        width: channels of its output, the number of pooled features.
        parameters: numbers in its weights.
        weights: folder and file of the ImageNet weights without top, on Keras' server.
        digest: hash of that file, MD5 or SHA-256, in hex; None where Keras has none.
        blocks: at which fine-tuning may start, from input to output; each is part of the names of its layers.
        before: the layer before each block, where the layers' names do not tell their block.
        last_convolution: the layer that Grad-CAM explains, where it is not the base's output.
        size: pixels a side of the images that it was trained on.
        smallest: pixels a side that it needs.
        preprocesses: whether Keras' network preprocesses by itself, which is switched off.
    """

    constructor: str
    preprocessing: str
    width: int
    parameters: int
    weights: str
    digest: str | None
    blocks: tuple[str, ...]
    before: tuple[str, ...] = ()
    last_convolution: str = ""
    size: int = 224
    smallest: int = 32
    preprocesses: bool = False

    @property
    def file(self) -> str:
        """Name of the file with the ImageNet weights."""
        return self.weights.rpartition("/")[2]


def _residual(*counts: int) -> tuple[str, ...]:
    """The residual blocks of a ResNet, by their number in each stage."""
    return tuple(_names("conv{}_block{}", enumerate(counts, 2)))


def _names(pattern: str, counts: Iterator[tuple[int, int]]) -> Iterator[str]:
    return (pattern.format(stage, block) for stage, count in counts for block in range(1, count + 1))


NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"
BASES = {
    "resnet50": Base("ResNet50", "caffe", 2048, 23_587_712, f"resnet/resnet50_{NOTOP}", "4d473c1dd8becc155b73f8504c6f6626", _residual(3, 4, 6, 3)),
}  # fmt: skip
