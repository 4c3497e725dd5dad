"""Draw which files of novoclip import which, floor by floor: a file stands above all that it imports.

    python benchmarks/imports.py [FOLDER]
    python benchmarks/imports.py --write

Prints the floors as text, the lowest first, with how many files import each; with `--write`, writes them into
docs/structure.md, in place of the first drawing there. Raises `graphlib.CycleError` if files import each other in a
circle, by imports that are at their top.
"""

import argparse
import ast
from graphlib import TopologicalSorter
from pathlib import Path
import re

HERE = Path(__file__).parent.parent / "novoclip"
PAGE = Path(__file__).parent.parent / "docs" / "structure.md"
# The second block of the page is a drawing of the past, and begins without the command.
DRAWN = re.compile(r"(?<=^\$ python benchmarks/imports\.py\n).*?(?=\n```$)", re.DOTALL | re.MULTILINE)


def imports(folder: Path = HERE) -> dict[str, set[str]]:
    """Return for each file, by its name with dots, the files that it imports when it is imported."""
    files = {path: ".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")}
    names = {name.removesuffix(".__init__"): name for name in files.values()}
    found: dict[str, set[str]] = {name: set() for name in files.values()}
    for path, name in files.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {names.get(each, names.get(node.module, "")) for each in wanted}
            elif isinstance(node, ast.Import):
                found[name] |= {names.get(alias.name, "") for alias in node.names}
        found[name] -= {"", name}
    return found


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the files, floor by floor."""
    level: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        level[name] = 1 + max((level[other] for other in graph[name]), default=-1)
    return [sorted(name for name in level if level[name] == floor) for floor in range(max(level.values()) + 1)]


def drawing(folder: Path = HERE) -> str:
    """Return the floors as text."""
    graph = imports(folder)
    used = {name: sum(name in others for others in graph.values()) for name in graph}
    rows = [
        f"{floor:2}  " + "  ".join(f"{name.removeprefix('novoclip.')} ({used[name]})" for name in names)
        for floor, names in enumerate(floors(graph))
    ]
    return "\n".join([f"{len(graph)} files, {sum(map(len, graph.values()))} imports", *rows])


def written(page: str) -> str:
    """Return the page with its first drawing made anew; the rest stays."""
    new, times = DRAWN.subn(lambda _: drawing(), page, count=1)
    if not times:
        message = "docs/structure.md has no block that begins with the line `$ python benchmarks/imports.py`"
        raise ValueError(message)
    return new


def main() -> None:
    """Print the drawing, or write it into the page."""
    parser = argparse.ArgumentParser(description="Draw which files of novoclip import which, floor by floor.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("folder", nargs="?", type=Path, default=HERE, metavar="FOLDER", help="the package to draw")
    choice.add_argument("--write", action="store_true", help=f"write it into docs/{PAGE.name}")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(drawing(options.folder))


if __name__ == "__main__":
    main()
