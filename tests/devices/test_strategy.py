import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_tree import tiny_settings

import config
import train
from devices import keras_stack, strategy
from features import store
from safety.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
ADDONS_ONLY = pytest.mark.skipif(keras_stack.KERAS_3, reason="Keras 3 refuses several devices, see test_keras_stack")
# The last batch of an epoch has a single row, so that all devices but one get nothing of it.
UNEVEN = ["data.upsample=false", "train.batch_size=15", "train.epochs=3"]
SEVERAL = """
import sys
import safety.startup
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(sys.argv.pop(1)))
import train
from safety import command_line
command_line.run(train.main)
"""
# What the workers of a run do together, without a run.
MEETING = """
from pathlib import Path
import config
from devices import keras_stack, strategy
from safety import command_line

settings = config.load_settings(None, ["train.run=a"])


def main(arguments):
    run = Path("runs/a")
    with strategy.scope(settings, run) as folder:
        number, workers = strategy.worker()
        print(number, workers, strategy.device_count(), folder == run, (folder / "split.csv").read_text(), *strategy.share([*"abc"]))
        strategy.assert_same(epoch=int(arguments[0]))


command_line.run(main)
"""


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


class Workers:
    """Processes on this host that take each other for hosts."""

    def __init__(self, place, count=2):
        self.place, self.addresses = place, [f"localhost:{port}" for port in free_ports(count)]
        self.started = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.started:
            process.kill()

    def start(self, number, *command):
        task = {"cluster": {"worker": self.addresses}, "task": {"type": "worker", "index": number}}
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=self.place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "TF_CONFIG": json.dumps(task), "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.started.append(process)
        return process

    def all(self, *command):
        return [self.start(number, *command) for number in range(len(self.addresses))]


def outcomes(processes):
    """Exit status, standard output and standard error of each."""
    outputs = [process.communicate(timeout=500) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs)]


def cached(place):
    """All features under a folder's cache, by name."""
    cached = {}
    for folder in (place / "cache").glob("features-*"):
        features = store.Store(folder, (512,), np.float32)
        features.missing([])
        cached |= {(folder.name, name): features.memmap()[row] for name, row in features.places.items()}
    return cached


def assert_same_run(place, alone, tolerance=1e-4):
    expected, history = (pd.read_csv(folder / "runs/tiny/history.csv") for folder in (alone, place))
    pd.testing.assert_frame_equal(history, expected, rtol=0, atol=tolerance)
    features, others = cached(place), cached(alone)
    assert features.keys() == others.keys()
    for name, values in features.items():
        # On processors with AVX2 alone, the last bits of a feature depend on the place of its image in the batch.
        np.testing.assert_allclose(values, others[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tree, tmp_path_factory):
    """Where a run on a single device was made."""
    place = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train.main(tiny_settings(tree, *UNEVEN))
    return place


def start_mirrored(place, devices, *settings):
    command = [sys.executable, "-c", SEVERAL, str(devices), *settings, "train.strategy=mirrored"]
    result = subprocess.run(
        command, cwd=place, text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@ADDONS_ONLY
@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.long)])
def test_several_devices_of_a_host_train_as_one_does(tree, alone, tmp_path, devices):
    assert f"device: CPU, {os.cpu_count()} cores, float32, {devices} devices\n" in start_mirrored(
        tmp_path, devices, *tiny_settings(tree, *UNEVEN)
    )
    assert_same_run(tmp_path, alone)


@ADDONS_ONLY
@pytest.mark.long
@pytest.mark.parametrize("mode, tolerance", [
    (["train.features=end_to_end"], 1e-4),
    (["augment.flip=true", "augment.rotation=20"], 1e-4),
    # From scratch what is rounded otherwise grows, and a fused BatchNorm estimates the variance without bias.
    (["model.base=cnn", "train.epochs=2"], 5e-4),
])  # fmt: skip
def test_several_devices_train_in_each_mode_as_one_does(tree, tmp_path, monkeypatch, mode, tolerance):
    for place in (tmp_path / "alone", tmp_path / "several"):
        place.mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    train.main(tiny_settings(tree, *UNEVEN, *mode))
    start_mirrored(tmp_path / "several", 2, *tiny_settings(tree, *UNEVEN, *mode))
    assert_same_run(tmp_path / "several", tmp_path / "alone", tolerance)


@ADDONS_ONLY
def test_a_worker_that_waits_for_the_others_can_be_stopped(tmp_path):
    with Workers(tmp_path) as workers:
        waiting = workers.start(0, "-c", MEETING, 0)
        assert waiting.stdout.readline() == "waiting until all workers are connected\n"
        time.sleep(1)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=60) == -signal.SIGINT


def kill(workers, processes, number, epochs):
    """Kills a worker when so many epochs are done, and starts it again."""
    history = workers.place / "runs/tiny/history.csv"
    while not (history.exists() and history.read_text().count("\n") > epochs):
        assert all(process.poll() is None for process in processes), outcomes(processes)
        time.sleep(0.02)
    processes[number].kill()
    processes[number].communicate()
    processes[number] = workers.start(number, ROOT / "train.py", "--resume", "runs/tiny")


@ADDONS_ONLY
@pytest.mark.parametrize("count, kills", [
    (2, [1]),
    pytest.param(2, [], marks=pytest.mark.long),
    pytest.param(2, [0, 1, 0], marks=pytest.mark.long),
    pytest.param(3, [2], marks=pytest.mark.long),
])  # fmt: skip
def test_a_run_of_several_workers_survives_the_death_of_one(tree, alone, tmp_path, count, kills):
    with Workers(tmp_path, count) as workers:
        processes = workers.all(ROOT / "train.py", *tiny_settings(tree, *UNEVEN))
        for done, number in enumerate(kills, start=1):
            kill(workers, processes, number, done)
        results = outcomes(processes)
    assert [status for status, _, _ in results] == [0] * count, results
    assert all(out.splitlines()[-1] == "run: runs/tiny" for _, out, _ in results)
    if kills == [1]:
        assert re.search(r"a worker was lost \(\w+\); training goes on as soon as it is back", results[0][2])
    assert "Traceback" not in "".join(err for _, _, err in results)
    assert_same_run(tmp_path, alone)
    assert len(json.loads((tmp_path / "runs/tiny/environment.json").read_text()).get("resumed", [])) == len(kills)


@ADDONS_ONLY
def test_workers_share_what_is_to_do_and_begin_at_one_epoch(tmp_path):
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    (run / "split.csv").write_text("split")
    with Workers(tmp_path) as workers:
        results = outcomes([workers.start(number, "-c", MEETING, epoch) for number, epoch in enumerate([3, 2])])
    assert [out.splitlines()[-1] for _, out, _ in results] == ["0 2 1 True split a", "1 2 1 False split b c"]
    for status, _, err in results:
        assert status == 2 and "error: the workers differ in epoch (3, 2); needed are the same settings" in err


@ADDONS_ONLY
@pytest.mark.parametrize("given, settings, words", [
    ("two hosts", [], "got two hosts"),
    ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', [], "the index of one of these workers"),
    ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', [], '"ps": '),
    ("{}", ["train.run=auto"], "several workers need one name for their run"),
])  # fmt: skip
def test_what_names_no_cluster_is_refused(tree, tmp_path, monkeypatch, given, settings, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CONFIG", given)
    with pytest.raises(InputError, match=re.escape(words)):
        train.main(tiny_settings(tree, *settings))


def test_one_device_is_one_whatever_there_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "anything")
    settings = config.load_settings(None, ["train.strategy=one"])
    with strategy.scope(settings, tmp_path / "run") as folder:
        assert folder == tmp_path / "run" and strategy.worker() == (0, 1) and strategy.describe() == ""


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_shares_are_all_and_nearly_equal(monkeypatch, workers):
    items = list(range(random.Random(0).randint(50, 90)))
    parts = []
    for number in range(workers):
        monkeypatch.setattr(strategy, "worker", lambda number=number: (number, workers))
        parts.append(strategy.share(items))
    assert sum(parts, []) == items and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_cache_that_is_not_shared_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    with pytest.raises(InputError, match="cache/ must be one folder for all hosts"):
        store.wait_for(store.Store(tmp_path, (4,), np.float32), ["a"])


def test_the_line_for_slurm_gives_each_host_its_number(tmp_path):
    """The script of docs/devices.md, with stand-ins for Slurm's commands and for Python."""
    script = next(
        text for text in (ROOT / "docs" / "devices.md").read_text().split("```\n") if text.startswith("#!/bin/bash")
    )
    for name, does in {
        "scontrol": "printf 'node2\\nnode10\\n'",
        "srun": 'shift; SLURM_NODEID=0 "$@"; SLURM_NODEID=1 "$@"',
        "python": 'echo "$TF_CONFIG" "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[2,10]"}
    for arguments in (["train.py", "train.run=two"], ["train.py", "--resume", "runs/two"]):
        lines = subprocess.check_output(["bash", "-c", script], cwd=tmp_path, env=environment, text=True).splitlines()
        for number, line in enumerate(lines):
            value, rest = json.JSONDecoder().raw_decode(line)
            assert value["cluster"] == {"worker": ["node2:8470", "node10:8470"]}
            assert value["task"] == {"type": "worker", "index": number} and line[rest:].split() == arguments
        assert len(lines) == 2
        (tmp_path / "runs/two").mkdir(parents=True, exist_ok=True)
