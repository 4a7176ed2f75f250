"""What the documents point at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "docs", ROOT / "benchmarks")
DOCUMENTS = sorted(path for folder in FOLDERS for path in folder.glob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_files_exist(document):
    text = document.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    files = re.findall(r"(?:benchmarks|configs|scripts|docs)/\w+\.(?:py|sh|md)", text)
    for target in links:
        assert (document.parent / target).exists(), target
    for target in files:
        assert (ROOT / target).exists(), target
