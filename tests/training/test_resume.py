import errno
import gc
import json
import os
import re
import resource
import signal
import sys
import time

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from killed_runs import HALF, MODES, StopError, dying, epochs_of, start, what_is_left
from memory import in_use
from tiny_tree import tiny_settings

import config
import evaluate
import train
from features import extraction, feature_datasets
from safety import atomic_files, command_line, lock
from safety.errors import InputError
from training import callbacks, resume


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_how_to_go_on(tree, tmp_path, number, status):
    run = tmp_path / "runs" / "tiny"
    process = start(tmp_path, *tiny_settings(tree, *MODES["from_scratch"], "train.epochs=5000"))
    while epochs_of(run) < 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == status, stderr
    assert stderr.strip().splitlines()[-1] == "stopped; go on with: python train.py --resume runs/tiny"
    assert "Traceback" not in stderr and not list(run.glob(".[0-9]*"))


def amend(run, **more):
    path = run / "environment.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_saved_state_is_all_that_the_next_epoch_needs(stopped, tree, work, capsys):
    """The second half of a run, from the state and the settings alone, is the second half of the whole run."""
    (work / "runs/half/evaluation").mkdir()
    train.main(["--resume", "runs/half"])
    assert "runs/half/evaluation is of the epochs so far" in capsys.readouterr().out
    train.main(tiny_settings(tree, *HALF, "train.run=whole"))
    assert what_is_left(work / "runs/half") == what_is_left(work / "runs/whole")
    environment = json.loads((work / "runs/half/environment.json").read_text())
    assert len(environment["resumed"]) == 1 and environment["seed"] == 0


def test_a_run_of_an_earlier_version_goes_on_as_it_began(tree, work, monkeypatch):
    """Its config.yaml has no train.select and a switch for data.upsample."""
    settings = tiny_settings(tree, *HALF, "train.select=plain", "data.upsample=both")
    train.main([*settings, "train.run=whole"])
    with monkeypatch.context() as patch, pytest.raises(StopError):
        patch.setattr(callbacks.StopOnNaN, "on_epoch_begin", dying(callbacks.StopOnNaN.on_epoch_begin))
        train.main([*settings, "train.run=old"])
    path = work / "runs/old/config.yaml"
    old = path.read_text().replace("  select: plain\n", "").replace("upsample: both", "upsample: true")
    assert len(old) < len(path.read_text()) and "upsample: true" in old
    path.write_text(old)
    train.main(["--resume", "runs/old"])
    assert what_is_left(work / "runs/old") == what_is_left(work / "runs/whole")
    assert "balanced" not in (work / "runs/old/history.csv").read_text()


def test_a_finished_run_is_not_resumed(stopped):
    train.main(["--resume", "runs/half"])
    with pytest.raises(InputError, match="runs/half is finished; evaluate it with: python evaluate.py runs/half"):
        train.main(["--resume", "runs/half"])


@pytest.mark.parametrize("spoil, arguments, words", [
    (lambda run: None, ["--config", "mine.yaml"], "takes the settings from runs/half/config.yaml and from no other file, got mine.yaml"),
    (lambda run: (run / "config.yaml").unlink(), [], "runs/half is no folder of a run: it has no config.yaml"),
    (lambda run: (run / "split.csv").write_text("other"), [], "runs/half/split.csv is no longer what runs/half was started with"),
    (lambda run: amend(run, data_sha256="x"), [], "the images are no longer what runs/half was started with"),
    (lambda run: amend(run, weights_sha256="x"), [], "the base's weights are no longer what"),
    (lambda run: (run / "environment.json").write_text("[]"), [], "environment.json: no environment of a run"),
    (lambda run: (run / "best_model.keras").unlink(), [], "best_model.keras: is missing"),
    (lambda run: half(run / "best_model.keras"), [], "runs/half/best_model.keras: damaged"),
    (lambda run: half(run / "best_model.keras"), ["train.epochs=9"], "runs/half/best_model.keras: damaged"),
    (lambda run: (run / "state.npz").unlink(), [], "state.npz: is missing"),
    (lambda run: (run / "state.npz").unlink(), ["train.epochs=9"], "state.npz: is missing"),
    (lambda run: np.savez_compressed(run / "state.npz", says="{}"), [], "its members are compressed"),
    (lambda run: (run / "state.npz").write_bytes(b"PK half"), [], "state.npz: damaged"),
    (lambda run: np.savez(run / "state.npz", says='{"epoch": 9, "first": 0, "best": 0.1, "history": []}'), [], "0 epochs, needed are 9"),
    (lambda run: np.savez(run / "state.npz", says='{"epoch": "x"}'), [], "state.npz: damaged"),
    (lambda run: np.savez(run / "state.npz", says="[" * 10**5), [], "state.npz: damaged"),
])  # fmt: skip
def test_what_cannot_be_resumed_is_refused(stopped, work, spoil, arguments, words):
    spoil(work / "runs" / "half")
    before = contents(work / "runs" / "half")
    with pytest.raises(InputError, match=words):
        train.main(["--resume", "runs/half", *arguments])
    assert contents(work / "runs" / "half") == before


def test_the_state_of_another_network_is_refused(stopped, work):
    np.savez(work / "runs/half/state.npz", says='{"epoch": 1, "first": 0, "best": 0.1, "history": [{}]}')
    before = contents(work / "runs/half")
    with pytest.raises(InputError, match="state.npz: .*needed are .* arrays, got 0"):
        train.main(["--resume", "runs/half"])
    # The record names the attempt.
    after = contents(work / "runs/half")
    assert {path.name for path in before if after[path] != before[path]} == {"environment.json"}
    assert after.keys() == before.keys()


def test_a_later_phase_does_not_begin_without_a_state(tmp_path):
    with pytest.raises(InputError, match="state.npz: is missing, though epoch 2 was finished"):
        resume.restore(None, tmp_path, first=2)


def test_a_missing_run_is_refused_with_the_nearest_one(stopped):
    with pytest.raises(InputError, match="--resume: runs/hafl is no folder of a run.*; the nearest run is runs/half$"):
        train.main(["--resume", "runs/hafl"])


def test_two_processes_never_train_in_one_folder(stopped, work):
    with (
        lock.exclusive(work / "runs/half"),
        pytest.raises(InputError, match="another process is training or evaluating .*runs/half"),
    ):
        train.main(["--resume", "runs/half"])
    train.main(["--resume", "runs/half"])


@pytest.mark.parametrize("mode", ["cached", "from_scratch"])
def test_a_nan_loss_is_named_with_its_files(tree, work, mode):
    with pytest.raises(
        InputError, match=r"the loss is (nan|inf) in epoch \d+, steps \d+ to \d+, at a learning rate of"
    ) as stop:
        train.main(
            tiny_settings(tree, *MODES[mode], "train.maximal_lr=1e38", "train.initial_lr=1e37", "train.epochs=6")
        )
    rows = pd.read_csv(work / "runs/tiny/nan_steps.csv")
    assert rows.filename[0] in str(stop.value) and len(rows) > 0
    split = pd.read_csv(work / "runs/tiny/split.csv")
    assert set(rows.filename) <= set(split.filename[split.set == "train"])


def test_the_files_named_are_those_of_the_steps(tmp_path):
    """The names of a step are the rows that the data set gave at that step."""
    settings = config.load_settings(None, ["train.batch_size=4", "data.seed=5", "data.root=.", "train.epochs=3"])
    names = pd.Series([f"{number}.png" for number in range(10)])
    watcher = callbacks.StopOnNaN(tmp_path, names, settings, None)
    watcher.on_epoch_begin(2)
    features = extraction.Features(np.arange(10, dtype=np.float32)[:, None], np.arange(10)[:, None], np.arange(10))
    batches = list(feature_datasets.train_dataset(features, settings, first=2))
    for step, (rows, _) in enumerate(batches):
        expected = [f"{row}.png" for row in rows.numpy()]
        assert watcher._files(step, step + 1).filename.tolist() == expected


def full_after(monkeypatch, writes):
    """Lets so many writes through; then the disk is full."""
    done, fsync = [0], os.fsync

    def full(number):
        done[0] += 1
        if done[0] > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    return done


def shell(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.run(script.main)
    return ended.value.code or 0


def count_writes(monkeypatch, script, *arguments):
    with monkeypatch.context() as patch:
        done = full_after(patch, 10**9)
        assert shell(patch, script, *arguments) == 0
    return done[0]


@pytest.mark.parametrize("mode, shares", [
    ("from_scratch", [0.2, 0.75]), pytest.param("cached", None, marks=pytest.mark.long),
])  # fmt: skip
def test_a_disk_that_is_full_at_any_write_leaves_a_run_that_goes_on(
    tree, work, monkeypatch, capsys, record_property, mode, shares
):
    """At every write, or at two: before the run has its folder, and in the second epoch, after which it is resumed."""
    settings = tiny_settings(tree, *MODES[mode], "train.epochs=2")
    train.main([*settings, "train.run=cold"])
    # The cache is warm from here on, so that every write is one of the run's.
    writes = count_writes(monkeypatch, train, *settings, "train.run=warm")
    expected = what_is_left(work / "runs/warm")
    tried = [int(share * writes) for share in shares] if shares else range(writes)
    begun = []
    for number in tried:
        name = f"full{number}"
        with monkeypatch.context() as patch:
            full_after(patch, number)
            capsys.readouterr()
            assert shell(patch, train, *settings, f"train.run={name}") == 2
            stderr = capsys.readouterr().err
            assert stderr.count("error:") == 1 and "Traceback" not in stderr
            assert re.search(r"error: runs/.*: No space left on device; [0-9.]+ MiB are free there\n$", stderr), stderr
        begun.append((work / "runs" / name).exists())
        again = ["--resume", f"runs/{name}"] if begun[-1] else [*settings, f"train.run={name}"]
        # At the very last write the run is complete before the disk is reported full.
        assert resume.is_finished(work / "runs" / name) or shell(monkeypatch, train, *again) == 0
        assert what_is_left(work / "runs" / name) == expected
    assert set(begun) == {False, True}
    outcome = f"disk full at {len(tried)} of {writes} writes of a run: every run went on and ended bit-identical"
    record_property("outcomes", outcome)


def test_a_disk_that_is_full_in_the_report_leaves_the_last_one(copy, without_figures, monkeypatch, capsys):
    before = {path.name: path.read_bytes() for path in (copy / "evaluation").iterdir()}
    with monkeypatch.context() as patch:
        full_after(patch, 6)
        assert shell(patch, evaluate, "runs/tiny") == 2
        assert capsys.readouterr().err.count("error:") == 1
    after = {path.name: path.read_bytes() for path in (copy / "evaluation").iterdir()}
    assert after.keys() == before.keys() and after["report.html"] == before["report.html"]
    assert shell(monkeypatch, evaluate, "runs/tiny") == 0


@pytest.mark.parametrize("mode, limit, where, path", [
    ("cached", 200_000, "extraction", "cache/features-.*/arrays.bin"),
    pytest.param("from_scratch", 500_000, "checkpoint", "runs/tiny/best_model.keras", marks=pytest.mark.long),
])  # fmt: skip
def test_a_limit_of_the_system_is_met_with_one_message(tree, tmp_path, mode, limit, where, path):
    """A real limit on the size of files in place of a made-up error."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    settings = tiny_settings(tree, *MODES[mode], "train.epochs=1")
    process = start(tmp_path, *settings, preexec_fn=limited)
    stderr = process.communicate()[1]
    assert process.returncode == 2 and stderr.count("error:") == 1 and "Traceback" not in stderr, stderr
    assert re.search(rf"error: {path}: cannot be written or read: .*File too large", stderr), stderr
    assert (tmp_path / "runs/tiny").exists() == (where == "checkpoint")
    again = ["--resume", "runs/tiny"] if where == "checkpoint" else settings
    process = start(tmp_path, *again)
    assert process.wait() == 0, process.stderr.read()


@pytest.mark.parametrize("mode", [
    "from_scratch", pytest.param("cached", marks=pytest.mark.long), pytest.param("fine_tuned", marks=pytest.mark.long),
])  # fmt: skip
def test_the_same_settings_give_the_same_bits(tree, work, mode):
    outcomes = []
    for name in ("one", "two"):
        os.rename("cache", f"cache-{name}") if os.path.exists("cache") else None
        train.main(tiny_settings(tree, *MODES[mode], "train.epochs=2", f"train.run={name}"))
        outcomes.append(what_is_left(work / "runs" / name))
    assert outcomes[0] == outcomes[1]


def test_an_error_of_tensorflow_is_one_line(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with (
        pytest.raises(InputError, match="TensorFlow: no such file"),
        resume.advice_on_stop(tmp_path / "run", "--resume run"),
    ):
        raise tf.errors.NotFoundError(None, None, "no such file\nand more")
    assert "go on with: python train.py --resume run" in capsys.readouterr().err


def test_a_disk_that_is_full_for_tensorboard_is_named_with_its_free_space(tmp_path):
    message = "{{function_node CreateSummaryFileWriter}} run/tensorboard/events; No space left on device"
    with (
        pytest.raises(
            InputError, match=r"^TensorFlow: run/tensorboard/events; No space left on device; [\d.]+ MiB are free"
        ),
        resume.advice_on_stop(tmp_path / "run", "--resume run"),
    ):
        raise tf.errors.ResourceExhaustedError(None, None, message)


def test_op_determinism_is_turned_on_when_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(train.precision.tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    train.precision.use_device("float32")
    assert asked == []
    train.precision.use_device("float32", deterministic=True)
    assert asked == [True]


@pytest.mark.long
def test_memory_does_not_grow_over_epochs(tree, work, monkeypatch, record_property):
    on_epoch_begin, used, objects = callbacks.StopOnNaN.on_epoch_begin, [], []

    def measured(self, epoch, logs=None):
        on_epoch_begin(self, epoch, logs)
        if epoch and epoch % 50 == 0:
            used.append(in_use())
            objects.append(len(gc.get_objects()))

    monkeypatch.setattr(callbacks.StopOnNaN, "on_epoch_begin", measured)
    train.main(tiny_settings(tree, "train.epochs=201"))
    amounts = ", ".join(f"{mib:.1f}" for mib in used)
    record_property("outcomes", f"MiB in use after 50, 100, 150 and 200 epochs: {amounts}")
    # 20 KiB and 2 containers an epoch; numbers that TensorFlow itself loses (its issue 62551) are neither.
    assert len(used) == 4 and max(np.diff(used)) < 1 and max(np.diff(objects)) < 100, (used, objects)
