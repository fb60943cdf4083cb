"""The page of a run: one HTML file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #444);
  --soft: light-dark(#666, #aaa); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1.5rem .25rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: normal; color: var(--soft); white-space: nowrap; }
pre { overflow-x: auto; padding: 1rem; border: 1px solid var(--line); border-radius: 6px;
  font-size: .85rem; }
figure { margin: 2rem 0; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
figcaption, .note { color: var(--soft); max-width: 48rem; }
"""


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        name: File name, such as `curves.png`.
        png: Its bytes.
        caption: One sentence.
    """

    name: str
    png: bytes
    caption: str


def page(
    title: str,
    summary: Mapping[str, str],
    config: str,
    pictures: Sequence[Picture],
    notes: Sequence[str],
) -> str:
    """Write the page; all text is escaped.

    Args:
        title: Name of the run.
        summary: Rows of the table.
        config: The configuration as YAML.
        pictures: The pictures in order.
        notes: Sentences on what is not shown.

    Returns:
        HTML that refers to nothing outside itself.
    """
    rows = "\n".join(
        f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>"
        for key, value in summary.items()
    )
    said = "\n".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<table>
{rows}
</table>
<details>
<summary>Configuration</summary>
<pre>{escape(config)}</pre>
</details>
{said}
{"".join(map(_figure, pictures))}</body>
</html>
"""


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    caption = escape(picture.caption)
    return f"""<figure>
<img alt="{escape(picture.name)}" src="data:image/png;base64,{data}">
<figcaption>{caption}</figcaption>
</figure>
"""
