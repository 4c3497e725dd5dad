"""The gallery of docs/gallery has a card for each catalog entry, is current, and says what is true."""

import inspect
import json
import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import gallery, gallery_formula, gallery_pages, gallery_pictures, gallery_run
import novoclip
from novoclip import catalog
from novoclip.commands import main, use_when

FOLDER = gallery.FOLDER
CARDS = gallery_pages.CARDS
NAMES = [entry.name for entry in catalog.CATALOG]
PAGES = ["index.md", *(f"{name}.md" for name in gallery_pages.PAGES)]


@pytest.fixture(scope="module")
def pages():
    return gallery_pages.pages()


def test_every_catalog_entry_has_one_card(pages):
    for name in NAMES:
        assert CARDS[name]  # a missing one raises, and says where it belongs
    assert sorted(CARDS) == sorted(NAMES), "remove a card without an entry in novoclip/catalog"
    assert sorted(pages) == sorted(PAGES)
    headings = [line for text in pages.values() for line in text.splitlines() if line.startswith("## ")]
    assert sorted(set(headings) - {"## How to read the pictures", "## Cards"}) == sorted(f"## {name}" for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_line_of_a_card_is_a_transform_of_its_entry(name):
    line = CARDS[name].line
    assert line.startswith(f"novoclip.{name}(")
    for each in (line, CARDS[name].run or line):
        assert isinstance(gallery_run.transform_of(each), optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_current(name, pages):
    committed = (FOLDER / name).read_text(encoding="utf-8")
    assert committed == pages[name], "run `python benchmarks/gallery.py --text`"


def test_the_record_is_current():
    found = np.genfromtxt(FOLDER / "record.csv", delimiter=",", names=True)["grad_norm"]
    np.testing.assert_allclose(found, gallery_run.record(), rtol=1e-3)


def test_when_to_use_a_rule_is_what_the_command_says(capsys, pages):
    main(["rules", "--json"])
    told = {rule["name"]: rule["use_when"] for rule in json.loads(capsys.readouterr().out)}
    index = pages["index.md"]
    for name in NAMES:
        words = told[name] or CARDS[name].use
        assert bool(CARDS[name].use) != (name in use_when.USE_WHEN), (
            f"{name}: write either `use=` in its card, or a line in novoclip/commands/use_when.py"
        )
        assert f"#{name}) |" in index
        assert f"| {words} |" in index
        assert f"- **Use it when** {words}." in gallery_pages.card(gallery_pages.ENTRIES[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_formula_is_of_a_docstring(name):
    found = gallery_formula.told(gallery_formula.formula_of(getattr(novoclip, name)))
    others = [*re.findall(r"^(\w+):$", found, re.MULTILINE), *re.findall(r"^limits\.(\w+):$", found, re.MULTILINE)]
    sources = [getattr(novoclip, each, None) or getattr(novoclip.limits, each) for each in (name, *others)]
    sources += [getattr(novoclip.limits, each) for each in others if hasattr(novoclip.limits, each)]
    told = " ".join(" ".join(inspect.getdoc(each).split()) for each in sources)
    lines = re.sub(r"```\w*|^(limits\.)?\w+:$", "", found, flags=re.MULTILINE).splitlines()
    assert name == "record" or all(" ".join(line.split()) in told for line in lines)


def test_every_picture_is_there_and_they_are_small():
    files = {path.stem: path for path in FOLDER.glob("*.svg")}
    assert sorted(files) == sorted(name for name in CARDS if not CARDS[name].unseen), (
        "run `python benchmarks/gallery.py`, with `--only NAME` for a new card"
    )
    assert sum(path.stat().st_size for path in files.values()) < 3e6
    for path in files.values():
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<?xml")
        assert "<dc:date>" not in text


def test_a_picture_has_the_same_bytes_each_time():
    after = np.where(np.arange(gallery_run.ROWS) == gallery_run.NONFINITE, 0.0, 1.0)
    shown = gallery_run.Shown(gallery_run.PROBES, np.minimum(gallery_run.PROBES, 1.0), after)
    assert gallery_pictures.svg(shown) == gallery_pictures.svg(shown)


def test_a_response_is_the_norm_of_the_result():
    entry, card = gallery_pages.ENTRIES["skip_spikes"], CARDS["skip_spikes"]
    fresh, warm = gallery_run.run(entry, card.run, 1.0)[:2]
    np.testing.assert_allclose(fresh, gallery_run.PROBES, rtol=1e-6)  # a first norm has no limit
    calm, mean = gallery_run.LEVEL * gallery_run.noise(gallery_run.CALM), 0.0
    for step, norm in enumerate(calm, start=1):
        mean += max(0.1, 1 / step) * (norm - mean)
    passes = gallery_run.PROBES * (3 * mean >= gallery_run.PROBES)
    np.testing.assert_allclose(warm, passes, rtol=1e-5)


def test_the_record_is_that_after_the_transform():
    found = gallery_run.run(gallery_pages.ENTRIES["record"], "novoclip.clip_by_global_norm(1.0)", 1.0).record
    record = gallery_run.record()
    np.testing.assert_allclose(found, np.where(np.isnan(record), 0, np.minimum(record, 1)), rtol=1e-6)
    assert np.isnan(record).sum() == 1


def test_uclip_is_still_at_its_limit_at_the_end_of_the_record():
    found = gallery_run.run(gallery_pages.ENTRIES["uclip"], CARDS["uclip"].line, 1.0).record
    np.testing.assert_allclose(found, np.where(np.isnan(gallery_run.record()), 0, 1), rtol=1e-5)


def norms_of(transform, norms, weight=1.0):
    """The norms of the results, for gradients of one element in turn."""
    params = jnp.full(1, weight)

    def step(state, norm):
        updates, state = transform.update(norm[None], state, params)
        return state, jnp.abs(updates[0])

    return np.asarray(jax.jit(lambda rows: lax.scan(step, transform.init(params), rows)[1])(jnp.asarray(norms)))


LEVEL = np.where(np.arange(60) % 2, 0.95, 1.05).astype(np.float32)
TWICE = np.concatenate([LEVEL, np.full(40, 2.0, np.float32)])
ONE = np.ones(60, np.float32)
SPIKE = np.concatenate([ONE, [1000.0], ONE]).astype(np.float32)
OUTLIER = np.array([50.0, *(60 * [0.0])], np.float32)


@pytest.mark.parametrize(
    ("transform", "norms", "told"),
    [
        (novoclip.zclip(), TWICE, lambda after: after[-1] < 1.1),
        (novoclip.zclip(release=20), TWICE, lambda after: after[-1] == 2),
        (novoclip.adagc(), np.r_[ONE[:10], 100 * ONE[:20]], lambda after: after[-1] <= 2 * 1.02**20),
        (novoclip.rmsprop(1.0), ONE, lambda after: abs(after[0] - 3.1623) < 1e-3 and abs(after[-1] - 1) < 1e-2),
        (novoclip.adagn(), SPIKE, lambda after: after[60] < 1 and after[65:].max() < 0.3),
        (novoclip.amsgrad(1.0), np.r_[SPIKE, ONE], lambda after: after[-1] < 0.05),
        (novoclip.adopt(1.0), np.r_[1000.0 * ONE[:1], ONE], lambda after: after.max() < 0.01),
        (novoclip.uclip(novoclip.clip_by_global_norm(1.0)), OUTLIER, lambda after: after.sum() == 50),
        (novoclip.delta_gclip(1.0), 1e5 * ONE[:1], lambda after: after[0] >= 99.9),
        (novoclip.adaclip(), np.r_[ONE[:3], 1000], lambda after: after[-1] > 200),
        (
            novoclip.clip21(novoclip.clip_by_global_norm(1.0)),
            10 * ONE[:12],
            lambda after: np.allclose(after, np.minimum(10, np.arange(1, 13))),
        ),
    ],
    ids=["zclip", "release", "adagc", "rmsprop", "adagn", "amsgrad", "adopt", "uclip", "delta", "adaclip", "clip21"],
)
def test_what_is_said_against_a_rule_is_true(transform, norms, told):
    assert told(norms_of(transform, norms.astype(np.float32)))


def test_what_is_said_of_weights_of_zero_is_true():
    weights = jnp.array([0.0, 1.0])
    updates = jnp.array([1.0, 1.0])

    def applied(rule):
        return np.asarray(jax.jit(lambda: rule.update(updates, rule.init(weights), weights)[0])())

    np.testing.assert_allclose(norms_of(novoclip.agc(0.01), np.ones(1, np.float32), 0.0), 1e-5, rtol=1e-5)
    assert np.abs(applied(novoclip.clippy(absolute=1e-7, floor=0.0))).max() < 1e-6
    assert applied(novoclip.clip_by_trust_ratio(1e-3, per="element"))[0] == 1
