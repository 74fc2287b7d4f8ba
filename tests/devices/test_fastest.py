"""What train.engine=auto and train.precision=auto become; the timings are made up, but for one test."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import config
from devices import fastest, openvino_cpu, precision
from devices.fastest import Pair
from safety.errors import InputError

# Seconds of TensorFlow and OpenVINO, in float32 and bfloat16.
EQUAL = {
    "TensorFlow in float32": 1.0,
    "TensorFlow in bfloat16": 1.0,
    "OpenVINO in float32": 1.0,
    "OpenVINO in bfloat16": 1.0,
}


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """A processor with bfloat16, without GPU; the seconds of each pair, to be changed, and the pairs that were timed."""
    seconds, asked = dict(EQUAL), []
    monkeypatch.delenv(precision.LIMIT, raising=False)
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")
    processor("Model One", "avx512_bf16")
    monkeypatch.setattr(fastest.tf.config, "list_physical_devices", lambda kind: [])

    def measure(pairs):
        asked.append(pairs)
        return {str(pair): seconds[str(pair)] for pair in pairs}

    monkeypatch.setattr(fastest, "_seconds", measure)
    return seconds, asked


def processor(name, flags):
    precision.CPU_INFO.write_text(f"model name\t: {name}\nflags\t: {flags}\n")


def resolved(*overrides):
    train = fastest.with_fastest(config.load_settings(None, list(overrides))).train
    return train.engine, train.precision


@pytest.mark.parametrize("changes, expected", [
    ({}, ("tensorflow", "float32")),
    ({"TensorFlow in bfloat16": 0.79}, ("tensorflow", "bfloat16")),
    ({"TensorFlow in bfloat16": 0.81}, ("tensorflow", "float32")),
    ({"OpenVINO in float32": 0.82}, ("openvino", "float32")),
    ({"OpenVINO in float32": 0.84}, ("tensorflow", "float32")),
    ({"OpenVINO in bfloat16": 0.5}, ("openvino", "bfloat16")),
    ({"OpenVINO in bfloat16": 0.5, "TensorFlow in bfloat16": 0.55}, ("tensorflow", "bfloat16")),
    ({"OpenVINO in bfloat16": 0.5, "TensorFlow in bfloat16": 0.65}, ("openvino", "bfloat16")),
    ({"OpenVINO in float32": 1.9, "OpenVINO in bfloat16": 1.85}, ("tensorflow", "float32")),
])  # fmt: skip
def test_the_fastest_pair_is_chosen_where_it_is_clearly_ahead(timed, changes, expected):
    timed[0].update(changes)
    assert resolved() == expected


@pytest.mark.parametrize("given, expected, pairs", [
    ("train.precision=float32", ("openvino", "float32"), [("tensorflow", "float32"), ("openvino", "float32")]),
    ("train.precision=bfloat16", ("openvino", "bfloat16"), [("tensorflow", "bfloat16"), ("openvino", "bfloat16")]),
    ("train.engine=tensorflow", ("tensorflow", "bfloat16"), [("tensorflow", "float32"), ("tensorflow", "bfloat16")]),
    ("train.engine=openvino", ("openvino", "bfloat16"), [("openvino", "float32"), ("openvino", "bfloat16")]),
])  # fmt: skip
def test_of_what_is_given_only_the_other_is_searched(timed, given, expected, pairs):
    timed[0].update({"TensorFlow in bfloat16": 0.7, "OpenVINO in float32": 0.6, "OpenVINO in bfloat16": 0.3})
    assert resolved(given) == expected and timed[1] == [pairs]


@pytest.mark.parametrize("overrides, spoil, pairs", [
    (["train.features=end_to_end"], None, 2),
    (["model.base=cnn"], None, 2),
    (["model.base=file", "model.weights=a.npz"], None, 2),
    (["train.strategy=mirrored"], None, 2),
    ([], lambda patch: patch.setenv("TF_CONFIG", "{}"), 2),
    (["train.strategy=one"], lambda patch: patch.setenv("TF_CONFIG", "{}"), 4),
    ([], lambda patch: patch.setattr(openvino_cpu.util, "find_spec", lambda name: None), 2),
    ([], lambda patch: patch.setenv(precision.LIMIT, "AVX2"), 2),
    (["train.precision=float16"], None, 0),
    (["train.precision=bfloat16"], lambda patch: patch.setenv(precision.LIMIT, "AVX2"), 0),
    (["train.precision=bfloat16"], lambda patch: processor("Model One", "avx2"), 0),
    (["train.engine=tensorflow", "train.precision=float32"], None, 0),
])  # fmt: skip
def test_only_what_can_be_used_is_timed(timed, monkeypatch, overrides, spoil, pairs):
    if spoil:
        spoil(monkeypatch)
    resolved(*overrides)
    assert sum(map(len, timed[1])) == pairs


def test_a_gpu_takes_tensorflow_without_timing(timed, monkeypatch):
    monkeypatch.setattr(fastest.tf.config, "list_physical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(precision, "of_gpu", lambda gpu: "float16")
    assert resolved() == ("tensorflow", "float16") and timed[1] == []


def test_the_answer_is_kept_for_each_processor_and_said(timed, capsys):
    timed[0].update({"OpenVINO in bfloat16": 0.25, "TensorFlow in bfloat16": 0.7})
    line = (
        "engine: OpenVINO in bfloat16, 2.8 times as fast as TensorFlow in bfloat16 on Model One (cache/engine.json)\n"
    )
    assert resolved() == resolved() and len(timed[1]) == 1
    assert capsys.readouterr().out == 2 * line
    processor("Model Two", "avx512_bf16")
    timed[0].update(EQUAL)
    assert resolved() == ("tensorflow", "float32") and len(timed[1]) == 2
    processor("Model One", "avx512_bf16")
    assert resolved() == ("openvino", "bfloat16") and len(timed[1]) == 2
    assert len(json.loads(fastest.PATH.read_text())) == 2


def test_another_limit_or_a_pair_that_is_not_on_file_is_timed(timed, monkeypatch):
    resolved("train.engine=tensorflow")
    resolved()
    monkeypatch.setenv(precision.LIMIT, "AVX512_CORE_BF16")
    resolved()
    assert [len(pairs) for pairs in timed[1]] == [2, 4, 4]


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"a": {"b": "c"}}', '{"a": {"b": -1}}', '{"a": {"b": NaN}}', "[" * 30000, "x" * 40000]
)
def test_a_damaged_file_is_replaced(timed, content):
    fastest.PATH.parent.mkdir()
    fastest.PATH.write_text(content)
    resolved()
    assert len(timed[1]) == 1 and set(*json.loads(fastest.PATH.read_text()).values()) == EQUAL.keys()


def test_without_a_cache_to_write_to_it_is_timed_each_time(timed, monkeypatch, capsys):
    monkeypatch.setattr(fastest.atomic_files, "can_write", lambda path: False)
    assert resolved() == resolved() and len(timed[1]) == 2 and not fastest.PATH.exists()
    assert capsys.readouterr().out.endswith("on Model One\n")


def test_of_runs_that_start_together_one_measures_and_the_others_wait(timed, monkeypatch):
    """Threads stand for processes: each opens the lock's file anew."""

    def measure(pairs, inner=fastest._seconds):
        time.sleep(0.3)
        return inner(pairs)

    monkeypatch.setattr(fastest, "_seconds", measure)
    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(lambda _: resolved(), range(3))) == {("tensorflow", "float32")}
    assert len(timed[1]) == 1


def test_openvino_is_refused_with_what_it_cannot_do():
    for override in ("train.precision=float16", "train.strategy=mirrored"):
        with pytest.raises(
            InputError, match="engine must be auto or tensorflow with float16 or with strategy mirrored"
        ):
            config.load_settings(None, ["train.engine=openvino", override])


def test_engines_are_timed(monkeypatch):
    """On a small batch; in bfloat16 only where a processor has it."""
    monkeypatch.setattr(fastest, "SHAPE", (1, 32, 32, 3))
    names = ["float32", *(["bfloat16"] if precision.has_bfloat16() else [])]
    pairs = [Pair(engine, name) for engine in ("tensorflow", "openvino") for name in names]
    assert all(seconds > 0 for seconds in fastest._seconds(pairs).values())


@pytest.mark.parametrize("override, base", [("train.features=end_to_end", "resnet50"), ("model.base=cnn", "cnn")])
def test_openvino_is_refused_where_no_features_are_computed(override, base):
    words = "^train.engine: must be auto or tensorflow where no frozen base computes features .*, got openvino"
    with pytest.raises(InputError, match=words):
        config.load_settings(None, ["train.engine=openvino", override])
    assert config.load_settings(None, [override]).model.base == base


def test_openvino_in_bfloat16_is_refused_on_a_processor_without_it(timed):
    processor("Model Two", "avx2")
    with pytest.raises(InputError, match="with OpenVINO on this processor, got 'bfloat16'"):
        precision.use_device("bfloat16", engine="openvino")


def test_the_measurement_makes_no_variables(monkeypatch):
    """Several workers would have to create them together, and only those measure whose cache has no answer."""
    monkeypatch.setattr(fastest.tf, "Variable", None)
    made = []
    with fastest.tf.variable_creator_scope(lambda create, **options: made.append(options) or create(**options)):
        fastest._network("float32").get_concrete_function()
    assert made == []
