"""What every transform makes of bad gradients and of wrong uses: the table in docs/faults.md.

python benchmarks/faults.py --out docs/faults.md

It takes three minutes of one core. The file is written at the end.
"""

import argparse
from collections.abc import Callable, Iterator
import functools
import inspect
from pathlib import Path
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from novoclip import states
from novoclip.testing import subject
from tests.cases import CASES, Case

# Without jit, every operation is compiled for each shape.
SHAPES = {"kernel": (4, 3), "bias": (3,)}
random_tree = functools.partial(subject.random_tree, shapes=SHAPES)
# Fields of states that say what happened, and are not read by the next step.
LOGS = ("steps", "norms", "norm", "limits", "limit", "value_limit", "fraction", "clipped", "nonfinite")
LOGS = (*LOGS, "skipped", "released", "spikes_in_a_row", "leaf_steps", "leaf_last")
LOGS = (*LOGS, "nonfinite_in_a_row", "skipped_in_a_row", "norms_after", "norm_spikes", "value_spikes")
LOGS = (*LOGS, "seen", "seen_at", "norm_state", "value_state", "judged", "spikes", "recent", "growth_steps", "scale")
CHOICES = ("per", "norm", "shape", "nonfinite", "form", "mode", "learn", "policy")
COUNTS = ("window", "warmup")
NOT_FINITE = "NaN or inf out"
LATER = "; the next step is not finite either"
INTRODUCTION = """# Faults

From this page you learn what comes out of each rule, guard and optimizer when its gradient is broken, or when it is
called wrongly: zeros, a skipped step, an error that names the argument, or NaN.

What each transform of the catalog makes of a bad gradient, or of a wrong use, at its second step. Found by
`python benchmarks/faults.py`, with the first arguments that `novoclip/catalog/` lists for each; float32, CPU, not
compiled. Parameters are a 4 x 3 kernel and a bias of 3; a fault in one element or one leaf is in the kernel.

- "clipped": no element grew; "rescaled": some did; "a step": what an optimizer or a wrapper makes of a gradient.
- state is what later steps depend on: "kept" is bit for bit what it was, "-" means that there is none.
- counted: whether a counter `nonfinite` in the state went up; "-" means that there is none.
- The main number is the learning rate of an optimizer that has one, otherwise the first argument, if it is a number.
- Where numbers are wrong, a usual step follows. It is finite unless the row says that it is not.
- A learning rate that a schedule makes NaN comes out, in the updates; a decay that is NaN learns nothing.
- Trees of another structure or shape than in `init` raise where the state has blocks or leaves to compare them with.

| fault | what happens | state | counted | transforms |
|---|---|---|---|---|"""


class Outcome(NamedTuple):
    """What came of a fault.

    Attributes:
      words: what happened, in few words.
      state: "kept", "moved", "not finite", or "-" where there is none.
      counted: "yes" or "no", or "-" where the state has no counter `nonfinite`.
      names: whether an error's message contains the argument's or leaf's name.
    """

    words: str
    state: str = "-"
    counted: str = "-"
    names: bool = True


class Fault(NamedTuple):
    """A bad gradient: the gradients and the parameters of the step, from those that are good."""

    name: str
    gradients: Callable[[dict[str, Any]], Any]
    params: Callable[[dict[str, Any]], Any] = lambda params: params
    leaf: str = ""
    send_params: bool = True


def in_one_element(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda good: good | {"kernel": good["kernel"].at[1, 1].set(value)}


def everywhere(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return functools.partial(jax.tree.map, lambda leaf: jnp.full_like(leaf, value))


def sized(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    # Not a product, which may flush numbers below the smallest normal one to 0.
    def resize(leaf: Any) -> Any:
        return jnp.asarray(np.where(np.asarray(leaf) < 0, np.float32(-value), np.float32(value)))

    return functools.partial(jax.tree.map, resize)


def without_bias(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: leaf for name, leaf in tree.items() if name != "bias"}


def with_leaf(name: str, leaf: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tree: tree | {name: leaf}


FAULTS = (
    Fault("NaN in one element", in_one_element(np.nan)),
    Fault("NaN in one leaf", lambda good: good | {"kernel": jnp.full_like(good["kernel"], np.nan)}),
    Fault("NaN everywhere", everywhere(np.nan)),
    Fault("inf in one element", in_one_element(np.inf)),
    Fault("inf everywhere", everywhere(np.inf)),
    Fault("-0.0 everywhere", everywhere(-0.0)),
    Fault("denormal: ±1e-40 everywhere", sized(1e-40)),
    Fault("tiny: ±1e-30 everywhere", sized(1e-30)),
    Fault("huge: ±1e38 everywhere, whose global norm is not a float32", sized(1e38)),
    Fault("large: ±1e30 everywhere", sized(1e30)),
    Fault("a leaf is missing", without_bias, leaf="bias"),
    Fault("a leaf has another shape: (5,) for (3,)", with_leaf("bias", jnp.ones(5)), leaf="bias"),
    Fault("a leaf has a shape that broadcasts: (1,) for (3,)", with_leaf("bias", jnp.ones(1)), leaf="bias"),
    Fault("a leaf has a shape that broadcasts: (2, 3) for (3,)", with_leaf("bias", jnp.ones((2, 3))), leaf="bias"),
    Fault("float16 gradients of float32 parameters", lambda good: jax.tree.map(lambda x: x.astype(jnp.float16), good)),
    Fault("a leaf of integers", with_leaf("bias", jnp.ones(3, jnp.int32)), leaf="bias"),
    Fault(
        "float0, of a parameter of integers",
        with_leaf("indices", np.zeros(2, jax.dtypes.float0)),
        with_leaf("indices", jnp.zeros(2, jnp.int32)),
    ),
    Fault("a leaf is None, and so is the parameter", with_leaf("none", None), with_leaf("none", None)),
    Fault("a leaf is None, but not the parameter", with_leaf("bias", None), leaf="bias"),
    Fault("empty trees", lambda _: {}, lambda _: {}),
    Fault("`params` missing", lambda good: good, send_params=False, leaf="params"),
)
OF_NUMBERS = FAULTS[:10]
VALUES = (("negative", -1.0), ("zero", 0.0), ("NaN", np.nan), ("inf", np.inf))


def nodes(tree: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a state with the name of the innermost field that holds them."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        fields = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        found.append((fields[-1] if fields else "", leaf))
    return found


def state_of(state: Any) -> list[Any]:
    return [np.asarray(leaf) for name, leaf in nodes(state) if name not in LOGS]


def counted(state: Any) -> list[int]:
    # `loss_scaling` skips nothing but what is not finite.
    counters = ("nonfinite", "skipped") if isinstance(state, states.LossScaleState) else ("nonfinite",)
    return [int(leaf) for name, leaf in nodes(state) if name in counters]


def finite(leaves: list[Any]) -> bool:
    return all(np.all(np.isfinite(np.asarray(leaf))) for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact))


def types(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), tree)


def about_state(before: Any, after: Any) -> str:
    old, new = state_of(before), state_of(after)
    if not old:
        return "-"
    if types(before) != types(after):
        return "of another shape"
    # Infinities may stand for what was not seen yet.
    worse = [np.isnan(b) | (np.isinf(b) & ~np.isinf(a)) for a, b in zip(old, new, strict=True) if b.dtype.kind in "fc"]
    if any(np.any(part) for part in worse):
        return "not finite"
    return "kept" if all(a.tobytes() == b.tobytes() for a, b in zip(old, new, strict=True)) else "moved"


def about_updates(case: Case, gradients: Any, updates: Any) -> str:
    """Say in few words what became of the gradients."""
    if types(gradients) != types(updates):
        return "updates of another shape"
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(updates), strict=True)
    arrays = [(np.asarray(a), np.asarray(b)) for a, b in pairs if a.dtype != jax.dtypes.float0]
    if not arrays:
        return "passes unchanged"
    unchanged = all(a.tobytes() == b.tobytes() for a, b in arrays)
    bad = [(~np.isfinite(a), b) for a, b in arrays if not np.all(np.isfinite(a))]
    if not finite([b for _, b in arrays]):
        words = "passes unchanged" if unchanged else NOT_FINITE
    elif all(not np.any(b) for _, b in arrays):
        words = "zeros (whole tree)"
    elif bad and all(not np.any(b[where]) for where, b in bad):
        whole = all(not np.any(b) for _, b in bad)
        others = all(np.all(b[~where]) for where, b in bad)
        words = "zeros (that leaf)" if whole else "zero (that element)" if others else "zeros (that unit)"
    elif unchanged:
        words = "passes unchanged"
    elif case.entry.kind in ("optimizer", "wrapper"):
        words = "a step"
    else:
        grew = any(np.any(np.abs(b) > np.abs(a) * (1 + 1e-3)) for a, b in arrays)
        words = "rescaled" if grew else "clipped"
    return words


def raised(error: Exception, name: str) -> Outcome:
    text = " ".join(str(error).split())
    # Which operation meets the shapes first, and what the numbers are, is of no interest.
    first = re.sub(r"Array.*", "an array", re.sub(r"^\w+ got incompatible", "incompatible", text)).split()
    words = " ".join(first[:6]) + (" ..." if len(first) > 6 else "")
    return Outcome(f"raises {type(error).__name__}: {words}", names=name in text)


class Run:
    """A transform, with the state after one usual step."""

    def __init__(self, case: Case, transform: Any, params: Any, first: Any) -> None:
        self.case, self.params = case, params
        self.step = transform.update
        _, self.state = self.step(first, transform.init(params), params)

    def outcome(self, gradients: Any, params: Any, after: Any = None) -> Outcome:
        """Return what comes of a step; `after` are the gradients of the next one."""
        updates, state = self.step(gradients, self.state, params)
        words = about_updates(self.case, gradients, updates)
        kept = about_state(self.state, state)
        counts = list(zip(counted(self.state), counted(state), strict=True))
        if after is not None and kept != "of another shape":
            updates, state = self.step(after, state, params)
            usual = finite(jax.tree.leaves(updates)) and about_state(self.state, state) != "not finite"
            words += "" if usual else LATER
        return Outcome(words, kept, ("yes" if any(new > old for old, new in counts) else "no") if counts else "-")


def of_gradients(case: Case) -> Iterator[tuple[str, Outcome]]:
    """Yield what a transform makes of each bad gradient."""
    usual = Run(case, case.transform(), random_tree(), random_tree(1))
    for fault in FAULTS:
        params, gradients = fault.params(random_tree()), fault.gradients(random_tree(2))
        same = jax.tree.structure(params) == jax.tree.structure(usual.params)
        try:
            run = usual if same else Run(case, case.transform(), params, fault.gradients(random_tree(1)))
            after = random_tree(3) if fault in OF_NUMBERS else None
            yield fault.name, run.outcome(gradients, params if fault.send_params else None, after)
        except (TypeError, ValueError, AttributeError) as error:
            yield fault.name, raised(error, fault.leaf)


def main_number(case: Case) -> tuple[str, float] | None:
    """Return the name and value of the number that a transform is mostly about."""
    parameters = inspect.signature(case.entry.make).parameters
    first = next(iter(parameters))
    name = "learning_rate" if "learning_rate" in parameters and case.entry.kind == "optimizer" else first
    value = case.arguments.get(name, parameters[name].default)
    return (name, value) if isinstance(value, float | int) and not isinstance(value, bool) else None


def of_arguments(case: Case) -> Iterator[tuple[str, Outcome]]:
    """Yield what a transform makes of each wrong argument."""

    def of_argument(name: str, value: Any) -> Outcome:
        changed = Case(case.entry, case.arguments | {name: value})
        try:
            transform = changed.transform()
        except (TypeError, ValueError) as error:
            outcome = raised(error, name)
            named = f"raises {type(error).__name__}, which names the argument"
            return outcome._replace(words=named) if outcome.names else outcome
        run = Run(changed, transform, random_tree(), random_tree(1))
        return run.outcome(random_tree(2), run.params, random_tree(3))

    number = main_number(case)
    if number is not None:
        name, usual = number
        for word, value in VALUES:
            yield f"main number {word}", of_argument(name, value)
        schedule = functools.partial(lambda usual, step: jnp.where(step == 1, jnp.nan, usual), usual)
        yield "main number a schedule that returns NaN at this step", of_argument(name, schedule)
    parameters = inspect.signature(case.entry.make).parameters
    for name in COUNTS:
        if name in parameters:
            yield f"`{name}=0`", of_argument(name, 0)
    for name in CHOICES:
        if name in parameters:
            yield f"`{name}=` unknown", of_argument(name, "unknown")


FIRST = tuple({case.entry.name: case for case in reversed(CASES)}.values())[::-1]


@functools.cache
def examine(index: int) -> dict[str, Outcome]:
    """Return what the transform of that place in FIRST makes of every fault that applies to it."""
    return dict([*of_gradients(FIRST[index]), *of_arguments(FIRST[index])])


def table() -> str:
    """Return the whole page."""
    found = {case.entry.name: examine(index) for index, case in enumerate(FIRST)}
    faults = dict.fromkeys(fault for outcomes in found.values() for fault in outcomes)
    rows = []
    for fault in faults:
        groups: dict[tuple[str, ...], list[str]] = {}
        for name, outcomes in found.items():
            if fault in outcomes:
                groups.setdefault(outcomes[fault][:3], []).append(name)
        largest = max(groups.values(), key=len)
        for cells, names in sorted(groups.items(), key=lambda item: -len(item[1])):
            listed = ", ".join(names)
            if names is largest and len(names) > 8:
                total = sum(map(len, groups.values()))
                listed = f"all {total}" if len(groups) == 1 else f"the other {len(names)} of {total}"
            rows.append(f"| {fault} | {' | '.join(cells)} | {listed} |")
    return "\n".join([INTRODUCTION, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description="What every transform makes of bad gradients and of wrong uses.")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page to this file, at the end")
    out = parser.parse_args().out
    text = table() + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
