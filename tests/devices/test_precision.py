import pytest
import tensorflow as tf

import config
from devices import precision
from safety.errors import InputError


@pytest.mark.parametrize("flags, ratio, expected", [
    ("fpu avx512f", 0.5, "float32"),
    ("fpu avx512_bf16", 0.5, "bfloat16"),
    ("amx_bf16", 0.5, "bfloat16"),
    ("amx_bf16 avx512_bf16", 1.9, "float32"),
])  # fmt: skip
def test_auto_precision_follows_the_cpu_and_what_it_measures(tmp_path, monkeypatch, flags, ratio, expected):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.delenv(precision.LIMIT, raising=False)
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(precision, "_seconds", {"bfloat16": ratio, "float32": 1.0}.get)
    assert precision.fast_precision([]) == expected
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "none")
    assert precision.fast_precision([]) == "float32"


def test_auto_precision_respects_a_limit_on_the_instructions(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags : avx512_bf16\n")
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(precision, "_seconds", {"bfloat16": 0.5, "float32": 1.0}.get)
    for limit, expected in {"AVX2": "float32", "AVX512_CORE_BF16": "bfloat16", "DEFAULT": "bfloat16"}.items():
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert precision.fast_precision([]) == expected


def test_auto_is_resolved_and_a_named_precision_is_left(monkeypatch):
    monkeypatch.setattr(precision, "fast_precision", lambda gpus: "bfloat16")
    assert precision.with_precision(config.load_settings()).train.precision == "bfloat16"
    assert (
        precision.with_precision(config.load_settings(None, ["train.precision=float16"])).train.precision == "float16"
    )


def test_bfloat16_is_refused_under_a_limit_that_rules_it_out(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(InputError, match="train.precision: must be auto or float32 while ONEDNN_MAX_CPU_ISA is AVX2"):
        precision.use_device("bfloat16")


@pytest.mark.bfloat16
def test_both_precisions_can_be_timed():
    assert precision._seconds("bfloat16") > 0 and precision._seconds("float32") > 0


@pytest.mark.parametrize("capability, expected", [((7, 0), "float16"), ((6, 1), "float32")])
def test_auto_precision_follows_the_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    assert precision.fast_precision(["gpu"]) == expected
