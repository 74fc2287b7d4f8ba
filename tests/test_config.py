import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import config
from safety import command_line
from safety.errors import DataError, InputError

ROOT = Path(config.__file__).parent


def read_yaml(name: str) -> dict:
    return YAML(typ="safe").load((ROOT / name).read_text())


def test_config_yaml_is_complete_and_its_comments_are_those_of_the_schema():
    lines = re.findall(r"^  (\w+): .*?# (.*)$", (ROOT / "config.yaml").read_text(), re.M)
    fields = [field for section in config._fields().values() for field in section.items()]
    assert lines == [(key, field.description) for key, field in fields]


@pytest.mark.parametrize("name", ["sample.yaml", "thesis.yaml"])
def test_the_other_files_hold_only_what_differs(name):
    defaults = config.load_settings().model_dump()
    for section, keys in read_yaml(name).items():
        for key, value in keys.items():
            assert defaults[section][key] != value, f"{section}.{key}"
    config.load_settings(ROOT / name)


def test_the_shell_wins_over_the_file_and_the_file_over_the_defaults(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 3, batch_size: 8}")
    settings = config.load_settings(tmp_path / "mine.yaml", ["train.epochs=4"])
    assert (settings.train.epochs, settings.train.batch_size, settings.train.momentum) == (4, 8, 0.0)


def test_resolved_settings_load_to_themselves(tmp_path):
    settings = config.load_settings(
        None, ["train.initial_lr=1e-5", "data.magnification=40", "train.run=1e3", "augment.flip=true"]
    )
    (tmp_path / "resolved.yaml").write_text(settings.to_yaml())
    assert config.load_settings(tmp_path / "resolved.yaml") == settings


@pytest.mark.parametrize(
    "text, value", [("true", "both"), ("false", "none"), ("both", "both"), ("minority", "minority")]
)
def test_the_switch_of_earlier_versions_is_still_read(text, value):
    assert config.load_settings(None, [f"data.upsample={text}"]).data.upsample == value


def test_a_key_that_a_run_did_not_know_has_the_value_of_then(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"  select: .*\n", "", config.load_settings().to_yaml()))
    assert config.load_settings(path, of_run=True).train.select == "plain"
    # A file of the user is on top of the defaults.
    assert config.load_settings(path).train.select == "balanced"
    path.write_text("data: {seed: 3}")
    settings = config.load_settings(path, of_run=True)
    assert (settings.data.seed, settings.train.epochs, settings.train.select) == (3, 12, "plain")


def test_the_thesis_draws_both_classes_and_selects_by_the_plain_loss():
    settings = config.load_settings(ROOT / "thesis.yaml")
    assert (settings.data.upsample, settings.train.select, settings.train.monitor) == ("both", "plain", "val_loss")
    assert config.load_settings().train.monitor == "val_balanced_loss"


@pytest.mark.parametrize("text, value", [("off", 0.0), ("0", 0.0), ("15", 15.0), ("1.5e1", 15.0)])
def test_amounts_may_be_off(text, value):
    assert config.load_settings(None, [f"augment.rotation={text}"]).augment.rotation == value


@pytest.mark.parametrize("override, words", [
    ("train.epoch=3", "nearest is train.epochs"),
    ("trian.epochs=3", "nearest is train"),
    ("data.mag=40", "data.mag: no such setting; the nearest is data.magnification"),
    ("Data.seed=1", "Data: no such setting; the nearest is data"),
    ("dat.seed=1", "dat: no such setting; the nearest is data"),
    ("data.Fold=1", "data.Fold: no such setting; the nearest is data.fold"),
    ("data.fold=9", "got '9'; data.fold is: official fold that is tested under protocol fold, 1 to 5"),
    ("train.precision=bf16", "'bfloat16' or 'float16', got 'bf16'; the nearest is bfloat16"),
    ("data.protocol=pacient", "got 'pacient'; the nearest is patient"),
    ("data.stain=Macenco", "got 'Macenco'; the nearest is macenko"),
    ("model.trainable_from=conv5_bloc1", "got 'conv5_bloc1'; the nearest is conv5_block1"),
    ("augment.turns=maybe", "augment.turns: input should be true or false, got 'maybe'"),
    ("tune.standardize=[maybe]", "tune.standardize.0: input should be true or false, got 'maybe'"),
    ("train.epochs=0", "train.epochs: input should be greater than or equal to 1, got '0'"),
    ("train.epochs=true", "train.epochs: input should be a valid integer"),
    ("train.epochs=many", "got 'many'; train.epochs is: passes over the training rows, 1 to 100000"),
    ("data.protocol=sheep", "'row', 'image'"),
    ("data.test_per_class=0", "data.test_per_class: must be auto or a whole number, 1 or more, got '0'"),
    ("data.test_per_class=true", "must be auto or a whole number, 1 or more, got 'True'"),
    ("data.test_per_class=all", "must be auto or a whole number, 1 or more, got 'all'"),
    ("data.test_per_class=1.5", "must be auto or a whole number, 1 or more, got '1.5'"),
    ("data.upsample=majority", "'minority', 'both' or 'none'"),
    ("train.select=best", "'balanced' or 'plain'"),
    ("data.magnification=50", "'all', 40, 100, 200 or 400"),
    ("data.valid_fraction=1.0", "data.valid_fraction: input should be less than 1"),
    ("train.initial_lr=1", "initial_lr must be at most maximal_lr"),
    ("train.maximal_lr=.nan", "train.maximal_lr"),
    ("train.run=../elsewhere", "train.run: must be 1 to 100 letters, digits"),
    ("epochs=3", "section.key=value"),
    ("train.epochs", "section.key=value"),
    ("train.epochs=[1", "must be plain YAML"),
    ("data.fold=0x" + "f" * 5000, "line 1: a value without quotes must have at most 1000 characters, got 5002"),
    ("train.epochs=" + "9" * 23, "train.epochs: input should be less than or equal to 100000"),
    ("train.batch_size=" + "9" * 23, "train.batch_size: input should be less than or equal to 100000"),
    ("train.step_size_epochs=" + "9" * 23, "train.step_size_epochs: input should be less than or equal to 100000"),
    ("train.cache_gib=1e308", "train.cache_gib: input should be less than or equal to 1000000"),
    ("data.root=a\u202eb", r"data.root: must be printable characters, at least one, got 'a\u202eb'"),
    ("data.folds=a\x1b[31m", r"data.folds: must be printable characters, at least one, got 'a\x1b[31m'"),
    ("model.weights=", "model.weights: must be printable characters, at least one"),
    ("data.seed=!!python/object/apply:os.getcwd []", "must be plain YAML"),
])  # fmt: skip
def test_wrong_overrides_are_refused_by_name(override, words):
    with pytest.raises(InputError, match=re.escape(words)):
        config.load_settings(None, [override])


def test_no_choice_is_called_the_nearest_where_none_is_alike():
    with pytest.raises(InputError, match="got 'sheep'$"):
        config.load_settings(None, ["data.protocol=sheep"])


@pytest.mark.parametrize("text, words", [
    ("- 1", "sections of keys"),
    ("train: 5", "sections of keys"),
    ("train: {epochs: 1}\nepochs: 4", "mine.yaml: must hold sections of keys, as config.yaml does, got 'epochs: 4'"),
    ("train: {epochs: 1, epochs: 2}", "duplicate key"),
    ("train: {epochs: 1", "line 1"),
    ("a: !!python/name:os.system", "must be plain YAML"),
    ("", "sections of keys"),
    ("train:\n  epochs: many", "mine.yaml: train.epochs: input should be a valid integer, got 'many'"),
    ("train:\n  epoch: 3", "mine.yaml: train.epoch: no such setting; the nearest is train.epochs"),
])  # fmt: skip
def test_wrong_files_are_refused(text, words):
    Path("mine.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(words)):
        config.load_settings("mine.yaml")


@pytest.mark.parametrize("text, words", [
    ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", "line 1 has a tag, anchor, alias or directive"),
    ("data:\n  root: !!python/object/apply:os.system [ls]", "line 2 has a tag"),
    ("%YAML 1.1\n---\ndata: {upsample: no}", "line 1 has a tag, anchor, alias or directive"),
    ("[" * 30000, "line 1 is nested deeper than 10 levels"),
    ("- " * 15000, "line 1 is nested deeper than 10 levels"),
    ("\n".join(" " * n + "a:" for n in range(200)), "line 11 is nested deeper than 10 levels"),
    ("a: " + "9" * 30000, "must be plain YAML"),
    ("- 0x" + "f" * 5000, "must be plain YAML"),
    ("data:\n  fold: 0x" + "f" * 5000, "line 2: a value without quotes must have at most 1000 characters, got 5002"),
    ("a" * 2**15 + "a", "must have at most 32768 bytes, got 32769"),
    ('data: {root: "a\\0b"}', "data.root"),
    ('data: {root: "\\ud800"}', "data.root"),
])  # fmt: skip
def test_yaml_that_expands_runs_code_or_nests_deeply_is_refused(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(words)):
        config.load_settings(tmp_path / "mine.yaml")


def test_a_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "mine.yaml").write_text("\ufefftrain: {epochs: 3}")
    assert config.load_settings(tmp_path / "mine.yaml").train.epochs == 3


@pytest.mark.parametrize("error, status, message", [
    (InputError("no\nfile \x1b[31m"), 2, "error: no file \\x1b[31m\n"),
    (DataError("2 are bad\na.png is\x07 empty\nb.png is gone"), 1, "error: 2 are bad\na.png is\\x07 empty\nb.png is gone\n"),
    (OSError(36, "File name too long", "aaa"), 2, "error: aaa: cannot be written or read: File name too long\n"),
])  # fmt: skip
def test_an_error_ends_in_its_exit_status_and_printable_lines(capsys, error, status, message):
    def main(arguments):
        raise error

    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert (ended.value.code, capsys.readouterr().err) == (status, message)


def test_what_the_terminal_cannot_show_is_escaped(tmp_path):
    code = "from safety import command_line; command_line.run(lambda arguments: print('ü', *arguments))"
    result = subprocess.run(
        [sys.executable, "-c", code, b"\xff"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (result.returncode, result.stdout) == (0, rb"\xfc \udcff" + b"\n")


@pytest.mark.parametrize("arguments", [["runs/\udcff"], ["--out", "\udcff"], ["--folder", "\udcff"]])
def test_arguments_that_are_not_utf_8_are_refused_except_those_of_type_str(arguments):
    parser = command_line.CommandLine("test")
    parser.add_argument("run", nargs="?")
    parser.add_argument("--out")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--images", type=str)
    assert parser.parse(["--images", "\udcff"]).images == "\udcff"
    with pytest.raises(InputError, match="must be UTF-8, got '.*udcff'"):
        parser.parse(arguments)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("none.yaml", "binary.yaml"):
        with pytest.raises(InputError, match=name):
            config.load_settings(tmp_path / name)


def test_options_and_settings_may_come_in_any_order():
    parser = command_line.CommandLine("test")
    config.add_settings(parser)
    args = parser.parse(["train.epochs=1", "--config", "sample.yaml", "data.seed=2"])
    assert (args.config, args.overrides) == ("sample.yaml", ["train.epochs=1", "data.seed=2"])
    with pytest.raises(InputError, match="--nonsense"):
        parser.parse(["--nonsense"])


def test_help_names_every_setting():
    parser = command_line.CommandLine("test")
    config.add_settings(parser)
    text = parser.format_help()
    assert all(f"{name}=" in text for name in config.descriptions())


def test_help_shows_defaults_as_config_yaml_has_them():
    parser = command_line.CommandLine("test")
    config.add_settings(parser)
    lines = {line.split("=")[0].strip(): line for line in parser.epilog.splitlines()}
    assert lines["augment.flip"].endswith("[false]") and lines["tune.standardize"].endswith("[[true, false]]")
    assert lines["data.protocol"].endswith("[patient]")
