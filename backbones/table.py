"""The bases: what is known of each pretrained network. Adding one is a line here; nothing imports Keras."""

from __future__ import annotations

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


def _names(pattern: str, counts: dict[int, int]) -> tuple[str, ...]:
    """The names of blocks that are numbered within numbered stages; counts: stage -> its blocks."""
    return tuple(pattern.format(stage, block) for stage, count in counts.items() for block in range(1, count + 1))


NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"
LETTERED = tuple(
    f"block{stage}{letter}"
    for stage, letters in enumerate(("a", "ab", "ab", "abc", "abcde", "abcdefgh"), 1)
    for letter in letters
)
BASES = {
    "resnet50": Base("ResNet50", "caffe", 2048, 23_587_712, f"resnet/resnet50_{NOTOP}", "4d473c1dd8becc155b73f8504c6f6626", _names("conv{}_block{}", {2: 3, 3: 4, 4: 6, 5: 3})),
    "resnet101": Base("ResNet101", "caffe", 2048, 42_658_176, f"resnet/resnet101_{NOTOP}", "88cf7a10940856eca736dc7b7e228a21", _names("conv{}_block{}", {2: 3, 3: 4, 4: 23, 5: 3})),
    "vgg16": Base("VGG16", "caffe", 512, 14_714_688, f"vgg16/vgg16_{NOTOP}", "6d6bbae143d832006294945121d1f1fc", ("block2", "block3", "block4", "block5"), last_convolution="block5_conv3"),
    "inception_v3": Base("InceptionV3", "tf", 2048, 21_802_784, f"inception_v3/inception_v3_{NOTOP}", "bcbd6486424b2319ff4ef7d526e38f63", tuple(f"mixed{n}" for n in range(1, 11)), tuple(f"mixed{n}" for n in range(10)), size=299, smallest=75),
    "densenet121": Base("DenseNet121", "torch", 1024, 7_037_504, f"densenet/densenet121_{NOTOP}", "30ee3e1110167f948a6b9946edeeb738", ("conv2", "conv3", "conv4", "conv5")),
    "mobilenet_v2": Base("MobileNetV2", "tf", 1280, 2_257_984, "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5", None, tuple(f"block_{n}" for n in range(1, 17))),
    "efficientnetv2b0": Base("EfficientNetV2B0", "torch", 1280, 5_919_312, "efficientnet_v2/efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff", LETTERED, preprocesses=True),
    "convnext_tiny": Base("ConvNeXtTiny", "torch", 768, 27_820_128, "convnext/convnext_tiny_notop.h5", "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1", ("stage_0", "stage_1", "stage_2", "stage_3"), preprocesses=True),
}  # fmt: skip
