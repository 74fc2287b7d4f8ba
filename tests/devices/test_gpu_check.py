"""The check of a GPU, with a list of devices that claims there are some; what they compute runs on the processor."""

import numpy as np
import pytest
import tensorflow as tf

import benchmark
from devices import gpu_check, keras_stack, precision
from safety.errors import InputError


@pytest.fixture
def fake_gpus(monkeypatch):
    """Makes TensorFlow list GPUs of a compute capability; returns what was asked of it."""
    asked = []

    def fake(count, capability):
        details = {"device_name": "Fake", "compute_capability": capability}
        for name, value in {
            "get_device_details": lambda gpu: details,
            "set_memory_growth": lambda gpu, on: asked.append((gpu, on)),
            "get_memory_growth": lambda gpu: (gpu, True) in asked,
            "enable_op_determinism": lambda: asked.append("deterministic"),
        }.items():
            monkeypatch.setattr(tf.config.experimental, name, value)
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"gpu {n}" for n in range(count)])
        return asked

    return fake


def test_without_a_gpu_there_is_one_line():
    with pytest.raises(InputError, match="--check-gpu: needed is a GPU, TensorFlow .* finds none") as refused:
        benchmark.main(["--check-gpu"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("capability, word", [((7, 5), "float16"), ((6, 1), "float32")])
def test_each_point_is_a_line_that_held(fake_gpus, monkeypatch, capsys, capability, word):
    asked = fake_gpus(1, capability)
    assert benchmark.main(["--check-gpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    points = ["memory growth", "precision", "convolution on the GPU", "XLA", "float16", "several GPUs", "determinism"]
    assert [line[7:].partition(":")[0] for line in lines] == points
    assert all(line.startswith("held ") for line in lines)
    assert lines[1].endswith(f"{capability[0]}.{capability[1]}: {word}")
    assert asked == [("gpu 0", True), "deterministic"]


def test_what_does_not_hold_is_named(fake_gpus, monkeypatch, capsys):
    fake_gpus(1, (7, 5))
    monkeypatch.setattr(precision, "grow_memory", lambda: [])
    rng = np.random.default_rng(0)
    monkeypatch.setattr(gpu_check, "_gradient", lambda: rng.normal(size=3))
    assert benchmark.main(["--check-gpu"]) == 1
    failed = [line[7:].partition(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert failed == ["memory growth", "determinism"]


def test_of_several_gpus_keras_3_takes_the_first(fake_gpus, monkeypatch):
    fake_gpus(2, (7, 5))
    monkeypatch.setattr(keras_stack, "KERAS_3", True)
    seen = {name: words for name, _, words in gpu_check.check()}
    assert seen["several GPUs"].startswith("the first of 2 alone is used")


@pytest.mark.parametrize("gpus, expected", [(["gpu"], True), ([], False)])
def test_xla_compiles_the_base_on_a_gpu_alone(monkeypatch, gpus, expected):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    assert precision.use_xla() is expected
