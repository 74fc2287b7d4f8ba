"""Several devices: the GPUs of one host, or the workers of several hosts, by TensorFlow's own strategies.

A worker is a process; each host has one, and the first of them writes the run's folder. A replica is one device of a
worker. Every replica takes an equal part of each batch, and their gradients are summed.
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
from devices import keras_stack, precision
from images.dataset_options import BATCHES
from safety import signals
from safety.errors import InputError

# What TensorFlow raises in the other workers when one is lost.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.FailedPreconditionError)


@contextlib.contextmanager
def scope(settings: config.Settings, run: Path) -> Iterator[Path]:
    """Builds the model of the block on all devices; restarts this process with --resume when another worker is lost.

    To be entered before TensorFlow's first operation; waits until all workers are connected.

    Args:
        settings: of the run, the same in all workers.
        run: the run's folder, which all workers see.

    Yields:
        The folder to write to: the run's folder in the first worker, a temporary one with the same files in the others.

    Raises:
        InputError: TF_CONFIG names no cluster, or a run of several workers has no name; a worker was lost before the
            run's folder was there.
    """
    try:
        strategy = _strategy(settings.train, run)
        with strategy.scope() if strategy else contextlib.nullcontext():
            assert_same(settings=settings.to_yaml())
            with _folder_of_worker(run) as folder:
                yield folder
    except LOST as error:
        if settings.train.strategy == "one" or "TF_CONFIG" not in os.environ:
            raise
        _start_again(run, settings.train, error)


def _strategy(train: config.Train, run: Path) -> tf.distribute.Strategy | None:
    """The strategy that `train.strategy` and TF_CONFIG ask for; None for a single device."""
    if train.strategy == "one":
        return None
    gpus = precision.grow_memory()
    if "TF_CONFIG" in os.environ:
        keras_stack.refuse_several("TF_CONFIG")
        if train.engine == "openvino":
            raise InputError("train.engine: must be auto or tensorflow with several workers (TF_CONFIG), got openvino")
        if train.run == "auto" and not run.exists():
            raise InputError(
                "train.run: several workers need one name for their run, for example train.run=a, got auto"
            )
        resolver = _cluster()
        print("waiting until all workers are connected", flush=True)
        try:
            # TensorFlow handles SIGTERM itself until all are connected.
            with signals.immediate():
                return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
        except tf.errors.UnknownError as error:
            raise InputError(f"TF_CONFIG: this worker cannot listen at its own address: {error.message}") from None
    if train.strategy == "mirrored":
        keras_stack.refuse_several("train.strategy=mirrored")
    if len(gpus) > 1 and train.engine == "openvino":
        raise InputError("train.engine: must be auto or tensorflow with several GPUs, got openvino")
    if train.strategy == "mirrored" or (len(gpus) > 1 and not keras_stack.KERAS_3):
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return None


def _cluster() -> tf.distribute.cluster_resolver.ClusterResolver:
    text = os.environ["TF_CONFIG"]
    try:
        value = json.loads(text)
        hosts = value["cluster"][value["task"]["type"]]
        valid = (
            isinstance(hosts, list)
            and set(value["cluster"]) <= {"chief", "worker"}
            and 0 <= value["task"]["index"] < len(hosts)
        )
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise InputError(
            'TF_CONFIG: needed is {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}} '
            f"with the index of one of these workers, got {text[:200]}"
        )
    return tf.distribute.cluster_resolver.TFConfigClusterResolver()


def worker() -> tuple[int, int]:
    """The number of this worker, from 0, and the number of workers."""
    resolver = tf.distribute.get_strategy().cluster_resolver
    spec = resolver.cluster_spec().as_dict() if resolver else {}
    tasks = [(job, number) for job in sorted(spec) for number in range(len(spec[job]))]
    return (tasks.index((resolver.task_type, resolver.task_id)), len(tasks)) if tasks else (0, 1)


def is_distributed() -> bool:
    """Whether TensorFlow distributes the run over devices, of this worker or of several; it may be a single one."""
    return tf.distribute.has_strategy()


def device_count() -> int:
    """How many devices this worker computes on."""
    return tf.distribute.get_strategy().num_replicas_in_sync // worker()[1]


def describe() -> str:
    """The number of devices of a run in words, after a comma; empty where there is a single one."""
    replicas, workers = tf.distribute.get_strategy().num_replicas_in_sync, worker()[1]
    gpus = len(tf.config.list_physical_devices("GPU"))
    if replicas == 1:
        return f", the first of {gpus} GPUs alone" if gpus > 1 else ""
    of_workers = f" of {workers} workers" if workers > 1 else ""
    return f", {replicas} devices{of_workers}"


@contextlib.contextmanager
def _folder_of_worker(run: Path) -> Iterator[Path]:
    if worker()[0] == 0:
        yield run
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / run.name
        if run.exists():
            folder.mkdir()
            for path in filter(Path.is_file, run.glob("[!.]*")):
                shutil.copy(path, folder)
        yield folder


def _start_again(run: Path, train: config.Train, error: Exception) -> None:
    """Replaces this process by one that resumes the run; it waits for the worker that was lost."""
    if not run.exists():
        raise InputError(f"a worker was lost before the first step ({type(error).__name__}); start all of them again")
    print(
        f"\na worker was lost ({type(error).__name__}); training goes on as soon as it is back",
        file=sys.stderr,
        flush=True,
    )
    # The run's folder may not have them yet if --resume changes them.
    epochs = [f"train.epochs={train.epochs}", f"train.fine_tune_epochs={train.fine_tune_epochs}"]
    os.execv(sys.executable, [sys.executable, sys.argv[0], "--resume", str(run), *epochs])


def barrier() -> None:
    """Waits until all workers have reached this point."""
    # A number, since TensorFlow's collectives crash on an empty tensor.
    assert_same(nothing=0)


def assert_same(**values: int | str) -> None:
    """Waits until all workers have reached this point, and checks that they have the same values.

    Args:
        values: the values to compare, by name.

    Raises:
        InputError: a value differs; raised in all workers.
    """
    if worker()[1] == 1:
        return
    numbers = [value if isinstance(value, int) else zlib.crc32(value.encode()) for value in values.values()]
    with signals.immediate():
        gathered = _gather(tf.constant([numbers], tf.int64))
    rows = tf.distribute.get_strategy().experimental_local_results(gathered)[0].numpy()
    for name, column in zip(values, rows.T):
        if len(set(column)) > 1:
            raise InputError(
                f"the workers differ in {name} ({', '.join(map(str, column))}); needed are the same settings and data, "
                "and one folder runs/ and cache/ for all"
            )


@tf.function
def _gather(row: tf.Tensor) -> tf.Tensor:
    def all_rows(row: tf.Tensor) -> tf.Tensor:
        # A copy, since the argument is on none of the replicas' devices.
        return tf.distribute.get_replica_context().all_gather(tf.identity(row), axis=0)

    return tf.distribute.get_strategy().run(all_rows, args=(row,))


def share(items: list) -> list:
    """This worker's part of a list that all have: consecutive items, and the parts differ by one item at most."""
    number, workers = worker()
    return items[len(items) * number // workers : len(items) * (number + 1) // workers]


def replicate(function: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[list[tf.Tensor]], list[np.ndarray]]:
    """Runs a function on all devices of this worker at once, each with its own tensor.

    Args:
        function: of one tensor.

    Returns:
        A function of a list of tensors or arrays, at most one a device, that returns the list of the results.
    """
    strategy, count = tf.distribute.get_strategy(), device_count()
    # Within a Python function, since TensorFlow does not pass the replicas' values to a function with a signature.
    run = tf.function(lambda values: strategy.run(lambda value: function(value), args=(values,)))

    def on_devices(tensors: list[tf.Tensor]) -> list[np.ndarray]:
        filled = [tf.convert_to_tensor(each) for each in tensors + tensors[-1:] * (count - len(tensors))]
        values = strategy.experimental_distribute_values_from_function(
            lambda context: filled[context.replica_id_in_sync_group % count]
        )
        results = strategy.experimental_local_results(run(values))
        return [result.numpy() for result in results[: len(tensors)]]

    return on_devices if is_distributed() else lambda tensors: [function(tensors[0]).numpy()]


def distribute(batches: tf.data.Dataset, weighted: bool = False) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Cuts each batch into one part for each replica; the parts differ by one row at most.

    TensorFlow's automatic sharding by data does the same, but it fills the smaller last batch of an epoch with the
    first rows of the next.

    Args:
        batches: the same in each worker; tuples of tensors of equal length.
        weighted: whether to add sample weights. Keras takes the mean over each part and then over the parts; the
            weights make this the mean over the batch.

    Returns:
        The parts; with a single replica the batches as they are.
    """
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if replicas == 1:
        return batches

    def cut(replica: tf.Tensor, *batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = tf.shape(batch[0], tf.int64)[0]
        first, end = rows * replica // replicas, rows * (replica + 1) // replicas
        weight = tf.cast((end - first) * replicas, tf.float32) / tf.cast(rows, tf.float32)
        parts = tuple(tensor[first:end] for tensor in batch)
        return (*parts, tf.fill([end - first], weight)) if weighted else parts

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        count = replicas // context.num_input_pipelines
        local = tf.data.Dataset.range(context.input_pipeline_id * count, (context.input_pipeline_id + 1) * count)
        parts = batches.flat_map(lambda *batch: local.map(lambda replica: cut(replica, *batch)))
        return parts.prefetch(BATCHES * count)

    return strategy.distribute_datasets_from_function(of_worker)
