"""More than one device: the GPUs of a host, and the workers of several hosts, by TensorFlow's own strategies.

A worker is a process; each host has one, and the first of them writes the run's folder. Every replica, a device of a
worker, takes an equal share of each batch, and their gradients are summed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

import config
from devices import precision
from safety import signals
from safety.errors import InputError

# What TensorFlow raises in the workers that are left when one is gone.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.FailedPreconditionError)


@contextlib.contextmanager
def scope(settings: config.Settings, run: Path) -> Iterator[Path]:
    """Puts the model that is built within on all devices; starts this process again when another worker was lost.

    It is entered before the first operation of TensorFlow, and waits until all workers are there.

    Args:
        settings: of the run, the same in all workers.
        run: the run's folder, which all workers see.

    Yields:
        The folder to write to: in the first worker the run's own, in the others a temporary one with the same files.

    Raises:
        InputError: TF_CONFIG names no cluster, or the run of several workers has no name; a worker was lost before
            there was anything to go on with.
    """
    try:
        strategy = _strategy(settings.train, run)
        with strategy.scope() if strategy else contextlib.nullcontext():
            assert_same(settings=settings.to_yaml())
            with _own_folder(run) as own:
                yield own
    except LOST as error:
        if settings.train.strategy == "one" or "TF_CONFIG" not in os.environ:
            raise
        _start_again(run, error)


def _strategy(train: config.Train, run: Path) -> tf.distribute.Strategy | None:
    """The strategy that `train.strategy` and TF_CONFIG ask for; None for a single device."""
    if train.strategy == "one":
        return None
    gpus = precision.grow_memory()
    if "TF_CONFIG" in os.environ:
        if train.run == "auto" and not run.exists():
            raise InputError("train.run: several workers need one name for their run, train.run=a say, got auto")
        resolver = _cluster()
        print("waiting until all workers are there", flush=True)
        try:
            # SIGTERM is TensorFlow's own until all are there.
            with signals.immediate():
                return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        except tf.errors.UnknownError as error:
            raise InputError(f"TF_CONFIG: this worker cannot listen at its own address: {error.message}") from None
    if train.strategy == "mirrored" or len(gpus) > 1:
        seen = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([one.name for one in seen])
    return None


def _cluster() -> tf.distribute.cluster_resolver.ClusterResolver:
    text = os.environ["TF_CONFIG"]
    try:
        says = json.loads(text)
        hosts = says["cluster"][says["task"]["type"]]
        whole = (
            isinstance(hosts, list)
            and set(says["cluster"]) <= {"chief", "worker"}
            and 0 <= says["task"]["index"] < len(hosts)
        )
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise InputError(
            'TF_CONFIG: needed is {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}} '
            f"with an index of these workers, got {text[:200]}"
        )
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def worker() -> tuple[int, int]:
    """The number of this worker, from 0, and how many there are."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    spec = resolver.cluster_spec().as_dict() if resolver else {}
    tasks = [(job, number) for job in sorted(spec) for number in range(len(spec[job]))]
    return (tasks.index((resolver.task_type, resolver.task_id)), len(tasks)) if tasks else (0, 1)


def device_count() -> int:
    """How many devices this worker computes on."""
    return tf.distribute.get_strategy().num_replicas_in_sync // worker()[1]


def describe() -> str:
    """The devices of a run in words, behind a comma; nothing for a single one."""
    replicas, workers = tf.distribute.get_strategy().num_replicas_in_sync, worker()[1]
    over = f" of {workers} workers" if workers > 1 else ""
    return f", {replicas} devices{over}" if replicas > 1 else ""


@contextlib.contextmanager
def _own_folder(run: Path) -> Iterator[Path]:
    if worker()[0] == 0:
        yield run
        return
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / run.name
        if run.exists():
            own.mkdir()
            for path in filter(Path.is_file, run.glob("[!.]*")):
                shutil.copy(path, own)
        yield own


def _start_again(run: Path, error: Exception) -> None:
    """Replaces this process by one that goes on with the run; it waits for the worker that is missing."""
    if not run.exists():
        raise InputError(f"a worker was lost before the first step ({type(error).__name__}); start all of them again")
    print(
        f"\na worker was lost ({type(error).__name__}); going on as soon as it is there again",
        file=sys.stderr,
        flush=True,
    )
    os.execv(sys.executable, [sys.executable, sys.argv[0], "--resume", str(run)])


def barrier() -> None:
    """Waits until all workers are here."""
    # A number, since TensorFlow's collectives crash on an empty tensor.
    assert_same(nothing=0)


def assert_same(**values: int | str) -> None:
    """Waits until all workers are here and makes sure that they agree.

    Args:
        values: what must be the same in each, by name.

    Raises:
        InputError: it is not; in all workers.
    """
    if worker()[1] == 1:
        return
    numbers = [value if isinstance(value, int) else zlib.crc32(value.encode()) for value in values.values()]
    with signals.immediate():
        told = _gather(tf.constant([numbers], tf.int64))
    told = tf.distribute.get_strategy().experimental_local_results(told)[0].numpy()
    for name, column in zip(values, told.T):
        if len(set(column)) > 1:
            raise InputError(
                f"the workers differ in {name} ({', '.join(map(str, column))}); needed are the same settings and data, "
                "and one folder runs/ and cache/ for all"
            )


@tf.function
def _gather(row: tf.Tensor) -> tf.Tensor:
    def all_rows(row: tf.Tensor) -> tf.Tensor:
        # A copy, since what comes in lies on none of the replicas' devices.
        return tf.distribute.get_replica_context().all_gather(tf.identity(row), axis=0)

    return tf.distribute.get_strategy().run(all_rows, args=(row,))


def share(items: list) -> list:
    """This worker's part of what all have in common; the parts follow each other and differ by one item at most."""
    number, workers = worker()
    return items[len(items) * number // workers : len(items) * (number + 1) // workers]


def replicate(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[list[tf.Tensor]], list[np.ndarray]]:
    """A function of as many tensors as there are devices here, or fewer, that gives each device one of them."""
    strategy, count = tf.distribute.get_strategy(), device_count()
    # Behind a function of Python, since TensorFlow does not hand the replicas' values to one with a signature.
    run = tf.function(lambda values: strategy.run(lambda value: function(value), args=(values,)))

    def on_devices(tensors: list[tf.Tensor]) -> list[np.ndarray]:
        filled = tensors + tensors[-1:] * (count - len(tensors))
        values = strategy.experimental_distribute_values_from_function(
            lambda context: filled[context.replica_id_in_sync_group % count]
        )
        results = strategy.experimental_local_results(run(values))
        return [result.numpy() for result in results[: len(tensors)]]

    return on_devices if strategy.num_replicas_in_sync > 1 else lambda tensors: [function(tensors[0]).numpy()]


def distribute(batches: tf.data.Dataset, weighted: bool = False) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Cuts each batch into a part for each replica, which differ by one row at most; as it is for a single one.

    This is what TensorFlow's automatic sharding by data does, but that fills the smaller last batch of an epoch with
    the first rows of the next.

    Args:
        batches: of which each worker has the same.
        weighted: whether to add weights with which Keras, which takes the mean over each part and then over the
            parts, comes to the mean over the batch.
    """
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batches

    def cut(replica: tf.Tensor, *batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = tf.shape(batch[0], tf.int64)[0]
        first, after = rows * replica // replicas, rows * (replica + 1) // replicas
        weight = tf.cast((after - first) * replicas, tf.float32) / tf.cast(rows, tf.float32)
        parts = tuple(tensor[first:after] for tensor in batch)
        return (*parts, tf.fill([after - first], weight)) if weighted else parts

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        count = replicas // context.num_input_pipelines
        own = tf.data.Dataset.range(context.input_pipeline_id * count, (context.input_pipeline_id + 1) * count)
        parts = batches.flat_map(lambda *batch: own.map(lambda replica: cut(replica, *batch)))
        return parts.prefetch(tf.data.AUTOTUNE)

    return strategy.distribute_datasets_from_function(of_worker)
