"""`docs/reliability.md`, of which runs write sections of their own."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Puts `text` between `<!-- NAME -->` and `<!-- end of NAME -->`. Raises ValueError where the page lacks them."""
    before = page.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end of {re.escape(name)} -->)", re.DOTALL)
    after, found = pattern.subn(lambda match: f"{match[1]}\n{text}\n\n{match[2]}", before)
    if found != 1:
        raise ValueError(f"{page} has no section between <!-- {name} --> and <!-- end of {name} -->")
    page.write_text(after, encoding="utf-8")
