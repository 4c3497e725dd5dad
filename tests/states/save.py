"""Save the states of this version, once, when it is released: `python -m tests.states.save`.

`states.npz` has every leaf under "rule: path", and the updates of the step after; `structure.json` the
paths, dtypes and shapes. Numbers that NumPy has no name for would be stored as bytes; here all have one.
"""

from importlib.metadata import version
import json
from pathlib import Path

import jax
import numpy as np

from novoclip.testing.subject import random_tree
from tests.states.rules import RULES

HERE = Path(__file__).parent
STEPS = 4


def gradients(name, seed):
    """Of a step; with a first axis of two examples for the rule that takes them."""
    return jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]) if name == "per_example" else leaf, random_tree(seed))


def leaves_by_path(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def after(name, steps=STEPS):
    rule = RULES[name]
    state = rule.init(random_tree())
    for seed in range(steps):
        updates, state = rule.update(gradients(name, seed), state, random_tree())
    return updates, state


def save(folder):
    arrays, structure = {}, {}
    for name in RULES:
        leaves = leaves_by_path(after(name)[1])
        structure[name] = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}
        arrays |= {f"{name}: {path}": np.asarray(leaf) for path, leaf in leaves.items()}
        arrays |= {f"{name}: next{p}": np.asarray(u) for p, u in leaves_by_path(after(name, STEPS + 1)[0]).items()}
    folder.mkdir()
    np.savez_compressed(folder / "states.npz", **arrays)
    (folder / "structure.json").write_text(json.dumps(structure, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    save(HERE / version("novoclip"))
