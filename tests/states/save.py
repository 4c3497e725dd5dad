"""Save the states of this version, once, when it is released: `python -m tests.states.save`.

`states.npz` has every leaf under "rule: state path", and the updates and the state of the step after;
`structure.json` the paths, dtypes and shapes. All dtypes are ones that NumPy has a name for.
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


def stepping(name):
    """The state at first, and the compiled step `state, seed -> updates, state`."""
    update = jax.jit(RULES[name].update)
    return RULES[name].init(random_tree()), lambda state, seed: update(gradients(name, seed), state, random_tree())


def after_steps(state, step):
    for seed in range(STEPS):
        _, state = step(state, seed)
    return state


def save(folder):
    arrays, structure = {}, {}
    for name in RULES:
        state, step = stepping(name)
        state = after_steps(state, step)
        updates, later = step(state, STEPS)
        leaves = leaves_by_path(state)
        structure[name] = {path: [str(leaf.dtype), list(leaf.shape)] for path, leaf in leaves.items()}
        for kind, tree in (("state", state), ("updates", updates), ("later", later)):
            arrays |= {f"{name}: {kind} {path}": np.asarray(leaf) for path, leaf in leaves_by_path(tree).items()}
    folder.mkdir()
    np.savez_compressed(folder / "states.npz", **arrays)
    (folder / "structure.json").write_text(json.dumps(structure, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    save(HERE / version("novoclip"))
