"""Writes docs/settings.md from the schema in config.py and the defaults in config.yaml: make docs

`tests/test_docs.py` holds the page equal to what this writes.
"""

from __future__ import annotations

import safety.startup  # noqa: F401  before any other import

import re
from collections.abc import Iterator
from pathlib import Path

import config

PAGE = Path(__file__).with_suffix(".md")
INTRODUCTION = """# Settings

`config.yaml` holds every setting with its default. Edit it, or name a file with only what differs
(`--config mine.yaml`), or set single values in the shell (`train.epochs=20`). The shell wins over the file, and the
file over `config.yaml`. Unknown names and wrong values stop the run. `python train.py --help` prints this list, and
each run keeps its settings in `runs/NAME/config.yaml`.

This page is written by `make docs` from `config.py` and `config.yaml`.
"""


def page() -> str:
    """The page: a table for each section, a row for each setting with its default as config.yaml spells it."""
    return "\n".join([INTRODUCTION, *_sections(config.DEFAULTS.read_text())])


def _sections(defaults: str) -> Iterator[str]:
    spelled = iter(re.findall(r"^  \w+: (.+?) +#", defaults, re.M))
    remarks = dict(re.findall(r"^(\w+): +# (.+)$", defaults, re.M))
    for name, section in config.Settings.model_fields.items():
        yield f"## {name}\n"
        if name in remarks:
            yield f"{remarks[name][0].upper()}{remarks[name][1:]}.\n"
        yield "| setting | default | meaning |\n|---|---|---|"
        for key, field in section.annotation.model_fields.items():
            yield f"| `{name}.{key}` | `{next(spelled)}` | {field.description} |"
        yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
