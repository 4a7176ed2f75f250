"""The HTTP API as a page to read: the usual ones load scripts of other hosts."""

import html
import json
from collections.abc import Mapping
from typing import Any

HEAD = (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><title>HTTP API</title>'
)


def interface_page(spec: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI description."""
    parts = [
        HEAD,
        f"<h1>HTTP API of {_text(spec['info']['title'])}</h1>",
        f"<p>{_text(spec['info']['description'])}</p>",
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in spec["paths"].items():
        for method, one in methods.items():
            parts += _operation(path, method, one)
    return "\n".join(parts)


def _operation(path: str, method: str, one: Mapping[str, Any]) -> list[str]:
    parts = [f"<hr><h2><code>{_text(method.upper())} {_text(path)}</code></h2>"]
    paragraphs = one.get("description", "").split("\n\n")
    for text in paragraphs:
        tag = "pre" if text.startswith("    ") else "p"
        parts.append(f"<{tag}>{_text(text)}</{tag}>")
    if parameters := one.get("parameters"):
        rows = [
            f"<dt><code>{_text(parameter['name'])}</code></dt>"
            f"<dd>{_text(parameter.get('description', ''))}</dd>"
            for parameter in parameters
        ]
        parts += ["<h3>In the address</h3><dl>", *rows, "</dl>"]
    if body := one.get("requestBody"):
        kinds = " or ".join(f"<code>{_text(kind)}</code>" for kind in body["content"])
        parts.append(f"<h3>Body</h3><p>{kinds}</p>")
    parts.append("<h3>Answers</h3><dl>")
    for status, answer in sorted(one["responses"].items()):
        parts.append(f"<dt><code>{_text(status)}</code></dt>")
        parts.append(f"<dd>{_text(answer.get('description', ''))}</dd>")
    parts.append("</dl>")
    example = one["responses"].get("200", {}).get("content", {}).get("application/json", {})
    if "example" in example:
        shown = json.dumps(example["example"], indent=2)
        parts.append(f"<h3>An answer</h3><pre>{_text(shown)}</pre>")
    return parts


def _text(value: object) -> str:
    return html.escape(str(value))
