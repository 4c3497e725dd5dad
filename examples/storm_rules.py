"""The rules and optimizers that train_lm.py takes, read from text such as `clip_by_norm:max_norm=0.2,per=tensor`."""

import ast
from collections.abc import Callable
import inspect
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from nearest import suggestion
import optax

import novoclip
from novoclip.catalog import CATALOG

LEARNING_RATES = {
    "sgd": 0.3,
    "momentum": 0.1,
    "adagrad": 0.03,
    "clippy_adagrad": 0.03,
    "rmsprop": 3e-3,
    "adam": 3e-3,
    "adamw": 3e-3,
    "amsgrad": 3e-3,
    "lamb": 0.01,
    "lars": 1.0,
    "novograd": 0.01,
    "novoclip": 3e-3,
    "nsgd": 0.03,
    "stable_adamw": 3e-3,
    "adopt": 3e-3,
    "acclip": 3e-3,
    "spam": 3e-3,
}
OPTIMIZERS = {entry.name: entry for entry in CATALOG if entry.name in LEARNING_RATES}
# Shards need several devices; a rule for them has nothing to do here.
RULES = {entry.name: entry for entry in CATALOG if entry.kind != "optimizer" and entry.place != "shards"}


class Rule(NamedTuple):
    """A clipping rule or wrapper, its arguments, and where it acts: on gradients, updates, or around the optimizer."""

    name: str
    arguments: dict[str, Any]
    make: Callable[..., Any]
    place: str = "gradients"
    library: str = "novoclip"

    def call(self, optimizer):
        """Return what one would write in a program, around an optimizer of that name if the rule is a wrapper of it."""
        first = next(iter(inspect.signature(self.make).parameters))
        shown = [optimizer] if self.place == "optimizer" else []
        for name, value in self.arguments.items():
            if not (name == "inner" and self.place == "optimizer"):
                text = value.call(optimizer) if isinstance(value, Rule) else repr(value)
                text = "..." if isinstance(value, optax.GradientTransformation) else text
                shown.append(text if name == first else f"{name}={text}")
        return f"{self.library}.{self.name}({', '.join(shown)})"

    def made(self, **more):
        """Return the transform."""
        arguments = {name: value.made() if isinstance(value, Rule) else value for name, value in self.arguments.items()}
        return self.make(**arguments | more)


NO_RULE = Rule("no rule", {}, optax.identity)
GLOBAL_NORM = Rule("clip_by_global_norm", {"max_norm": 1.0}, optax.clip_by_global_norm, library="optax")


class Descent(NamedTuple):
    """An optimizer by its name, its title as in "the Adam optimizer", its arguments, and the transform itself."""

    name: str
    title: str
    arguments: dict[str, Any]
    transform: optax.GradientTransformation

    def __str__(self):
        """Return what one would write in a program."""
        return f"novoclip.{self.name}({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"


def assemble(rule, descent):
    """Return the optimizer with the rule in its place, between two records of the norm."""
    seen, passed = ("seen", novoclip.record()), ("passed", novoclip.record())
    if rule.place == "optimizer":
        inner = optax.named_chain(passed, ("descent", descent))
        return optax.named_chain(seen, ("rule", rule.made(inner=inner)))
    made = ("rule", rule.made())
    if rule.place == "updates":
        return optax.named_chain(("descent", descent), seen, made, passed)
    if rule.place == "examples":
        return optax.named_chain(made, passed, ("descent", descent))
    return optax.named_chain(seen, made, passed, ("descent", descent))


def parse_rule(text):
    """Return the rule for `name:argument=value,argument=value`; `inner=` may name another.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if there is no such rule or argument, or the rule refuses its value.
    """
    name, _, listed = text.partition(":")
    if name not in RULES:
        hint = f"; it is an optimizer: --optimizer {name}" if name in OPTIMIZERS else suggestion(name, RULES)
        msg = f"no rule {name!r}{hint or '; --list shows all'}"
        raise ValueError(msg)
    entry = RULES[name]
    arguments = parse_arguments(entry, listed) if listed else dict(entry.examples[0])
    if isinstance(arguments.get("inner"), str):
        arguments["inner"] = parse_rule(arguments["inner"])
    rule = Rule(name, arguments, entry.make, entry.place)
    jax.eval_shape(lambda: one_step(rule))  # whatever the rule refuses, it refuses here
    return rule


def one_step(rule):
    optimizer = assemble(rule, optax.identity())
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    gradients = jax.tree.map(lambda leaf: leaf[None], params) if rule.place == "examples" else params
    return optimizer.update(gradients, optimizer.init(params), params, value=jnp.float32(1.0))


def parse_optimizer(text):
    """Return the optimizer for `name:argument=value,argument=value`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if there is no such optimizer or argument, or the optimizer refuses its value.
    """
    name, _, listed = text.partition(":")
    if name not in OPTIMIZERS:
        hint = f"; it is a rule: --clip {name}" if name in RULES else suggestion(name, OPTIMIZERS)
        msg = f"no optimizer {name!r}{hint or '; --list shows all'}"
        raise ValueError(msg)
    entry = OPTIMIZERS[name]
    arguments = {"learning_rate": LEARNING_RATES[name]} | parse_arguments(entry, listed)
    title = re.match(r"The (\S+) optimizer", summary(entry))
    # Only the rule is to protect the run, so that the effect of the rule is seen.
    transform = entry.make(**{"nonfinite": "propagate"} | arguments)
    return Descent(name, title[1] if title else name, arguments, transform)


def parse_arguments(entry, listed):
    parameters = inspect.signature(entry.make).parameters
    arguments = {}
    for item in listed.split(",") if listed else ():
        key, _, value = (part.strip() for part in item.partition("="))
        if not (key and value):
            msg = f"expected argument=value, got {item!r}"
            raise ValueError(msg)
        if key not in parameters:
            hint = suggestion(key, parameters) or f"; it takes {', '.join(parameters)}"
            msg = f"{entry.name} has no argument {key!r}{hint}"
            raise ValueError(msg)
        arguments[key] = parse_value(value)
    given = {*arguments, "inner"} if entry.place == "optimizer" else {*arguments, "learning_rate"}
    missing = [name for name, known in parameters.items() if known.default is known.empty and name not in given]
    if missing:
        msg = f"{entry.name} needs {' and '.join(f'{name}=...' for name in missing)}"
        raise ValueError(msg)
    return arguments


def parse_value(text):
    try:
        return float("inf") if text == "inf" else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a bare word, as in per=tensor


def summary(entry):
    return inspect.getdoc(entry.make).splitlines()[0]


def settings(entry):
    """Return the arguments that can be written here, with their defaults; without a value, those that must be given."""
    shown = []
    for name, known in inspect.signature(entry.make).parameters.items():
        if known.default is known.empty:
            shown.append(f"{name}={LEARNING_RATES.get(entry.name, '') if name == 'learning_rate' else ''}")
        elif isinstance(known.default, bool | int | float | str):
            shown.append(f"{name}={known.default}")
    return ",".join(shown)


def listing():
    """Return everything that --clip and --optimizer take, with their arguments and defaults."""
    wrappers = [entry for entry in RULES.values() if entry.kind == "wrapper"]
    sections = {
        "Rules, for --clip": [entry for entry in RULES.values() if entry.kind != "wrapper"],
        "Wrappers of a rule (inner=NAME) or of the optimizer, for --clip": wrappers,
        "Optimizers, for --optimizer": [OPTIMIZERS[name] for name in LEARNING_RATES],
    }
    width = max(map(len, (*RULES, *OPTIMIZERS)))
    blocks = [
        "\n".join(
            [
                f"{heading}:",
                *(
                    f"  {entry.name:<{width}}  {summary(entry)}\n{'':{width}}    {settings(entry)}".rstrip()
                    for entry in entries
                ),
            ]
        )
        for heading, entries in sections.items()
    ]
    return "\n\n".join(blocks)
