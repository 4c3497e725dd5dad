"""The documentation site: its pages, links and names, and the code of the pages that only the site has."""

import ast
from fnmatch import fnmatchcase
import importlib
from pathlib import Path, PurePosixPath
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
import novoclip.catalog
import novoclip.testing
import novoclip.writers
from tests import test_readme

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))
WITH_CODE = ("index", "start", "idea", "numerics", "memory")


def text_of(page):
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def directives_of(text, name):
    """The argument and the lines of each directive of this name."""
    found = re.findall(rf"^```\{{{name}\}}([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(argument.strip(), body.split("\n")) for argument, body in found]


def children_of(page):
    """The pages that the toctrees of a page name. Patterns are relative to its folder, and do not match the page."""
    others = [other for other in PAGES if other != page]
    for _, lines in directives_of(text_of(page), "toctree"):
        for line in lines:
            if line and not line.startswith(":"):
                pattern = (PurePosixPath(page).parent / line).as_posix()
                found = [other for other in others if other.count("/") == pattern.count("/")]
                found = [other for other in found if fnmatchcase(other, pattern)]
                assert found or "*" in line, f"{page}.md names {line}, which is no page"
                yield from found


def test_every_page_is_in_a_toctree_once():
    children = [child for page in PAGES for child in children_of(page)]
    assert sorted(["index", *children]) == PAGES


def without_code(text):
    return re.sub(r"^ *(`{3,}).*?^ *\1 *$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(path):
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links_of(text):
    """Links in prose, those of cards, and headings that contain neither."""
    prose = without_code(text)
    return re.findall(r"\]\(([^)\s]+)\)", prose) + [
        f"{page}.md" for page in re.findall(r"^:link: (\S+)\n:link-type: doc$", prose, re.MULTILINE)
    ]


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *(DOCS / f"{page}.md" for page in PAGES)], ids=lambda path: path.stem
)
def test_links_lead_to_files_and_headings(path):
    for link in links_of(path.read_text(encoding="utf-8")):
        if not re.match(r"https?://", link):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


def described():
    """The objects of the API reference, by identity, and their full names."""
    names = {}
    for page in PAGES:
        for module, lines in directives_of(text_of(page), "reference"):
            for name in " ".join(lines).split():
                names[f"{module}.{name}"] = getattr(importlib.import_module(module), name)
    return names


def public_names():
    for module in (novoclip, novoclip.limits, novoclip.states, novoclip.testing, novoclip.writers):
        yield from (f"{module.__name__}.{name}" for name in module.__all__)
    tree = ast.parse((ROOT / "novoclip/typing.py").read_text())
    yield from (f"novoclip.typing.{line.targets[0].id}" for line in tree.body if isinstance(line, ast.Assign))


def test_every_public_name_is_in_the_api_reference():
    known = described()
    # A class may be public in two modules, and is described once. Modules have a page. CHECKS is a tuple of checks.
    same = {id(thing) for thing in known.values()}
    missing = [
        name
        for name in public_names()
        if name not in known
        and id(thing := getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])) not in same
        and not isinstance(thing, type(novoclip))
        and name != "novoclip.testing.CHECKS"
    ]
    assert not missing, "write these into a directive `reference` in docs/api/, such as that of rules.md or states.md"
    assert all(entry.make in known.values() for entry in novoclip.catalog.CATALOG)


def printed_of(code):
    """What a block says that it prints: a comment after `print(...)`, or the comments in the lines below it."""
    found = re.findall(r"^ *print\(.*\)(?:  # (.*)|((?:\n *# .*)*))$", code, re.MULTILINE)
    return [line for same, below in found for line in ([same] if same else re.findall(r"# (.*)", below))]


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_of_a_page_prints_what_it_says(page, capsys):
    names = {}
    for code in test_readme.blocks_of(text_of(page)):
        # Each tab of the first page is a program of its own.
        exec(code, {} if page == "start" else names)
        assert capsys.readouterr().out.splitlines() == printed_of(code)


def test_the_code_of_every_page_is_run():
    tested = {*WITH_CODE, *test_readme.PAGES, "symptoms"}
    # Those of the gallery and of the evidence have tests of their own.
    assert {page for page in PAGES if "/" not in page and "```python" in text_of(page)} <= tested


LINES = re.findall(r"```python\n(.*)\n```", text_of("symptoms"))


@pytest.mark.parametrize("line", LINES)
def test_the_line_of_each_symptom_makes_a_transform(line):
    names = {"novoclip": novoclip, "optax": optax}
    exec(line, names)
    (transform,) = (names[name] for name in ("rule", "optimizer") if name in names)
    params = {"kernel": jnp.ones((4, 3)), "head": jnp.ones((3, 2))}
    state = jax.eval_shape(transform.init, params)
    gradients = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params) if "per_example" in line else params
    updates, _ = jax.eval_shape(transform.update, gradients, state, params)
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)


def test_the_picture_of_shapes_shows_their_formulas():
    # The curves of docs/_ext/pictures.py: 401 norms from 0 to 4; a norm of 1 is 175 pixels high.
    picture = (DOCS / "_static/idea_shapes.svg").read_text()
    curves = [
        np.array([float(pair.split(",")[1]) for pair in points.split()])
        for points in re.findall(r'<polyline points="([^"]*)"', picture)
    ]
    norm = np.linspace(0, 4, 401)
    formulas = (
        np.minimum(norm, 1),
        np.tanh(norm),
        2 / np.pi * np.arctan(np.pi / 2 * norm),
        norm / np.sqrt(1 + norm**2),
        norm / (1 + norm),
        norm > 0,
        norm * (norm <= 1),
    )
    for curve, formula in zip(curves, formulas, strict=True):
        np.testing.assert_allclose((240 - curve) / 175, formula, atol=1e-3)


@pytest.mark.full
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("furo")
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "docs", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "search.html").exists()
