"""`docs/reliability.md`, of which runs write sections of their own."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def section(name: str, page: Path = PAGE) -> str:
    """What stands between `<!-- NAME -->` and `<!-- end of NAME -->`. Raises ValueError where the page lacks them."""
    found = re.search(_pattern(name), page.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise ValueError(f"{page} has no section between <!-- {name} --> and <!-- end of {name} -->")
    return found[2]


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Puts `text` there, and leaves the rest of the page alone. Raises ValueError where the page lacks the marks."""
    section(name, page)
    before = page.read_text(encoding="utf-8")
    after = re.sub(_pattern(name), lambda match: f"{match[1]}\n{text}\n\n{match[3]}", before, flags=re.DOTALL)
    page.write_text(after, encoding="utf-8")


def _pattern(name: str) -> str:
    return rf"(<!-- {re.escape(name)} -->\n)(.*?)(<!-- end of {re.escape(name)} -->)"
