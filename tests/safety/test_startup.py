"""A command starts quickly for --help, and ends with 130 or 143 and prints nothing on Ctrl-C and SIGTERM."""

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
# What --help must not load: the inner parts of packages, of which the names alone may be there.
SLOW = ["tensorflow.python", "keras.layers", "keras_tuner", "sklearn", "scipy.stats", "matplotlib", "seaborn"]
LOADED = f"""
import runpy, sys
sys.path.insert(0, "")
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print([name for name in {SLOW} if name in sys.modules], file=sys.stderr)
"""
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
# Wrong input, which is found after all imports.
sys.argv = [command, "--no-such-option"]
runpy.run_path(command, run_name="__main__")
"""


def start(command, number=0, chosen=""):
    arguments = [sys.executable, "-c", COUNTED, ROOT / command, str(int(number)), str(chosen)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_that_is_slow(command):
    arguments = [sys.executable, "-c", LOADED, command]
    done = subprocess.run([*arguments, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: ") and done.stderr == "[]\n"


def test_all_but_help_loads_modules_as_they_are_imported():
    arguments = [sys.executable, "-c", LOADED, "train.py", "--no-such-option"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "'tensorflow.python'" in done.stderr


@pytest.mark.parametrize("mode", ["--split", "--check"])
def test_a_split_is_made_and_checked_without_what_draws_and_trains(tree, tmp_path, mode):
    settings = ["data.protocol=image", f"data.folds={tree}/Folds.csv", f"data.root={tree}", "data.test_per_class=2"]
    (tmp_path / "list.csv").write_text("filename,set\n")
    done = subprocess.run(
        [sys.executable, "-c", LOADED, ROOT / "data.py", mode, tmp_path / "list.csv", *settings],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    loaded = done.stderr.splitlines()[-1]
    assert "sklearn" in loaded and not [name for name in ("tensorflow", "matplotlib", "seaborn") if name in loaded]


def test_the_table_is_drawn_without_tensorflow(tree, tmp_path):
    settings = ["data.protocol=image", f"data.folds={tree}/Folds.csv", f"data.root={tree}", "data.test_per_class=2"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, ROOT / "data.py", "--out", tmp_path / "drawn", *settings],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    loaded = done.stderr.splitlines()[-1]
    assert "seaborn" in loaded and "tensorflow" not in loaded and (tmp_path / "drawn/samples.png").is_file()


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
    refusal = process.communicate()[1]
    seconds = time.monotonic() - begun
    for _ in range(20):
        process = start(command)
        assert process.stdout.readline() == "started\n"
        time.sleep(rng.uniform(0, seconds))
        process.send_signal(number)
        out, err = process.communicate()
        assert out == "" and (process.returncode, err) in [(STATUS[number], ""), (2, refusal)]
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
        "safety.startup.start_command('__main__'); signal.raise_signal(2); print('there')"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).stdout == b"there\n"


def test_garbage_is_collected_from_the_end_of_the_imports_on():
    code = """if True:
        import gc
        import safety.startup
        safety.startup.start_command("__main__")
        import pandas
        print(gc.isenabled(), gc.get_freeze_count())
        from safety import command_line
        command_line.run(lambda arguments: print(gc.isenabled(), gc.get_freeze_count() > 100_000))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["False 0", "True True"], done.stderr
