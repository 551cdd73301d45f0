"""The reference names every module, and the pages name nothing that is not there."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))


def modules() -> set[str]:
    rooms = [p for p in (REPOSITORY / "videogen").iterdir() if (p / "__init__.py").exists()]
    files = [f for room in rooms for f in room.glob("*.py")]
    return {".".join(f.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__") for f in files}


def test_every_module_has_a_place_in_the_reference():
    text = "\n".join(page.read_text() for page in PAGES)
    assert modules() - set(re.findall(r"^::: (\S+)$", text, re.MULTILINE)) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_commands_that_a_page_names_exist(page):
    text = page.read_text().replace("configs/mine.py", "").replace("test_mine.py", "")
    named = re.findall(r"\b(?:configs|tests|videogen|launch|docs|benchmarks)/[\w/]*\w(?:\.\w+)?", text)
    commands = [f"videogen/{name}.py" for name in re.findall(r"python -m videogen\.(\w+)", text)]
    assert [path for path in named + commands if not (REPOSITORY / path).exists()] == []


def test_every_page_is_in_the_navigation():
    navigation = (REPOSITORY / "mkdocs.yml").read_text()
    assert [p.name for p in PAGES if str(p.relative_to(REPOSITORY / "docs")) not in navigation] == []
