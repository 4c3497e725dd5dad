"""Print the tables of rules, wrappers and optimizers, or write them into the page that has them.

python -m novoclip.catalog
python -m novoclip.catalog --docs docs/catalog.md
"""

import argparse
from pathlib import Path
import re
import sys

from novoclip.catalog import RULE_KINDS, table

TABLES = ((RULE_KINDS, "rule"), (("wrapper",), "wrapper"), (("optimizer",), "optimizer"))


def tables() -> list[str]:
    """Return the tables, with links from the folder docs/ to the sources."""
    return [table(kinds, title).replace("](novoclip/", "](../novoclip/") for kinds, title in TABLES]


def written(page: str) -> str:
    """Return a page with its tables made anew; the rest stays.

    Raises:
      ValueError: if the page does not have each table once.
    """
    for new in tables():
        head = "\n".join(new.split("\n")[:2])
        old = re.findall(rf"^{re.escape(head)}\n(?:\|.*\n)*", page, re.MULTILINE)
        if len(old) != 1:
            message = f"the page must have one table that begins with these lines, and has {len(old)}:\n{head}"
            raise ValueError(message)
        page = page.replace(old[0], f"{new}\n")
    return page


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(prog="python -m novoclip.catalog", description="The tables of the catalog.")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write them into this page, in place of its tables")
    page = parser.parse_args().docs
    if page is None:
        sys.stdout.write("\n\n".join(tables()) + "\n")
    else:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
