"""Runs before any other import: checks the Python version, silences TensorFlow, starts commands quickly and quietly."""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType

if not (3, 9) <= sys.version_info[:2] <= (3, 13):
    print(
        "error: needed is Python 3.9 to 3.11 with requirements.txt (TensorFlow Addons), or 3.10 to 3.13 with "
        f"requirements-keras3.txt (Keras 3), got {sys.version.split()[0]}",
        file=sys.stderr,
    )
    sys.exit(2)

# TensorFlow reads this level at import. Level 2 still reports three missing CUDA plug-ins on machines without a GPU.
LEVEL = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow Addons warns of its end of life at every import; requirements.txt pins versions that work with it.
warnings.filterwarnings("ignore", message=r"\s*TensorFlow Addons")


# What --help loads on first use only: packages that take seconds to import, and all of this project that imports them.
SLOW = ("keras", "pandas", "tensorflow")
PLACES = ("benchmarks", "data", "devices", "evaluation", "features", "images", "model", "training")


class LoadOnUse(importlib.abc.MetaPathFinder):
    """Runs a module when it is first used instead of when it is imported."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in SLOW and name.partition(".")[0] not in PLACES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec and spec.loader:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def start_command(name: str) -> None:
    """Makes the start quick, and Ctrl-C and SIGTERM end a command quietly until `command_line.run` handles them.

    A signal ends the process at once, with status 130 or 143, because an exception in the middle of an import could be
    caught or printed there.

    Args:
        name: `__name__` of the caller; only a command's is `__main__`. Where the module is imported, in a notebook for
            example, nothing changes.
    """
    if name != "__main__":
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        # What the parent process has set to be ignored, as for a job in the background, stays ignored.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.meta_path.insert(0, LoadOnUse())
    # Until `end_imports`. Imports make a million objects that stay, and the collector would go through them many times,
    # which takes a fifth of the start.
    gc.disable()


def end_imports() -> None:
    """Collects garbage from now on, but none of what was imported; does nothing without `start_command`."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Drops what the process writes to standard error, also what C++ code writes."""
    with open(os.devnull, "wb") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Imports TensorFlow without the lines that versions from 2.20 on print at any log level."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            run = spec.loader.exec_module

            def quietly(module: ModuleType) -> None:
                with _without_stderr():
                    run(module)

            spec.loader.exec_module = quietly
        return spec


if LEVEL == "3" and sys.stderr:
    sys.meta_path.insert(0, QuietTensorFlow())
