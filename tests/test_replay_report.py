"""The HTML file and the picture of a Replay."""

from html.parser import HTMLParser
import json
import re
import struct

import numpy as np
import optax
import pytest

import novoclip
from novoclip.records import Record
from novoclip.replays import replay, report, report_rows
from novoclip.replays.judge import judged

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")
NAME = 'a <b>bold</b> & "quoted" $x_ run</script>'
NOTE = "a note with <img src=https://example.com/x.png>"
RULES = {"novoclip.zclip()": novoclip.zclip(), "skip <spikes>": novoclip.skip_spikes(optax.identity())}


def recorded(size=200, spikes=(50, 51, 120)):
    generator = np.random.default_rng(0)
    tensors = {f"layer<{i}>": np.exp(0.1 * generator.normal(size=size)) for i in range(3)}
    for row in spikes:
        tensors["layer<1>"][row] = 80.0
    norms = np.sqrt(sum(np.square(norms) for norms in tensors.values()))
    norms[80] = np.nan
    losses = 3 + generator.random(size)
    losses[0] = np.nan
    return Record(NAME, 10 * np.arange(size), norms, losses, np.full(size, np.nan), tensors, 10, (NOTE,))


@pytest.fixture(scope="module")
def answer():
    return replay(recorded(), RULES)


@pytest.fixture(scope="module")
def html(answer, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write_report(answer, path)
    return path.read_text(encoding="utf-8")


class Page(HTMLParser):
    """The attributes that load something, and the text of each element."""

    def __init__(self, html):
        super().__init__()
        self.loaded, self.texts, self.open = [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.open.append(tag)
        if tag in ("script", "style"):
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self.open.append("")

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.texts[self.open[-1]][-1] += data
        elif self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def test_the_report_loads_nothing(html):
    page = Page(html)
    assert page.loaded == ["data:,"]
    assert not re.search(r"url\(|@import", page.texts["style"][0])
    assert len(page.texts["script"]) == 3, "numbers, plotly, and the report's own script"
    assert "showSendToCloud: false" in page.texts["script"][2]


def test_text_of_the_record_is_escaped(html):
    page = Page(html)
    assert "".join(page.texts["title"]) == "".join(page.texts["h1"]) == NAME
    assert NOTE in page.texts["li"]
    assert "layer<1>" in page.texts["td"]
    assert "<b>" not in html.partition("<script")[0]


def test_the_report_has_every_rule_in_order_and_the_recommendation(answer, html):
    page = Page(html)
    lines = [each.line for each in answer.outcomes]
    assert [text for text in page.texts["td"] if text in lines] == lines
    assert page.texts["code"][0] == answer.recommended.line
    data = json.loads(page.texts["script"][0])
    assert [rule["line"] for rule in data["rules"]] == lines
    assert lines[data["chosen"]] == answer.recommended.line


def test_the_numbers_of_the_report_are_those_of_the_replay(answer, html):
    data = json.loads(Page(html).texts["script"][0])
    assert data["steps"] == answer.record.steps.tolist()
    assert data["spikes"] == [50, 51, 120]
    assert data["nonfinite"] == [80]
    assert data["norms"][80] is None
    assert data["losses"][0] is None
    np.testing.assert_allclose(data["norms"][:80], answer.record.norms[:80], rtol=1e-4)
    skips = next(rule for rule in data["rules"] if rule["line"] == "skip <spikes>")
    assert {50, 51, 120} <= set(skips["skipped"])
    assert sum(data["histogram"]["y"]) == 199
    # A norm below its level is no part of the tail; three of the 199 finite norms are spikes.
    assert data["tail"]["x"][0] >= 1
    assert data["tail"]["y"][-1] == pytest.approx(1 / 199, rel=1e-4)
    far = [fraction for x, fraction in zip(data["tail"]["x"], data["tail"]["y"], strict=True) if x > 10]
    assert far[0] == pytest.approx(3 / 199, rel=1e-4)


def test_the_tensor_that_exploded_is_first(answer):
    first, second = report_rows.exploded(answer.record, answer.rows)
    assert [event[0].step for event in (first, second)] == [500, 1200], "rows 50 and 51 are one spike"
    assert first[0].name == second[0].name == "layer<1>"
    assert first[0].times == pytest.approx(80 / np.median(answer.record.tensors["layer<1>"][18:50]))


def test_a_tensor_that_is_not_finite_is_before_all_others():
    record = recorded()
    record.tensors["layer<2>"][50] = np.inf
    first = report_rows.exploded(record, judged(record.norms))[0]
    assert first[0].name == "layer<2>"
    assert first[0].times == np.inf


def test_of_a_long_record_spikes_and_extremes_are_drawn():
    norms = np.exp(0.1 * np.random.default_rng(1).normal(size=1000))
    norms[[300, 777]], norms[400] = 50.0, np.inf
    kept = report_rows.drawn(norms, judged(norms), most=100)
    assert kept.size <= 105
    assert {0, 300, 400, 777, 999, int(np.argmin(norms))} <= set(kept.tolist())


def test_the_picture_has_the_size_that_is_documented(answer, tmp_path):
    path = tmp_path / "norms.png"
    report.write_png(answer, path)
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:24]) == (2000, 1000)


def test_a_record_without_spikes_losses_and_tensors_is_reported(tmp_path):
    norms = np.exp(0.1 * np.random.default_rng(2).normal(size=20))
    answer = replay(norms, {"zclip": novoclip.zclip()})
    assert answer.recommended is None
    report.write_report(answer, tmp_path / "report.html")
    report.write_png(answer, tmp_path / "report.png")
    text = (tmp_path / "report.html").read_text()
    assert "Nothing is recommended." in text
    assert "Tensors that exploded" not in text


def test_a_file_is_replaced_whole_or_not_at_all(answer, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        report.write_report(answer, tmp_path / "no" / "report.html")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        report.write_report(answer, tmp_path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report(answer, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
