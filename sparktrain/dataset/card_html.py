"""What a page for people is made of: tables, numbers as they read them, and the style sheet.

Whatever goes into a table is escaped, unless it is an `Html`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


class Html(str):
    """Text that is markup already."""


class Percent(str):
    """A share as people read it."""


def number(value: float | None) -> str:
    """Four digits for fractions, all of them for whole numbers; nothing for None."""
    if value is None:
        return ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 1e4 <= abs(value) < 1e15 else f"{value:,.4g}"


def percent(share: float | None) -> Percent:
    """Never 0 for something and never 100 % for less than everything; nothing for None."""
    if share is None:
        return Percent()
    if 0 < share < 1e-4:
        return Percent("<0.01%")
    if 0.9999 < share < 1:
        return Percent(">99.99%")
    return Percent(f"{share:.2%}" if 0 < share < 1 else f"{share:.0%}")


def size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def meter(share: float) -> Html:
    """A share as a bar beside its number."""
    filled = f'<i style="width:{min(share, 1):.1%}"></i>' if share else ""
    return Html(f'<i class="meter">{filled}</i>')


def details(summary: str, content: str) -> Html:
    """Something that opens on a click, without a script; `content` is markup."""
    return Html(f"<details><summary>{escape(summary)}</summary>{content}</details>")


def tiles(figures: Mapping[str, str]) -> Html:
    """Figures that catch the eye, side by side: value by name."""
    shown = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in figures.items()
    )
    return Html(f'<div class="tiles">{shown}</div>')


def page(heading: str, title: str, about: Html, sections: Mapping[str, str], style: str = "") -> str:
    """A whole page that needs nothing else: no script, no network, light or dark.

    Args:
        heading: shown as such; `title` is the browser's.
        about: below the heading.
        sections: markup by title; an empty one is left out.
        style: of this page alone, besides that of all.
    """
    shown = {name: content for name, content in sections.items() if content}
    ids = {name: name.replace(" ", "-") for name in shown}
    links = " ".join(f'<a href="#{ids[name]}">{name}</a>' for name in shown)
    body = "\n".join(
        f'<section id="{ids[name]}"><h2>{name}</h2>{content}</section>' for name, content in shown.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<header>
<h1>{escape(heading)}</h1>
{about}
<nav>{links}</nav>
</header>
{body}
</body>
</html>
"""


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], kind: str = "") -> Html:
    """A table; columns of numbers stand to the right with their heads, all others to the left."""
    lines = list(rows)
    right = [any(_is_number(line[i]) for line in lines) for i in range(len(heads))]
    classes = [' class="n"' if is_right else "" for is_right in right]
    head = "".join(f"<th{c}>{escape(text)}</th>" for c, text in zip(classes, heads, strict=True))
    body = "\n".join(
        f"<tr>{''.join(f'<td{c}>{_text(v)}</td>' for c, v in zip(classes, line, strict=True))}</tr>"
        for line in lines
    )
    content = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return Html(f'<div class="scroll"><table class="{kind}">{content}</table></div>')


def cell(*parts: Html) -> Html:
    """Markup for the output of a notebook's cell, whose page has a style of its own."""
    return Html(f'<style>{_CELL_STYLE}</style><div class="sparktrain-cell">{"".join(parts)}</div>')


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | Percent)


def _text(value: object) -> str:
    if isinstance(value, Html):
        return value
    return number(value) if value is None or isinstance(value, int | float) else escape(str(value))


STYLE = """
:root{color-scheme:light dark;--page:#fbfbfa;--card:#fff;--text:#1d2126;--soft:#6a7280;--line:#e4e6e9;
--bar:#3a7ca5;--track:#e9edf0;--warn:#9a6700;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--page:#14171a;--card:#1b1f24;--text:#e4e7ea;--soft:#98a1ad;
--line:#2d333b;--bar:#69b0dc;--track:#2a3037;--warn:#e3b341;--bad:#ff7b72}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 20px 60px;max-width:1240px;background:var(--page);color:var(--text);
font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{margin:0;font-size:26px;overflow-wrap:anywhere}h2{margin:34px 0 10px;font-size:17px}
h3{margin:16px 0 6px;font-size:14px;overflow-wrap:anywhere}p{margin:4px 0}
code{font:12px ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
nav{margin-top:10px}nav a{margin-right:14px;color:var(--bar);text-decoration:none}
nav a:hover{text-decoration:underline}.soft,small{color:var(--soft);font-size:12px}
.tiles{display:flex;flex-wrap:wrap;gap:10px;margin-bottom:14px}
.tiles div{flex:1 1 120px;max-width:340px;padding:12px 14px;background:var(--card);
border:1px solid var(--line);border-radius:8px}
.tiles b{display:block;font-size:21px;font-weight:600;white-space:nowrap;overflow:hidden;
text-overflow:ellipsis}.tiles span{color:var(--soft)}
.scroll{width:fit-content;max-width:100%;overflow-x:auto;background:var(--card);border:1px solid var(--line);
border-radius:8px}
.scroll .scroll{border:0;background:none}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:6px 12px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>td{border-bottom:0}
th{color:var(--soft);font-size:12px;font-weight:500;white-space:nowrap}th.n,td.n{text-align:right;white-space:nowrap}
.names>tbody>tr>td:first-child{font-weight:600;min-width:130px;max-width:280px;
overflow-wrap:break-word}
.names td small{font-weight:400;display:block}
td details td,td details th{padding:1px 10px 1px 0;border:0}
summary{cursor:pointer;color:var(--bar);white-space:nowrap}
svg{display:block;color:var(--bar);fill:currentColor}
.meter{display:block;width:110px;height:8px;margin-top:6px;border-radius:4px;background:var(--track)}
.meter i{display:block;height:100%;min-width:1px;border-radius:4px;background:var(--bar)}
.moderate{color:var(--warn);font-weight:600}.large{color:var(--bad);font-weight:600}
"""

# The class twice, for Jupyter's own rules are as specific as one.
_CELL_STYLE = """
.sparktrain-cell{display:flex;flex-wrap:wrap;gap:8px 24px;align-items:flex-start;overflow-x:auto}
.sparktrain-cell.sparktrain-cell table{margin:4px 0;border-collapse:collapse;
font-variant-numeric:tabular-nums}
.sparktrain-cell.sparktrain-cell table :is(th,td){padding:3px 10px;text-align:left;vertical-align:top}
.sparktrain-cell.sparktrain-cell table td{overflow-wrap:anywhere}
.sparktrain-cell.sparktrain-cell table td:first-child{white-space:nowrap}
.sparktrain-cell.sparktrain-cell table :is(th.n,td.n){text-align:right;white-space:nowrap}
"""
