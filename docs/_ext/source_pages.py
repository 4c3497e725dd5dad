"""Links to files of the repository become links to pages that show them.

On a code host, `[text](../novoclip/rules/norm.py)` opens the file. The site shows each file of the library, and each
other file that a page links to, on a page of its own below `source/`, so that it works without a code host. A link
whose text is the name of something public leads to its entry in the reference instead.
"""

from __future__ import annotations

from collections.abc import Iterator
import inspect
from pathlib import Path
import re
import sys
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

import novoclip

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
# Files that are pages of the site.
PAGES = {"CHANGELOG.md": "changelog", "README.md": "index"}
# Pages about other libraries, and about names that are gone, whose names may be the same.
WITHOUT_NAMES = ("migration", "optax_contract", "changelog", "api/")
FUNCTIONS = {name for name in novoclip.__all__ if not inspect.ismodule(getattr(novoclip, name)) and name != "novoclip"}
LANGUAGES = {".py": "python", ".md": "markdown", ".toml": "toml", ".json": "json", ".csv": "text", ".txt": "text"}


def page_of(path: str) -> str:
    """Return the name of the page that shows a file, given by its path in the repository."""
    return f"source/{path}"


def public_name(node: nodes.Node) -> str | None:
    """Return the public name that a link has as its text, or None."""
    text = node.astext().removeprefix("novoclip.")
    literal = len(node.children) == 1 and isinstance(node.children[0], nodes.literal)
    return f"novoclip.{text}" if literal and text in novoclip.__all__ else None


def is_link_to_file(node: nodes.Node) -> bool:
    """Whether a node links to a file, or to Markdown outside of docs/, which is taken for a page that is missing."""
    if isinstance(node, addnodes.pending_xref):
        return node.get("refdomain") == "doc" and not (DOCS / f"{node['reftarget']}.md").resolve().is_relative_to(DOCS)
    return isinstance(node, addnodes.download_reference)


class LinksToFiles(SphinxTransform):
    """Replaces links to files, which would be downloads, by references to pages."""

    default_priority = 500

    def apply(self, **_kwargs: Any) -> None:
        """Replace them in one document."""
        for node in list(self.document.findall(is_link_to_file)):
            target = self.target_of(node)
            if target.is_relative_to(ROOT) and target.suffix in LANGUAGES:
                node.replace_self(self.reference(target.relative_to(ROOT).as_posix(), node))

    def target_of(self, node: nodes.Element) -> Path:
        """Return the file that a link leads to."""
        if isinstance(node, addnodes.pending_xref):
            return (DOCS / f"{node['reftarget']}.md").resolve()
        page = Path(self.env.doc2path(self.env.docname))
        return (page.parent / node["reftarget"].partition("#")[0]).resolve()

    def reference(self, path: str, node: nodes.Element) -> nodes.Node:
        """Return the reference to the page that shows a file."""
        common = {"refdoc": self.env.docname, "refexplicit": True, "refwarn": True}
        if name := public_name(node):
            found = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=name, **common)
        elif path in PAGES:
            found = addnodes.pending_xref("", refdomain="std", reftype="doc", reftarget=f"/{PAGES[path]}", **common)
        else:
            linked(self.env).add(path)
            found = addnodes.pending_xref("", refdomain="", reftype="sourcefile", reftarget=path, **common)
        found += [child.deepcopy() for child in node.children]
        return found


class LinksToNames(SphinxTransform):
    """Links `novoclip.zclip`, `zclip` and `zclip(6.0)` in a page to the entry of zclip in the reference."""

    default_priority = 510

    def apply(self, **_kwargs: Any) -> None:
        """Add the links to one document."""
        if not self.env.docname.startswith(WITHOUT_NAMES):
            for node in list(self.document.findall(is_free_literal)):
                name = re.fullmatch(r"(?:novoclip\.)?(\w+)(?:\(.*\))?", node.astext(), re.DOTALL)
                if name and name[1] in FUNCTIONS:
                    target = {"reftarget": f"novoclip.{name[1]}", "refdomain": "py", "reftype": "obj"}
                    link = addnodes.pending_xref("", refdoc=self.env.docname, refexplicit=True, **target)
                    node.replace_self(link)
                    link += node


def is_free_literal(node: nodes.Node) -> bool:
    """Whether a node is code in a line of prose or a table, which is no link and in no heading."""
    if not isinstance(node, nodes.literal):
        return False
    return not any(
        isinstance(above, nodes.reference | nodes.title | addnodes.pending_xref) for above in ancestors(node)
    )


def ancestors(node: nodes.Node) -> Iterator[nodes.Node]:
    """Yield what a node is in, from the inside out."""
    while node.parent is not None:
        node = node.parent
        yield node


def linked(env: Any) -> set[str]:
    """Return the files that pages link to."""
    if not hasattr(env, "linked_source_files"):
        env.linked_source_files = set()
    return env.linked_source_files


def merge(_app: Any, env: Any, _docnames: Any, other: Any) -> None:
    """Collect the files of a parallel reader."""
    linked(env).update(linked(other))


def resolve(app: Any, _env: Any, node: nodes.Element, content: nodes.Node) -> nodes.Node | None:
    """Return the link for a reference to a file."""
    if node.get("reftype") != "sourcefile":
        return None
    uri = app.builder.get_relative_uri(node["refdoc"], page_of(node["reftarget"]))
    return nodes.reference("", "", content, internal=True, refuri=uri)


def pages(app: Any) -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield the pages that show files."""
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "novoclip").rglob("*.py")}
    for path in sorted(own | linked(app.env)):
        code = (ROOT / path).read_text(encoding="utf-8")
        body = app.builder.highlighter.highlight_block(code, LANGUAGES[Path(path).suffix], lineanchors="L")
        yield page_of(path), {"title": path, "body": f"<h1>{path}</h1>{body}"}, "page.html"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return the link from an entry in `api/` to the line of the source."""
    if domain != "py" or not info["module"]:
        return None
    thing = sys.modules[info["module"]]
    for part in info["fullname"].split("."):
        thing = getattr(thing, part, None)
    thing = inspect.unwrap(thing) if callable(thing) else None
    if not inspect.isfunction(thing) and not inspect.isclass(thing):
        return None
    path = Path(inspect.getsourcefile(thing) or "").resolve()
    parts = path.parts[len(path.parts) - len(thing.__module__.split(".")) - (path.name == "__init__.py") :]
    return f"../{page_of('/'.join(parts))}.html#L-{inspect.getsourcelines(thing)[1]}"


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_transform(LinksToFiles)
    app.add_transform(LinksToNames)
    app.connect("env-merge-info", merge)
    app.connect("missing-reference", resolve)
    app.connect("html-collect-pages", pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
