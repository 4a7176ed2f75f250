"""The page for people at the line: one file, nothing from elsewhere."""

import base64
import hashlib
from importlib import resources
from typing import NamedTuple

FOLDER = "web"


class Page(NamedTuple):
    """The page, and the Content-Security-Policy that allows what it does and no more."""

    html: str
    policy: str


def build_page() -> Page:
    """Puts style and script into the page; the policy names them by their hashes."""
    folder = resources.files("harmoniad_jax.serving") / FOLDER
    html, style, script = (
        (folder / f"page.{suffix}").read_text(encoding="utf-8")
        for suffix in ("html", "css", "js")
    )
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data: blob:",
            "media-src blob: mediastream:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    html = html.replace("<style></style>", f"<style>{style}</style>")
    return Page(html.replace("<script></script>", f"<script>{script}</script>"), policy)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
