"""Ctrl-C and SIGTERM while a command starts: it ends with 130 or 143 and prints nothing."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import config

ROOT = Path(config.__file__).parent
COMMANDS = sorted(path.name for path in ROOT.glob("*.py") if "command_line.run(main)" in path.read_text())
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
# Runs a command whose imports from the start-up on are counted; at the chosen one it receives a signal, or, if the
# number of the signal is 0, it says that it has started.
COUNTED = """
import os, runpy, sys
command, number, chosen = sys.argv[1], int(sys.argv[2]), sys.argv[3]
class Counter:
    count = 0
    def find_spec(self, name, path, target=None):
        startup = sys.modules.get("safety.startup")
        # What start-up itself imports comes before its handlers.
        Counter.count += bool(startup) and not startup.__spec__._initializing
        if number and chosen in (str(Counter.count), name):
            os.kill(os.getpid(), number)
        if not number and Counter.count == 1:
            print("started", flush=True)
sys.meta_path.insert(0, Counter())
sys.path.insert(0, os.path.dirname(command))
sys.argv = [command, "--help"]
runpy.run_path(command, run_name="__main__")
"""


def start(command, number=0, chosen=""):
    arguments = [sys.executable, "-c", COUNTED, ROOT / command, str(int(number)), str(chosen)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_in_the_first_imports_ends_a_command_quietly(command, number):
    for chosen in (1, random.Random(f"{command}{number}").randint(2, 120)):
        process = start(command, number, chosen)
        assert process.communicate() == ("", "") and process.returncode == STATUS[number], chosen


@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("module", ["tensorflow.python.framework.ops", "training.tuner"])
def test_the_import_of_tensorflow_changes_nothing(module, number):
    process = start("train.py", number, module)
    assert process.communicate() == ("", "") and process.returncode == STATUS[number]


@pytest.mark.long
@pytest.mark.parametrize("number", STATUS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_at_a_random_moment_of_the_start_ends_a_command_quietly(command, number, record_property):
    process, rng, stopped = start(command), random.Random(number), 0
    process.stdout.readline()
    begun = time.monotonic()
    usage = process.communicate()[0]
    seconds = time.monotonic() - begun
    for _ in range(20):
        process = start(command)
        assert process.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        out, err = process.communicate()
        assert err == "" and (process.returncode, out) in [(STATUS[number], ""), (STATUS[number], usage), (0, usage)]
        stopped += process.returncode == STATUS[number]
    assert stopped
    record_property(
        "outcomes", f"{command}: {stopped} of 20 starts ended by {signal.Signals(number).name}, all quietly"
    )


def test_a_module_that_is_imported_leaves_the_signals_alone():
    code = "import signal; before = signal.getsignal(2), signal.getsignal(15); import config, data; " \
        "assert before == (signal.getsignal(2), signal.getsignal(15))"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_is_ignored_in_the_background_stays_ignored():
    code = "import signal; signal.signal(2, signal.SIG_IGN); import safety.startup; " \
        "safety.startup.exit_on_signals('__main__'); signal.raise_signal(2); print('there')"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).stdout == b"there\n"
