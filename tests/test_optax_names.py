"""Every name that Optax has too: its parameters, its defaults, and its steps."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip

STEPS = 50
RATE = optax.cosine_decay_schedule(0.1, STEPS)
MASK = {"bias": False, "kernel": True, "stack": True}
DECAY = optax.linear_schedule(0.1, 0.01, STEPS)

# For each name the arguments it is tried with; each option of Optax once at least.
NAMES = {
    "sgd": [
        {"learning_rate": 0.1},
        {"learning_rate": RATE, "momentum": 0.9},
        {"learning_rate": RATE, "momentum": 0.9, "nesterov": True, "accumulator_dtype": jnp.float32},
    ],
    "trace": [{"decay": 0.9}, {"decay": 0.9, "nesterov": True, "accumulator_dtype": jnp.float32}],
    "adam": [
        {"learning_rate": 0.1},
        {"learning_rate": RATE, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-2, "mu_dtype": jnp.float32},
        {"learning_rate": 0.1, "nesterov": True},
    ],
    "adamw": [
        {"learning_rate": 0.1},
        {"learning_rate": RATE, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-2, "mu_dtype": jnp.float32},
        {"learning_rate": RATE, "weight_decay": 0.1, "mask": MASK, "nesterov": True},
        {
            "learning_rate": RATE,
            "weight_decay": DECAY,
            "mask": lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        },
    ],
    "amsgrad": [
        {"learning_rate": 0.1},
        {"learning_rate": RATE, "b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-2, "mu_dtype": jnp.float32},
        {"learning_rate": 0.1, "bias_correction_mu": False},
        {"learning_rate": 0.1, "bias_correction_nu": False},
    ],
    "adagrad": [{"learning_rate": 0.1}, {"learning_rate": RATE, "initial_accumulator_value": 0.0, "eps": 1e-3}],
    "rmsprop": [
        {"learning_rate": 0.1},
        {"learning_rate": RATE, "decay": 0.99, "eps": 1e-3, "initial_scale": 1.0, "eps_in_sqrt": False},
        {"learning_rate": RATE, "momentum": 0.9},
        {"learning_rate": RATE, "momentum": 0.9, "nesterov": True, "bias_correction": True},
        {"learning_rate": RATE, "centered": True, "eps": 1e-2, "momentum": 0.9},
        {"learning_rate": 0.1, "centered": True, "eps": 1e-2, "bias_correction": True, "initial_scale": 0.5},
    ],
    "novograd": [
        {"learning_rate": 0.1},
        {"learning_rate": RATE, "b1": 0.95, "b2": 0.98, "eps": 1e-3, "eps_root": 1e-2, "weight_decay": 0.01},
    ],
    "lamb": [
        {"learning_rate": 0.1},
        {
            "learning_rate": RATE,
            "b1": 0.8,
            "b2": 0.99,
            "eps": 1e-4,
            "eps_root": 1e-2,
            "weight_decay": DECAY,
            "mask": MASK,
        },
    ],
    "lars": [
        {"learning_rate": 10.0},
        {"learning_rate": RATE, "weight_decay": 0.1, "weight_decay_mask": MASK, "trust_coefficient": 0.1, "eps": 1e-2},
        {"learning_rate": RATE, "trust_ratio_mask": MASK, "momentum": 0.8, "nesterov": True},
    ],
    "clip": [{"max_delta": 0.5}],
    "clip_by_global_norm": [{"max_norm": 2.0}],
    "clip_by_block_rms": [{"threshold": 0.5}],
    "adaptive_grad_clip": [{"clipping": 0.1}, {"clipping": 0.1, "eps": 10.0, "axis": -1}],
    "scale_by_adam": [
        {},
        {"b1": 0.8, "b2": 0.99, "eps": 1e-4, "eps_root": 1e-2, "mu_dtype": jnp.float32, "nesterov": True},
    ],
    "scale_by_amsgrad": [
        {"b1": 0.8, "b2": 0.99, "eps": 1e-4, "mu_dtype": jnp.float32},
        {"eps_root": 1e-2, "bias_correction_mu": False, "bias_correction_nu": False},
    ],
    "scale_by_rms": [
        {},
        {"decay": 0.99, "eps": 1e-3, "initial_scale": 1.0, "eps_in_sqrt": False, "bias_correction": True},
    ],
    "scale_by_stddev": [
        {"eps": 1e-2},
        {"decay": 0.99, "eps": 1e-2, "initial_scale": 1.0, "eps_in_sqrt": False, "bias_correction": True},
    ],
    "scale_by_rss": [{}, {"initial_accumulator_value": 1.0, "eps": 1e-3}],
    "scale_by_novograd": [
        {},
        {"b1": 0.95, "b2": 0.98, "eps": 1e-3, "eps_root": 1e-2, "weight_decay": 0.1, "mu_dtype": jnp.float32},
    ],
    "scale_by_trust_ratio": [{}, {"min_norm": 1.0, "trust_coefficient": 0.1, "eps": 1e-2}],
}
# Where ours is another function on purpose, as its docstring says.
OTHERS = {"centralize": "averages over other axes", "ClipState": "a state"}
# Options of Optax's newest version that older ones lack.
NEWER = {("adaptive_grad_clip", "axis")}


def public(module):
    return {name for name in module.__all__ if name in vars(optax) or hasattr(optax, name)}


def test_the_table_has_every_name_that_optax_has():
    assert public(novoclip) == set(NAMES) | set(OTHERS)


@pytest.mark.parametrize("name", NAMES)
def test_optaxs_parameters_come_first_with_its_defaults(name):
    ours = list(inspect.signature(getattr(novoclip, name)).parameters.values())
    theirs = list(inspect.signature(getattr(optax, name)).parameters.values())
    by_position = [p for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    for own, wanted in zip(ours, by_position, strict=False):
        assert (own.name, own.default, own.kind) == (wanted.name, wanted.default, wanted.kind)
    assert {p.name for p in theirs} <= {p.name for p in ours}
    kinds = [p.kind for p in ours[len(by_position) :] if (name, p.name) not in NEWER]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds)


def test_every_option_of_optax_is_tried():
    for name, options in NAMES.items():
        parameters = set(inspect.signature(getattr(optax, name)).parameters)
        tried = {argument for each in options for argument in each}
        assert parameters <= tried, (name, parameters - tried)


def storm():
    """Ordinary gradients: of a leaf of each rank that has layouts of its own, none of them zero."""
    shapes = {"bias": (3,), "kernel": (4, 3), "stack": (2, 3, 2)}
    generator = np.random.default_rng(0)
    draw = lambda size: np.asarray(generator.normal(size=size), np.float32)  # noqa: E731
    return {name: draw((STEPS, *size)) for name, size in shapes.items()}, {name: draw(s) for name, s in shapes.items()}


def trajectories(transforms):
    """The parameters after each step of each transform; a step of all is one program."""
    gradients, params = storm()

    def stepped(transform, gradient, params, state):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def step(gradient, carry):
        return [stepped(transform, gradient, *each) for transform, each in zip(transforms, carry, strict=True)]

    carry, found = [(params, transform.init(params)) for transform in transforms], []
    for number in range(STEPS):
        carry = step({name: leaf[number] for name, leaf in gradients.items()}, carry)
        found.append([params for params, _ in carry])
    return [{name: np.stack([tree[name] for tree in each]) for name in params} for each in zip(*found, strict=True)]


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, each in NAMES.items() for options in each],
    ids=lambda x: x if isinstance(x, str) else ",".join(x),
)
def test_fifty_steps_are_optaxs(name, options):
    if (
        (name, "axis") in NEWER
        and "axis" in options
        and "axis" not in inspect.signature(optax.adaptive_grad_clip).parameters
    ):
        pytest.skip("this version of Optax has no axis=")
    ours, theirs = trajectories([getattr(module, name)(**options) for module in (novoclip, optax)])
    for leaf in theirs:
        np.testing.assert_allclose(ours[leaf], theirs[leaf], rtol=2e-4, atol=2e-5, err_msg=leaf)
