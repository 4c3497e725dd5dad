"""The text of the gallery: cards, pages and the index, from the catalog, the docstrings and the cards' words."""

import inspect
import re
import textwrap

from benchmarks.gallery_card import Card
from benchmarks.gallery_formula import formula_of, told
from benchmarks.gallery_optimizers import DIRECTIONS, OPTIMIZERS
from benchmarks.gallery_rules import AFTER, BEFORE
from benchmarks.gallery_wrappers import WRAPPERS
from novoclip.catalog import CATALOG, Entry
from novoclip.commands.use_when import USE_WHEN


class Cards(dict[str, Card]):
    """The words of each card; one that is missing says where it belongs."""

    def __missing__(self, name: str) -> Card:
        message = f"no card for {name}: add one to benchmarks/gallery_rules.py, gallery_optimizers.py or "
        message += "gallery_wrappers.py"
        if name.startswith("scale_by_"):
            direction = name.removeprefix("scale_by_")
            message += f'; if it is the direction of an optimizer, add "{direction}" to the tuple of WHOLE in '
            message += "benchmarks/gallery_optimizers.py"
        raise LookupError(message)


CARDS = Cards({**BEFORE, **AFTER, **WRAPPERS, **OPTIMIZERS, **DIRECTIONS})
ENTRIES = {entry.name: entry for entry in CATALOG}
PAGES = {  # file: title, first sentences
    "gradients": (
        "Rules for the whole gradient",
        "They stand before the optimizer, and see one norm of all gradients, unless `per=` says otherwise.",
    ),
    "blocks": (
        "Rules per tensor, unit and element",
        "They stand before the optimizer. Each tensor, output unit or element is clipped by itself. In the pictures "
        "these are the same, since their gradient has one element.",
    ),
    "updates": (
        "Rules after the optimizer",
        "They see the updates that the optimizer has computed, and compare them with the weights. In the pictures the "
        "record stands for the norms of updates.",
    ),
    "wrappers": (
        "Gallery of wrappers and guards",
        "They take a rule, or an optimizer. In the pictures of guards the optimizer is `optax.identity()`, so that the "
        "gradients are seen that it would be given.",
    ),
    "optimizers": (
        "Gallery of optimizers",
        "In the pictures, the orange line is the length of the step divided by the learning rate, for a weight of 1 "
        "and the gradients of the record, all of one sign. Without `clip=`, each shows what spikes do to it.",
    ),
    "directions": (
        "Directions for your own chains",
        "An optimizer without its learning rate: `optax.chain(novoclip.scale_by_adam(), optax.scale(-1e-3))`.",
    ),
}
INDEX = """# Gallery

One card for each rule, wrapper and optimizer: the line to write, its formula, what it does to a gradient, when to use
it, when to avoid it, and its paper. [How to choose a rule](../choosing.md) goes the other way, from the problem to the
rule.

## How to read the pictures

Nothing in them is drawn by hand: each transform is run on gradients with one element, as
[`novoclip.replay`](../replay.md) does with recorded norms.

- Left, the response: the norm of the result for gradients of norm 0.01 to 1000. The dashed blue line is that of the
  first gradient of a run, the solid orange line that of the gradient after 200 calm steps with norms near 0.5. On the
  dotted line nothing is changed. Where the lines coincide, the rule has no state, or does not use it.
- Right, a record of 300 steps: the norms before in gray, and after in orange. The norms fall from 5 to 0.5. There are
  spikes of 6 to 100 times the level, three of them in a row, and one NaN. At step 240 the level becomes three times as
  high, and stays so.
- A result of 0 is at the bottom, in the record with a triangle.

The record is synthetic, and the same for all: [record.csv](record.csv). `novoclip replay record.csv` compares rules on
it in figures. It is one record: on [real trainings](../defaults.md) the rules that learn a limit differ.

`python benchmarks/gallery.py` writes these pages again.

## Cards

"""


def page_of(entry: Entry) -> str:
    """Return the page that has the card of an entry."""
    if entry.kind == "optimizer":
        return "directions" if entry.name in DIRECTIONS else "optimizers"
    if entry.kind == "wrapper":
        return "wrappers"
    if entry.place == "updates":
        return "updates"
    parameter = inspect.signature(entry.make).parameters.get("per")
    return "gradients" if (parameter.default if parameter else entry.per[0]) == "tree" else "blocks"


def use_when(name: str) -> str:
    """Return what ends "Use it when": the words of `novoclip rules`, or those of the card where it has none."""
    return USE_WHEN.get(name) or CARDS[name].use


def kind_of(entry: Entry) -> str:
    """Return the kind as a word for readers."""
    if entry.kind in ("wrapper", "optimizer"):
        return "direction" if page_of(entry) == "directions" else entry.kind
    return {"gradients": "rule", "blocks": "rule", "updates": "rule, after the optimizer"}[page_of(entry)]


def papers(entry: Entry) -> str:
    """Return the references of the docstring as links, with their years if they have any."""
    text = (inspect.getdoc(entry.make) or "").partition("\nReferences:")[2]
    found = re.findall(r"`([^`<]+?)\s*<(http[^>]+)>`_(?:,\s+(\d{4}))?", text)
    links = [f"[{' '.join(title.split())}]({link}){f', {year}' if year else ''}" for title, link, year in found]
    return "; ".join(links) + "." if links else "none."


def card(entry: Entry) -> str:
    """Return a card as Markdown."""
    words = CARDS[entry.name]
    summary = (inspect.getdoc(entry.make) or "").partition("\n")[0]
    parts = [f"## {entry.name}", summary, f"```python\n{words.line}\n```", told(formula_of(entry.make))]
    if words.unseen:
        parts.append(f"No picture. {words.unseen}")
    else:
        parts.append(f"![{_alternative(entry)}]({entry.name}.svg)")
        if words.weight != 1:
            parts.append(f"In the picture, the weight is {words.weight:g}.")
        if words.seen:
            parts.append(words.seen)
    parts += [f"- **Use it when** {use_when(entry.name)}.\n- **Avoid it when** {words.avoid}."]
    parts[-1] += f"\n- **Reference**: {papers(entry)}"
    return "\n\n".join(parts)


def _alternative(entry: Entry) -> str:
    if entry.kind == "optimizer":
        return f"The steps of {entry.name} on the record"
    return f"The response of {entry.name}, and the record before and after it"


def page(name: str) -> str:
    """Return the text of a page."""
    title, about = PAGES[name]
    cards = [card(entry) for entry in CATALOG if page_of(entry) == name]
    first = f"# {title}\n\n{textwrap.fill(about, 120)} [How to read the pictures](index.md#how-to-read-the-pictures)."
    if name == "directions":
        first = f"# {title}\n\n{textwrap.fill(about, 120)}"
    return "\n\n".join([first, *cards]) + "\n"


def index() -> str:
    """Return the text of the index."""
    rows = ["| card | kind | use it when |", "|---|---|---|"]
    for name in PAGES:
        rows += [
            f"| [`{entry.name}`]({name}.md#{entry.name}) | {kind_of(entry)} | {use_when(entry.name)} |"
            for entry in CATALOG
            if page_of(entry) == name
        ]
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *PAGES, "```"])
    return f"{INDEX}{chr(10).join(rows)}\n\n{toctree}\n"


def pages() -> dict[str, str]:
    """Return every page of the gallery, by the name of its file."""
    return {"index.md": index(), **{f"{name}.md": page(name) for name in PAGES}}
