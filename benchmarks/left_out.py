"""Rules that are not in novoclip, run through the storm of examples/train_lm.py: the figures of docs/left_out.md.

python benchmarks/left_out.py
"""

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

import novoclip

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from storm_rules import Rule, parse_optimizer
from storm_training import Task, final_loss, make_optimizer


def aggc() -> optax.GradientTransformation:
    """Keep each tensor within a band around the running mean of what was let through, as released."""

    def init(norms: Any) -> jax.Array:
        return jnp.zeros(norms.shape, norms.dtype)

    def update(norms: Any, mean: Any, param_norms: Any = None, /, *, step: Any, **extra: Any) -> tuple[Any, Any]:
        upper = 0.6 * mean
        factor = jnp.where((mean > 0) & (norms > upper), upper / jnp.where(norms > 0, norms, 1), 1)
        new = norms * jnp.clip(factor, 0.9, 1.1)
        return new, 0.95 * mean + 0.05 * new

    return novoclip.clip_by_limit("tensor", novoclip.Limit(init, update), "normalize")


def adanorm() -> optax.GradientTransformation:
    """Scale gradients that are smaller than the running mean of their norms up to it."""

    def init(norms: Any) -> jax.Array:
        return jnp.zeros(norms.shape, norms.dtype)

    def update(norms: Any, mean: Any, param_norms: Any = None, /, *, step: Any, **extra: Any) -> tuple[Any, Any]:
        mean = 0.95 * mean + 0.05 * norms
        return jnp.maximum(norms, mean), mean

    return novoclip.clip_by_limit("tensor", novoclip.Limit(init, update), "normalize")


def alphagrad() -> optax.GradientTransformation:
    """Normalize each tensor, then take tanh(alpha g)."""
    squash = optax.stateless(lambda updates, _: jax.tree.map(lambda g: jnp.tanh(10.0 * g), updates))
    return optax.chain(novoclip.normalize_by_norm(per="tensor"), squash)


def ps_clip() -> optax.GradientTransformation:
    """Clip each example at a threshold that grows with the number of the step."""
    return novoclip.per_example(novoclip.clip_by_global_norm(lambda step: 1.0 * (step + 1.0) ** 0.5))


def soft_adaclip() -> optax.GradientTransformation:
    """Squash each example's norm by tanh."""
    return novoclip.per_example(novoclip.clip_by_global_norm(1.0, shape="tanh"))


def trust_region_clip() -> optax.GradientTransformation:
    """Squash each number by a mix of a logarithm and tanh, up to 2."""

    def squash(g: jax.Array) -> jax.Array:
        x = g / 1.5
        return jnp.clip(1.5 * (0.1 * jnp.sign(x) * jnp.log1p(jnp.abs(x)) + 0.9 * jnp.tanh(x)), -2, 2)

    return optax.stateless(lambda updates, _: jax.tree.map(squash, updates))


CASES: tuple[tuple[str, Callable[[], Any], str], ...] = (
    ("AGGC, as released", aggc, "gradients"),
    ("AdaNorm", adanorm, "gradients"),
    ("AlphaGrad, alpha = 10", alphagrad, "gradients"),
    ("PS-Clip, sqrt(t)", ps_clip, "examples"),
    ("SoftAdaClip, limit 1", soft_adaclip, "examples"),
    ("trust_region_clip", trust_region_clip, "gradients"),
)


def main() -> None:
    """Print one row a case."""
    task = Task("\n".join(topics.values()))
    adam = parse_optimizer("adam").transform
    print("| before Adam | clean | stormed |\n|---|---|---|", flush=True)
    for name, make, place in CASES:
        rule = Rule(name, {}, make, place)
        optimizer = make_optimizer(rule, adam)
        losses = [final_loss(task, rule, optimizer, stormed=stormed) for stormed in (False, True)]
        print(f"| {name} | {losses[0]:.3f} | {losses[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
