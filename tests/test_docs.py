"""README, CONTRIBUTING and docs/: links lead somewhere, commands parse, names of settings and files are known."""

from __future__ import annotations

import functools
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest

import config
import grid
from safety import command_line

ROOT = Path(config.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(path.stem for path in ROOT.glob("*.py") if "\ndef main(" in path.read_text())
# The first would end a command before its other arguments are parsed, the second means more of the same.
LEFT_OUT = ["--help", "..."]
page_by_page = pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])


class Made(BaseException):
    """A command has made its parser."""


def prose(page: Path) -> str:
    """The text outside of code blocks."""
    return "".join(page.read_text().split("```")[::2])


def code(page: Path) -> list[str]:
    """The lines of code blocks, without comments, and the texts in backticks."""
    blocks = "\n".join(page.read_text().split("```")[1::2])
    lines = [re.sub(r"\s+# .*", "", line) for line in blocks.splitlines() if not line.startswith("#")]
    return [*lines, *(text.replace("\n", " ") for text in re.findall(r"`([^`]+)`", prose(page)))]


@functools.cache
def anchors(page: Path) -> list[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def links(page: Path) -> list[str]:
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in link]


@functools.cache
def parser(command: str) -> command_line.CommandLine:
    """The parser that a command makes; the command itself does not run."""

    def made(parser: command_line.CommandLine, given: list[str]) -> None:
        raise Made(parser)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Made) as stop:
        patch.setattr(command_line.CommandLine, "parse", made)
        importlib.import_module(command).main([])
    return stop.value.args[0]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Each `python COMMAND.py ARGUMENTS` that is shown; what the shell would fill in is left out."""
    shown = re.findall(r"\bpython (\w+)\.py([^&;|'\n]*)", "\n".join(code(page)))
    return [
        (name, [word for word in shlex.split(rest) if word[0] != "$" and word not in LEFT_OUT]) for name, rest in shown
    ]


@page_by_page
def test_examples_that_read_breakhis_say_so(page):
    """In their block or in the title above it."""
    parts, title = page.read_text().split("```"), []
    for text, block in zip(parts[::2], parts[1::2]):
        title = re.findall(r"^#+ .*", text, re.M)[-1:] or title
        lines = re.findall(r"python (?:train|crossval|grid|data)\.py.*", block)
        elsewhere = r"--config (sample|real|runs)|--resume|--check|model\.base=file"
        if not all(re.search(elsewhere, line) for line in lines):
            assert "BreakHis" in "".join([*title, block])


def test_the_readme_is_a_first_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@page_by_page
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_relative_to(ROOT) and target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_and_image_is_linked():
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    pages = {(ROOT / link.partition("#")[0]).resolve() for link in links(ROOT / "README.md")}
    assert set(PAGES[1:]) <= pages
    assert set((ROOT / "docs").glob("*.png")) <= linked


@page_by_page
def test_every_command_shown_parses(page):
    for command, arguments in commands(page):
        args = parser(command).parse_intermixed_args(arguments)
        overrides = getattr(args, "overrides", [])
        path = ROOT / (getattr(args, "config", None) or "config.yaml")
        for settings in grid.grid("a", overrides).values() if command == "grid" else [overrides]:
            config.load_settings(path if path.exists() else None, settings)


def test_the_pages_show_each_command():
    shown = {name for page in PAGES for name, _ in commands(page)}
    # `make` draws the sample.
    assert shown == set(COMMANDS) - {"sample"}


@page_by_page
def test_no_option_named_is_unknown(page):
    known = {option for command in COMMANDS for option in parser(command)._option_string_actions}
    assert {text.split()[0] for text in code(page) if text.startswith("--")} <= known


@page_by_page
def test_no_setting_named_is_unknown(page):
    named = re.findall(
        r"(?<![\w./-])((?:data|augment|model|train|tune)\.(?!(?:py|csv|txt)\b)[a-z_]+)\b", page.read_text()
    )
    assert set(named) <= set(config.descriptions())
    for name, values in re.findall(r"^([a-z]+\.[a-z_]+)=(\S+)$", "\n".join(code(page)), re.M):
        for value in values.split(","):
            config.load_settings(None, [f"{name}={value}"])


@page_by_page
def test_every_target_of_make_is_in_the_makefile(page):
    makefile = (ROOT / "Makefile").read_text()
    for line in filter(re.compile("make ").match, code(page)):
        for word in shlex.split(line)[1:]:
            name, equals, _ = word.partition("=")
            assert re.search(rf"^{name}{' :=' if equals else ':'}", makefile, re.M), line


@page_by_page
def test_every_file_of_the_code_named_is_there(page):
    for name in filter(re.compile(r"[\w/]+\.(py|toml)$").match, code(page)):
        assert (ROOT / name).exists(), name


def test_the_map_has_every_command_and_every_folder_of_code():
    column = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "design.md").read_text(), re.M)
    places = re.findall(r"`([^`]+)`", " ".join(column))
    folders = {f"{path.parent.name}/" for path in ROOT.glob("[!.]*/*.py")}
    assert {path.name for path in ROOT.glob("*.py")} | folders <= set(places)
    assert [name for name in places if not (ROOT / name).exists()] == []


def test_the_page_of_settings_is_what_the_schema_gives():
    assert (ROOT / "docs" / "settings.md").read_text() == runpy.run_path(str(ROOT / "docs" / "settings.py"))["page"]()


@page_by_page
def test_the_pages_say_image(page):
    assert not re.findall(r"\bpictures?\b", page.read_text(), re.I)
