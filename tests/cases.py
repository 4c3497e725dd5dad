"""The catalog, as subjects of the contract."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from novoclip.catalog import CATALOG, Entry
from novoclip.testing import Subject


def of_two_equal_examples(transform):
    def twice(leaf):
        return jnp.stack([leaf, leaf]) if isinstance(leaf, jax.Array) else np.stack([leaf, leaf])

    def update(updates, state, params=None, **extra):
        return transform.update(jax.tree.map(twice, updates), state, params, **extra)

    return optax.GradientTransformationExtraArgs(transform.init, update)


def on_one_device(transform):
    """The transform inside a map over one device."""

    def update(updates, state, params=None, **extra):
        function = functools.partial(transform.update, **extra)
        mapped = jax.vmap(function, in_axes=None, out_axes=None, axis_name="devices", axis_size=1)
        return mapped(updates, state, params)

    return optax.GradientTransformationExtraArgs(transform.init, update)


AROUND = {"examples": of_two_equal_examples, "shards": on_one_device}


class Case(NamedTuple):
    entry: Entry
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        shown = ", ".join(f"{k}={'...' if isinstance(v, tuple) else v}" for k, v in self.arguments.items())
        return f"{self.entry.name}({shown})"

    def argument(self, name: str, otherwise: str) -> str:
        parameter = inspect.signature(self.entry.make).parameters.get(name)
        return self.arguments.get(name, parameter.default if parameter else otherwise)

    def transform(self):
        transform = self.entry.make(**self.arguments)
        return AROUND[self.entry.place](transform) if self.entry.place in AROUND else transform

    def subject(self) -> Subject:
        per = self.entry.clips or self.argument("per", self.entry.per[0])
        return Subject(
            self.transform(),
            self.entry.kind,
            self.argument("shape", self.entry.shape),
            per,
            self.argument("norm", self.entry.norm),
            of_spikes=self.entry.of_spikes,
        )


# Written as themselves, or one of those that share their code: where all are too many, the others are left to -m full.
ALWAYS = (
    *("clip_by_value", "clip_by_global_norm", "clip_by_second_moment", "autoclip", "agc", "clippy", "centralize"),
    *("clip_by_spectral_norm", "record", "per_example", "uclip", "start_after", "skip_spikes", "guard_nonfinite"),
    *("sgd", "adam", "novograd", "novoclip", "rmsprop", "adagrad", "zclip", "clip_by_norm", "nsgd"),
)
# One of each kind of code, for tests that cost more.
SEVERAL = (
    *("clip_by_value", "clip_by_norm", "clip_by_second_moment", "autoclip", "agc", "clippy", "record"),
    *("uclip", "skip_spikes", "adam", "novograd", "novoclip"),
)


def sampled(cases, names=ALWAYS):
    """Parameters of a test: those of these names in every run, the others with -m full."""
    return [
        pytest.param(case, id=case.name, marks=() if case.entry.name in names else pytest.mark.full) for case in cases
    ]


CASES = [Case(entry, arguments) for entry in CATALOG for arguments in entry.examples]
# One of each entry; aliases (scale_by_*) are the same code.
FIRST = [case for case in CASES if case.arguments is case.entry.examples[0] and not case.name.startswith("scale_by_")]


def within_the_copies_allowed(arguments, per):
    """The arguments, with a shorter window where one per element would be refused."""
    return arguments | ({"window": 50} if per == "element" and arguments.get("window", 0) > 64 else {})


FULL_CASES = [
    Case(entry, within_the_copies_allowed(arguments, per) | {"per": per, "norm": norm})
    for entry in CATALOG
    for arguments in entry.examples
    for per in entry.per
    for norm in (("l2",) if per == "element" else ("l1", "l2", "max", "rms"))
    if "per" in inspect.signature(entry.make).parameters and "norm" in inspect.signature(entry.make).parameters
]
