"""Draw which files of novoclip import which, floor by floor: a file stands above all that it imports.

    python benchmarks/imports.py [FOLDER]

Prints the floors as text, the lowest first, with how many files import each. Raises `graphlib.CycleError` if files
import each other in a circle, by imports that are at their top.
"""

import ast
from graphlib import TopologicalSorter
from pathlib import Path
import sys

HERE = Path(__file__).parent.parent / "novoclip"


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


if __name__ == "__main__":
    print(drawing(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE))
