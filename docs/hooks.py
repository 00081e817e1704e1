"""What mkdocs calls while it builds the pages: the changelog is a page, and colours need no other site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "changelog.md":
        return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return markdown


def on_post_page(output: str, **_: Any) -> str:
    """The theme's choice of light or dark looks for the styles of a highlighter, which is not loaded."""
    return output.replace("</head>", '<style id="hljs-light"></style><style id="hljs-dark"></style></head>', 1)
