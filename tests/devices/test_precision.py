import pytest
import tensorflow as tf

from devices import openvino_cpu, precision
from safety.errors import InputError


@pytest.mark.parametrize("flags, expected", [
    ("fpu avx512f", False), ("fpu avx512_bf16", True), ("amx_bf16", True), (None, False),
])  # fmt: skip
def test_bfloat16_is_there_where_the_processor_says_so(tmp_path, monkeypatch, flags, expected):
    monkeypatch.delenv(precision.LIMIT, raising=False)
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert precision.has_bfloat16() is expected


def test_a_limit_on_the_instructions_rules_bfloat16_out(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags : avx512_bf16\n")
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    for limit, expected in {"AVX2": False, "AVX512_CORE_BF16": True, "DEFAULT": True}.items():
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert precision.has_bfloat16() is expected


def test_bfloat16_is_refused_under_a_limit_that_rules_it_out(monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(InputError, match="train.precision: must be auto or float32 while ONEDNN_MAX_CPU_ISA is AVX2"):
        precision.use_device("bfloat16")


def test_the_device_names_openvino_and_a_missing_one_is_refused(monkeypatch):
    assert precision.use_device("float32", engine="openvino") == precision.use_device("float32") + ", OpenVINO"
    monkeypatch.setattr(openvino_cpu.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="train.engine: openvino needs .* install it with: pip install openvino"):
        precision.use_device("float32", engine="openvino")
    precision.use_device("float32")


@pytest.mark.parametrize("capability, expected", [((7, 0), "float16"), ((6, 1), "float32")])
def test_the_precision_of_a_gpu_follows_its_tensor_cores(monkeypatch, capability, expected):
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    assert precision.of_gpu("gpu") == expected
