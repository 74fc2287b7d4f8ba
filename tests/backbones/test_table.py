"""The page of the bases is what the table gives."""

from pathlib import Path

import pytest

import config
from backbones.table import BASES

PAGE = (Path(config.__file__).parent / "docs" / "backbones.md").read_text()


@pytest.mark.parametrize("name", BASES)
def test_the_page_has_the_base_and_its_blocks(name):
    base = BASES[name]
    assert f"| `{name}` | {base.parameters:,} | {base.width} | {base.size} x {base.size} | `{base.file}` |\n" in PAGE
    assert f"| `{name}` | {', '.join(f'`{block}`' for block in base.blocks)} |\n" in PAGE
    for block in base.blocks:
        config.load_settings(None, [f"model.base={name}", f"model.trainable_from={block}"])


def test_the_page_has_no_other_base():
    assert [line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")] == [*BASES, *BASES]
