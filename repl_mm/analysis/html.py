"""A page of Markdown as one file of HTML that needs nothing else: its style and its pictures are in it."""

import base64
import html
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2430; max-width: 62em; margin: 2em auto; padding: 0 1em; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2em; border-bottom: 1px solid #d5dae1; padding-bottom: .2em; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .3em .8em; border-bottom: 1px solid #e3e7ec; text-align: left; font-variant-numeric: tabular-nums; }
pre { background: #f3f5f8; padding: .8em 1em; overflow-x: auto; white-space: pre-wrap; }
code { font-size: .92em; } img { max-width: 100%; }
"""


def as_html(markdown: str, *, title: str, folder: Path) -> str:
    """A page as HTML.

    Args:
        markdown: The page; what looks like HTML in it is shown as text, and a link is its text alone.
        title: Of the window.
        folder: Where its pictures lie, which are PNG files.

    Raises:
        OSError: A picture is not there.
    """
    parser = MarkdownIt('commonmark', {'html': False}).enable('table').disable(['link', 'autolink'])
    tokens = parser.parse(markdown)
    for token in (child for block in tokens for child in block.children or ()):
        if token.type == 'image':
            content = base64.b64encode((folder / str(token.attrs['src'])).read_bytes()).decode()
            token.attrs['src'] = f'data:image/png;base64,{content}'
    body = parser.renderer.render(tokens, parser.options, {})
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n'
    )
