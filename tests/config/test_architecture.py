"""docs/architecture.md names files and functions that exist."""

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text()
PICTURES, _, TABLES = TEXT.partition("## Where each equation is")
NAMES = sorted(set(re.findall(r"`([a-z_]+(?:\.\w+)+)`", TABLES)))


@pytest.mark.parametrize("name", NAMES)
def test_a_function_of_an_equation_is_where_the_table_says(name):
    assert pkgutil.resolve_name(f"ddpm.{name}") is not None


def test_the_table_leads_to_every_equation_of_ho_et_al():
    assert len(NAMES) > 40
    ours = TABLES.partition("Others:")[0]
    cells = re.findall(r"^\| ([\d, -]+) \|", ours, re.MULTILINE)
    ends = [list(map(int, re.split(r"\D+", part))) for cell in cells for part in cell.split(", ")]
    assert {*range(1, 16)} == {n for end in ends for n in range(end[0], end[-1] + 1)}


def test_every_file_and_folder_that_is_drawn_exists():
    drawn = set(re.findall(r"\b[a-z_]+/(?:[a-z_]+(?:/|\.py|\.yaml)?)*", PICTURES)) - {"bits/dim", "images/s"}
    assert len(drawn) > 40
    package = ROOT / "src" / "ddpm"
    bases = (ROOT, package, package / "lit", package / "commands")
    missing = {
        name for name in drawn if not any((base / f"{name}{end}").exists() for base in bases for end in ("", ".py"))
    }
    assert missing == set()
