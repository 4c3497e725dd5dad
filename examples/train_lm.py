"""A gradient storm: a small language model, trained by Adam alone and by Adam behind a clipping rule.

    python examples/train_lm.py
    python examples/train_lm.py --clip clip_by_norm:max_norm=0.2,per=tensor --nan 500
    python examples/train_lm.py --optimizer novoclip:threshold=proportional

A transformer of 116,000 parameters learns to predict the next character of English text.
Both optimizers train it twice from the same start: on clean gradients, and through a storm,
in which a few gradients arrive 1000 times too large and a few batches have random targets.

The text is the reference manual that the Python in use carries, so that the numbers differ a little from one
version of Python to the next, as they do between versions of JAX; `--text` gives another.
"""

import argparse
import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
import sys
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from storm_report import draw, result_table, statistics_line, write_history

import novoclip
from novoclip.catalog import CATALOG

LENGTH, BATCH, WIDTH, LAYERS, HEADS = 48, 16, 64, 2, 4
LEARNING_RATES = {
    "sgd": 0.3,
    "momentum": 0.1,
    "adagrad": 0.03,
    "rmsprop": 3e-3,
    "adam": 3e-3,
    "amsgrad": 3e-3,
    "novograd": 0.01,
    "novoclip": 3e-3,
    "nsgd": 0.03,
    "stable_adamw": 3e-3,
    "adopt": 3e-3,
    "acclip": 3e-3,
    "spam": 3e-3,
}
VALIDATION_BATCHES = 40
CHUNK = 10  # steps in one compiled call: enough to hide its cost, few enough for a progress bar that moves


# The model and its data.


class Block(nn.Module):
    """Attention to earlier characters, then a multilayer perceptron, each behind an RMSNorm."""

    @nn.compact
    def __call__(self, x):
        """Return an array of x's shape."""
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(nn.RMSNorm()(x), mask=mask)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))


class LanguageModel(nn.Module):
    """A transformer over characters, which are integers below `vocabulary`."""

    vocabulary: int

    @nn.compact
    def __call__(self, characters):
        """Return the logits of the next character at every place."""
        position = self.param("position", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        x = nn.Embed(self.vocabulary, WIDTH)(characters) + position
        for _ in range(LAYERS):
            x = Block()(x)
        return nn.Dense(self.vocabulary)(nn.RMSNorm()(x))


def mean_loss(params, model, inputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, inputs), targets).mean()


def encode(text):
    """Return the text as integers, split 90/10 into training and validation, and the size of its vocabulary."""
    vocabulary = {character: i for i, character in enumerate(sorted(set(text)))}
    characters = jnp.array([vocabulary[character] for character in text], jnp.int32)
    split = len(text) * 9 // 10
    return characters[:split], characters[split:], len(vocabulary)


def draw_batch(key, characters):
    starts = jax.random.randint(key, (BATCH, 1), 0, len(characters) - LENGTH)
    windows = characters[starts + jnp.arange(LENGTH + 1)]
    return windows[:, :-1], windows[:, 1:]


# The weather and the training.


class Weather(NamedTuple):
    """What happens at each step: the gradient is multiplied by `scale`, the targets may be random."""

    step: np.ndarray
    scale: np.ndarray
    corrupt: np.ndarray


def make_weather(steps, nan_step, *, stormed):
    weather = Weather(np.arange(steps), np.ones(steps, np.float32), np.zeros(steps, bool))
    if stormed:
        weather.scale[steps * 2 // 5 :][:3] = 1000
        weather.corrupt[steps * 11 // 20 :][:3] = True
        weather.scale[steps * 7 // 10] = 1000
        if nan_step:
            weather.scale[nan_step - 1] = np.nan
    return weather


@dataclass
class Run:
    """One of the four trainings, and what has been measured of it so far."""

    name: str
    stormed: bool
    weather: Weather
    chunks: list = field(default_factory=list)
    validation: float | None = None

    @property
    def label(self):
        """The run's name in the output."""
        return f"{self.name}, {'stormed' if self.stormed else 'clean'}"

    def column(self, *names):
        """Return the first of these statistics that was measured, one number a step, or None."""
        for name in names:
            if self.chunks and name in self.chunks[0]:
                return np.concatenate([chunk[name] for chunk in self.chunks])
        return None


class Rule(NamedTuple):
    """A rule, by its name in the catalog and its arguments, and the place that it has in a step."""

    name: str
    arguments: dict
    make: Callable
    place: str = "gradients"

    def __str__(self):
        """Return what one would write in a program."""
        shown = {key: "..." if isinstance(value, tuple) else value for key, value in self.arguments.items()}
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in shown.items())})"


NO_RULE = Rule("", {}, optax.identity)


def assemble(rule, descent):
    """Return the optimizer with the rule at its place, between two records."""
    # They tell the norm before and after the rule, whatever the rule itself keeps.
    seen, passed = ("seen", novoclip.record()), ("passed", novoclip.record())
    if rule.place == "optimizer":
        return optax.named_chain(seen, ("rule", rule.make(**rule.arguments | {"inner": descent})), passed)
    made = ("rule", rule.make(**rule.arguments))
    if rule.place == "updates":
        return optax.named_chain(seen, ("descent", descent), made, passed)
    if rule.place == "examples":
        return optax.named_chain(made, passed, ("descent", descent))
    return optax.named_chain(seen, made, passed, ("descent", descent))


def make_trainer(model, rule, descent, characters, seed=0):
    """Return the optimizer, and a compiled function that trains for one chunk of weather."""
    optimizer = assemble(rule, descent)

    def loss_and_gradients(params, inputs, targets):
        if rule.place == "examples":
            each = jax.vmap(lambda x, y: jax.value_and_grad(mean_loss)(params, model, x[None], y[None]))
            losses, gradients = each(inputs, targets)
            return losses.mean(), gradients
        return jax.value_and_grad(mean_loss)(params, model, inputs, targets)

    def step(carry, weather):
        params, opt_state = carry
        key = jax.random.fold_in(jax.random.key(3 * seed + 1), weather.step)
        batch_key, noise_key = jax.random.split(key)
        inputs, targets = draw_batch(batch_key, characters)
        noise = jax.random.randint(noise_key, targets.shape, 0, model.vocabulary)
        targets = jnp.where(weather.corrupt, noise, targets)
        loss, gradients = loss_and_gradients(params, inputs, targets)
        gradients = jax.tree.map(lambda gradient: gradient * weather.scale, gradients)
        updates, opt_state = optimizer.update(gradients, opt_state, params, value=loss)
        return (optax.apply_updates(params, updates), opt_state), {"loss": loss} | novoclip.metrics(opt_state)

    return optimizer, jax.jit(lambda carry, weather: jax.lax.scan(step, carry, weather), donate_argnums=0)


def make_validation(model, characters):
    """Return a compiled function from parameters to the mean loss over a fixed set of batches."""

    def validate(params):
        keys = jax.random.split(jax.random.key(2), VALIDATION_BATCHES)
        return jax.lax.map(lambda key: mean_loss(params, model, *draw_batch(key, characters)), keys).mean()

    return jax.jit(validate)


def train(run, params, optimizer, train_chunk, report):
    """Train from `params`; add each finished chunk's statistics to the run, and report it."""
    carry = jax.tree.map(jnp.copy, (params, optimizer.init(params)))  # donated, while `params` serve every run
    for start in range(0, len(run.weather.step), CHUNK):
        chunk = Weather(*(array[start : start + CHUNK] for array in run.weather))
        carry, statistics = train_chunk(carry, chunk)
        run.chunks.append(jax.tree.map(np.asarray, statistics))
        report(run, range(start, start + len(chunk.step)))
    return carry[0]


def train_all(runs, rules, descent, text, log_every, console, seed=0):
    training, validation, vocabulary = encode(text)
    model = LanguageModel(vocabulary)
    params = model.init(jax.random.key(3 * seed), jnp.zeros((1, LENGTH), jnp.int32))
    validate = make_validation(model, validation)
    trainers = {name: make_trainer(model, rule, descent, training, seed) for name, rule in rules.items()}
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    console.print(f"{size:,} parameters; {len(text):,} characters, {vocabulary} of them different", highlight=False)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        width = max(len(run.label) for run in runs)
        bar = progress.add_task("", total=sum(len(run.weather.step) for run in runs))

        def report(run, steps):
            progress.advance(bar, len(steps))
            for i in steps:
                if (i + 1) % log_every == 0:
                    console.print(statistics_line(run, i, width), highlight=False, soft_wrap=True)

        for run in runs:
            progress.update(bar, description=run.label)
            run.validation = float(validate(train(run, params, *trainers[run.name], report)))


# The command line.


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")


def parse_rule(text):
    """Return the rule for `name:key=value,key=value`; `inner=` may name another."""
    name, _, listed = text.partition(":")
    entries = {entry.name: entry for entry in CATALOG if entry.kind != "optimizer"}
    if name not in entries:
        msg = f"no such rule; choose from {', '.join(entries)}"
        raise ValueError(msg)
    arguments = parse_items(listed) if listed else dict(entries[name].examples[0])
    if isinstance(arguments.get("inner"), str):
        inner = parse_rule(arguments["inner"])
        arguments["inner"] = inner.make(**inner.arguments)
    rule = Rule(name, arguments, entries[name].make, entries[name].place)
    assemble(rule, optax.identity())  # wrong arguments raise here
    return rule


def parse_optimizer(text):
    """Return the name and the optimizer for `name:key=value,key=value`."""
    name, _, listed = text.partition(":")
    if name not in LEARNING_RATES:
        msg = f"no such optimizer; choose from {', '.join(LEARNING_RATES)}"
        raise ValueError(msg)
    # Nothing but the rule shall protect it, or there is nothing to see.
    arguments = {"learning_rate": LEARNING_RATES[name], "nonfinite": "propagate"} | parse_items(listed)
    return name, getattr(novoclip, name)(**arguments)


def parse_items(listed):
    arguments = {}
    for item in listed.split(",") if listed else ():
        key, _, value = item.partition("=")
        if not (key and value):
            msg = f"expected key=value, got {item!r}"
            raise ValueError(msg)
        arguments[key.strip()] = parse_value(value.strip())
    return arguments


def parse_value(text):
    try:
        return float("inf") if text == "inf" else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a bare word, as in per=tensor


def parse_arguments(argv):
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--clip",
        default="autoclip:percentile=90,window=200",
        metavar="RULE",
        help="NAME or NAME:KEY=VALUE,... (%(default)s)",
    )
    parser.add_argument(
        "--optimizer",
        default="adam",
        metavar="OPTIMIZER",
        help=f"{', '.join(LEARNING_RATES)}, or NAME:KEY=VALUE,... (%(default)s)",
    )
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="of each training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the start and the batches (%(default)s)")
    parser.add_argument("--nan", type=int, metavar="STEP", help="make the storm's gradient NaN at this step, from 1")
    parser.add_argument("--text", type=Path, metavar="FILE", help="in UTF-8 (the reference manual that pydoc carries)")
    parser.add_argument("--log-every", type=int, default=100, metavar="N", help="steps (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="(%(default)s)")
    options = parser.parse_args(argv)
    if options.steps < 20:
        parser.error(f"--steps must be at least 20, to have room for the storm; got {options.steps}")
    if options.nan is not None and not 1 <= options.nan <= options.steps:
        parser.error(f"--nan must be a step from 1 to {options.steps}; got {options.nan}")
    if options.log_every < 1:
        parser.error(f"--log-every must be at least 1; got {options.log_every}")
    try:
        options.rule = parse_rule(options.clip)
    except (TypeError, ValueError) as error:
        parser.error(f"--clip {options.clip}: {error}")
    try:
        options.optimizer_name, options.descent = parse_optimizer(options.optimizer)
    except (TypeError, ValueError) as error:
        parser.error(f"--optimizer {options.optimizer}: {error}")
    try:
        options.characters = options.text.read_text("utf-8") if options.text else "\n".join(topics.values())
        options.out.mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        parser.error(str(error))
    # Its length and words change with every version, and the losses with them.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    manual = f"the manual of Python {version}; that of another version gives other numbers"
    options.source = str(options.text) if options.text else manual
    if len(options.characters) < 1000:
        parser.error(f"--text {options.text}: needs at least 1000 characters, has {len(options.characters)}")
    return options


def main(argv=None):
    options = parse_arguments(argv)
    console = Console()
    name = options.optimizer_name.capitalize()
    rules = {f"{name} alone": NO_RULE, f"{name} + {options.rule.name}": options.rule}
    # The storm first, so that an interrupted run has seen what matters most.
    runs = [
        Run(name, stormed, make_weather(options.steps, options.nan, stormed=stormed))
        for stormed in (True, False)
        for name in rules
    ]
    status = 0
    try:
        train_all(runs, rules, options.descent, options.characters, options.log_every, console, options.seed)
    except KeyboardInterrupt:
        console.print("Interrupted; this is what was measured so far.")
        status = 130
    if any(run.chunks for run in runs):
        stem = "storm" if options.optimizer_name == "adam" else f"storm_{options.optimizer_name}"
        picture, history = (options.out / f"{stem}_{options.rule.name}.{ending}" for ending in ("png", "csv"))
        console.print(result_table(runs, options.source))
        write_history(runs, history)
        draw(runs, str(options.rule), picture)
        console.print(f"Picture: {picture}\nHistory: {history}", highlight=False, soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
