"""A Replay as the text of an HTML file."""

from __future__ import annotations

from html import escape
import importlib

import numpy as np

from novoclip.replays.judge import AROUND, BEFORE, BURST, CALM, SPIKE
from novoclip.replays.replay import Replay
from novoclip.replays.report_data import data
from novoclip.replays.report_rows import Exploded, drawn, exploded
from novoclip.replays.report_script import SCRIPT, STYLE
from novoclip.replays.report_words import read_summary
from novoclip.replays.text import HEADINGS, cells, sentences

TERMS = (
    f"A spike is a finite norm above {SPIKE:g} times the median of the {BEFORE} or {BURST} rows before it. The level "
    f"is the median of the {2 * AROUND + 1} rows around a row. A calm row is below {CALM:g} levels."
)


def page(answer: Replay) -> str:
    """Return the HTML, with the numbers, the script and plotly's own script in it."""
    name = escape(answer.record.name)
    plotly = importlib.import_module("plotly.offline").get_plotlyjs()
    body = [
        f"<h1>{name}</h1>",
        f'<p class="soft">{escape(read_summary(answer))}</p>',
        _items(answer.record.notes),
        *_recommendation(answer),
        *_course(answer),
        "<h2>Rules, the best first</h2>",
        _rules(answer),
        f'<p class="soft">{TERMS}</p>',
        *_tensors(answer),
        "<h2>Distance from the level</h2>",
        "<p>On the right, a straight line is a power law: no threshold separates spikes from calm rows.</p>",
        '<div class="pair"><div id="histogram"></div><div id="tail"></div></div>',
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # A favicon of its own, so that a browser asks no server for one.
            '<link rel="icon" href="data:,">',
            f"<title>{name}</title>",
            f"<style>{STYLE}</style></head><body>",
            *body,
            f'<script type="application/json" id="data">{data(answer)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{SCRIPT}</script>",
            "</body></html>\n",
        ]
    )


def _recommendation(answer: Replay) -> list[str]:
    best = answer.recommended
    found = ["<h2>Recommendation</h2>"]
    if best is not None:
        found.append(f"<pre><code>{escape(best.line)}</code></pre>")
    found += [f"<p>{escape(sentence)}</p>" for sentence in sentences(answer)]
    if answer.runner_up is not None:
        found.append(f"<p>Runner-up: <code>{escape(answer.runner_up.line)}</code></p>")
    return [*found, _items(answer.warnings)]


def _course(answer: Replay) -> list[str]:
    count, shown = answer.record.norms.size, drawn(answer.record.norms, answer.rows).size
    fewer = f"Drawn: {shown} of {count} rows; the others lie between their neighbours in the picture."
    return [
        "<h2>Norms and loss</h2>",
        '<p><label for="rule">Limit and norms let through by</label> <select id="rule"></select></p>',
        "" if shown == count else f'<p class="soft">{fewer}</p>',
        '<div id="course"></div>',
    ]


def _rules(answer: Replay) -> str:
    rows = [
        ('<tr class="best">' if each is answer.recommended else "<tr>", [escape(cell) for cell in cells(each)])
        for each in answer.outcomes
    ]
    return _table(HEADINGS, rows)


def _tensors(answer: Replay) -> list[str]:
    events = exploded(answer.record, answer.rows)
    if not events:
        return []
    rows = [("<tr>", _cells(each)) for event in events for each in event]
    return [
        "<h2>Tensors that exploded first</h2>",
        "<p>At the first spikes: the tensors whose norm is largest relative to the median of their own 32 norms "
        "before.</p>",
        _table(("tensor", "step", "norm", "times its median"), rows),
    ]


def _cells(each: Exploded) -> list[str]:
    times = f"{each.times:.3g}" if np.isfinite(each.times) else "not finite"
    return [escape(each.name), str(each.step), f"{each.norm:.4g}", times]


def _table(headings: tuple[str, ...], rows: list[tuple[str, list[str]]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join(f"{start}{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for start, row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _items(texts: tuple[str, ...]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>" if texts else ""
