"""Tables, 95 % intervals and files that the experiments of this folder share."""

import argparse
from importlib.metadata import version
from pathlib import Path
import platform
import sys

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "evidence"
PACKAGES = ("novoclip", "jax", "optax")
BEGIN, END = "<!-- written by the command: begin -->", "<!-- written by the command: end -->"


def table(rows):
    """Return a Markdown table.

    Args:
      rows: a list of dicts with the same keys, which are the headings. A float is shown with three significant
        digits, any other value as `str` shows it.
    """
    headings = list(rows[0])
    lines = [headings, ["---"] * len(headings), *([_cell(row[heading]) for heading in headings] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value):
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value).replace("|", "\\|")


def mean_and_interval(values):
    """Return the mean over the first axis, the seeds, and half the width of its 95 % Student t interval.

    The half width is t * s / sqrt(n), with the 97.5 % quantile t of Student's distribution with n - 1 degrees of
    freedom and the sample's standard deviation s. It is nan for one seed.
    """
    values = np.asarray(values, np.float64)
    seeds = len(values)
    if seeds == 1:
        return values[0], np.full_like(values[0], np.nan)
    with np.errstate(invalid="ignore"):  # a loss may be infinite
        deviation = values.std(axis=0, ddof=1)
    return values.mean(axis=0), stats.t.ppf(0.975, seeds - 1) * deviation / np.sqrt(seeds)


def mean_cell(values, digits=3):
    """Return `mean ± half width` as text, or the mean alone for one seed."""
    mean, half = mean_and_interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")


def parser(description, *, steps, seeds=3):
    """Return an ArgumentParser with --seeds, --steps and --out; `steps` and `seeds` are the defaults."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arguments.add_argument("--seeds", type=_positive, default=seeds, help="trainings of each configuration")
    arguments.add_argument("--steps", type=_positive, default=steps, help="optimizer steps of each training")
    arguments.add_argument("--out", type=Path, default=DOCS, metavar="DIR", help="folder of the table and the picture")
    return arguments


def _positive(text):
    value = int(text)
    if value < 1:
        message = f"expected a whole number of at least 1, got {text}"
        raise argparse.ArgumentTypeError(message)
    return value


def save(name, markdown, figure, out=DOCS):
    """Print the Markdown, and write it to `out/name.md` and the picture to `out/name.png`.

    In an existing file only the text between the two marker comments is replaced: what people wrote around it stays.

    Args:
      name: the experiment's name, which is the script's name without `.py`.
      markdown: the text with the tables.
      figure: a matplotlib Figure.
      out: the folder, which is made if needed.
    """
    out.mkdir(parents=True, exist_ok=True)
    print(markdown, flush=True)
    figure.savefig(out / f"{name}.png", dpi=120, bbox_inches="tight", metadata={"Software": None})
    path = out / f"{name}.md"
    title = name.replace("_", " ").capitalize()
    text = path.read_text("utf-8") if path.exists() else f"# {title}\n\n{BEGIN}\n{END}\n"
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        message = f"{path} needs the line {BEGIN} once and the line {END} once; add them where the tables belong"
        raise ValueError(message)
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    written = f"{markdown}\n\n![{title}]({name}.png)\n\n{_provenance(name)}"
    path.write_text(f"{before}{BEGIN}\n\n{written}\n\n{END}{after}", "utf-8")


def _provenance(name):
    given = sys.argv[1:] if Path(sys.argv[0]).stem == name else []
    arguments = [word for word in given if not word.startswith("--out=")]
    if "--out" in arguments:  # a folder of this machine
        place = arguments.index("--out")
        del arguments[place : place + 2]
    command = " ".join(["python", f"examples/evidence/{name}.py", *arguments])
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return f"Command: `{command}`. Versions: Python {platform.python_version()}, {versions}."
