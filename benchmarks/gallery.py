"""Write the gallery of docs/gallery: a card for each entry of the catalog, with pictures of what it does.

    python benchmarks/gallery.py                  # pages, record and pictures
    python benchmarks/gallery.py --text           # pages and record alone, a second
    python benchmarks/gallery.py --only zclip     # pages, record, and the picture of this card

The pictures need matplotlib, of the extra `demo`. All of them take 33 seconds of one core (November 2026, jax 0.10.2,
matplotlib 3.11). Other versions of matplotlib may write other bytes for the same pictures.
"""

import argparse
from pathlib import Path
import sys
import time

import jax

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import gallery_pages, gallery_pictures, gallery_run

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"


def main() -> None:
    """Write the gallery."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="store_true", help="draw no pictures")
    parser.add_argument("--only", nargs="+", metavar="CARD", help="draw the pictures of these cards alone")
    options = parser.parse_args()
    begun = time.perf_counter()
    jax.config.update("jax_disable_most_optimizations", True)  # every card is compiled once and run once
    FOLDER.mkdir(exist_ok=True)
    for name, text in {**gallery_pages.pages(), "record.csv": gallery_run.record_text()}.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    seen = [name for name, words in gallery_pages.CARDS.items() if not words.unseen]
    if options.only and not set(options.only) <= set(seen):
        parser.error(f"--only takes cards with a picture: {', '.join(seen)}")
    for name in [] if options.text else options.only or seen:
        gallery_pictures.write(FOLDER, gallery_pages.ENTRIES[name], gallery_pages.CARDS[name])
    print(f"{FOLDER}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
