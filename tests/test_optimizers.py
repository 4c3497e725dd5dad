"""Every optimizer and option equals its formula in float64 NumPy; torch and Keras; and where Optax differs."""

import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests import programs
from tests.oracles import optimizers as oracle
from tests.steps import compiled

STORED = json.loads((Path(__file__).parent / "trajectories" / "torch_keras.json").read_text(encoding="utf-8"))
falling = lambda high, low: lambda step: high + (low - high) * step / 50  # noqa: E731


def storm(steps=50, seed=0):
    """Gradients with spikes, small levels, a step of zeros and a leaf that is zero at first."""
    generator = np.random.default_rng(seed)
    shapes = {"bias": (3,), "kernel": (4, 3), "scale": ()}
    draw = lambda: {name: np.asarray(generator.normal(size=shape)) for name, shape in shapes.items()}  # noqa: E731
    gradients = [draw() for _ in range(steps)]
    gradients[0]["bias"] = np.zeros(3)
    gradients[7] = {name: np.zeros(shape) for name, shape in shapes.items()}
    for step, by in ((20, 1000.0), (30, 1e-6), (31, 1e-6)):
        gradients[step] = {name: by * leaf for name, leaf in gradients[step].items()}
    return gradients, draw()


def assert_equal_updates(transform, expected, gradients, params, rtol=1e-12):
    update, state, found = jax.jit(transform.update), transform.init(params), []
    expected = [jax.tree.map(np.copy, tree) for tree in expected]
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        found.append(updates)
    assert len(expected) == len(found)
    for name in expected[0]:
        ours, wanted = (np.stack([tree[name] for tree in trees]).reshape(len(trees), -1) for trees in (found, expected))
        # A running mean rounds to a part of its largest term, which may be of some steps ago.
        sizes = itertools.accumulate(np.max(np.abs(wanted), axis=1), lambda before, size: max(0.9 * before, size))
        near = rtol * (np.abs(wanted) + np.reshape(list(sizes), (-1, 1))) + 1e-300
        wrong = ~(np.abs(ours - wanted) <= near)
        assert not np.any(wrong), (name, np.argwhere(wrong)[0], ours[wrong][0], wanted[wrong][0])


CASES = [
    ("momentum", {"decay": 0.9}),
    ("momentum", {"decay": falling(0.9, 0.5), "nesterov": True}),
    ("momentum", {"decay": 0.9, "form": "averaged"}),
    ("momentum", {"form": "averaged", "nesterov": True, "decay": falling(0.5, 0.99)}),
    ("momentum", {"decay": 0.9, "dampening": 0.5}),
    ("momentum", {"decay": 0.9, "dampening": falling(0.1, 0.9)}),
    ("adagrad", {}),
    ("adagrad", {"eps": 1e-10, "eps_in_sqrt": False, "initial_accumulator_value": 0.0}),
    ("adagrad", {"per": "tensor", "initial_accumulator_value": 0.01}),
    ("adagrad", {"per": "tree", "eps": falling(1e-3, 1e-7)}),
    ("rmsprop", {}),
    ("rmsprop", {"decay": falling(0.5, 0.99), "eps": 1e-6, "eps_in_sqrt": False}),
    ("rmsprop", {"initial_scale": 1.0, "bias_correction": True}),
    ("rmsprop", {"eps_in_sqrt": False, "bias_correction": True, "decay": falling(0.5, 0.99)}),
    ("stddev", {"eps": 1e-6}),
    ("stddev", {"eps": 1e-3, "eps_in_sqrt": False, "decay": falling(0.5, 0.99)}),
    ("stddev", {"eps": 1e-3, "bias_correction": True, "initial_scale": 0.5}),
    ("stddev", {"eps": 1e-3, "bias_correction": True, "decay": falling(0.5, 0.99)}),
    ("adam", {}),
    ("adam", {"nesterov": True}),
    ("adam", {"nesterov": True, "b1": falling(0.9, 0.5), "bias_correction": False}),
    ("adam", {"bias_correction": False}),
    ("adam", {"b1": lambda step: 0.9 * 0.99**step, "b2": falling(0.9, 0.999)}),
    ("adam", {"eps": 0.0, "eps_root": 1e-6}),
    ("amsgrad", {"maximum": "raw"}),
    ("amsgrad", {"maximum": "corrected", "b2": 0.9}),
    ("amsgrad", {"maximum": "raw", "bias_correction_mu": False, "bias_correction_nu": False}),
    ("amsgrad", {"bias_correction_mu": False}),
    ("amsgrad", {"bias_correction_nu": False, "eps_root": 1e-6}),
    ("novoclip", {"clipping": 0.05}),
    ("novoclip", {"clipping": falling(0.5, 0.01), "bias_correction": True, "b2": 0.9}),
    ("novoclip", {"clipping": 0.5, "per": "tensor"}),
    ("novoclip", {"clipping": 1.5, "threshold": "proportional"}),
    ("novoclip", {"clipping": falling(3.0, 1.0), "threshold": "proportional", "bias_correction": True, "b2": 0.95}),
    ("novoclip", {"clipping": 1.0, "threshold": "proportional", "per": "tensor"}),
    ("spam", {"reset_every": 12, "delay": 3, "warmup": 4, "threshold": 20.0}),
    ("spam", {"reset_every": 12, "delay": 3, "warmup": 4, "threshold": 20.0, "restart_bias_correction": True}),
    ("spam", {"reset_every": 7, "delay": 2, "warmup": 0, "b2": falling(0.9, 0.99), "threshold": falling(50.0, 5.0)}),
    ("spam", {"reset_every": 15, "delay": 5, "warmup": 20, "b1": falling(0.9, 0.5), "restart_bias_correction": True}),
    ("acclip", {}),
    ("acclip", {"previous": True}),
    ("acclip", {"alpha": 1.5, "b1": falling(0.9, 0.5), "b2": falling(0.99, 0.9)}),
    ("acclip", {"alpha": 1.5, "previous": True, "eps": 0.1}),
    ("acclip", {"alpha": 2.0}),
    ("acclip", {"alpha": 2.0, "previous": True}),
    ("adopt", {}),
    ("adopt", {"bound": falling(0.1, 5.0), "b1": falling(0.9, 0.5), "b2": falling(0.9, 0.9999), "eps": 1e-3}),
    ("nsgd", {}),
    ("nsgd", {"per": "tensor", "decay": falling(0.9, 0.0)}),
    ("nsgd", {"normalize": "before"}),
    ("nsgd", {"normalize": "before", "per": "tensor", "decay": falling(0.9, 0.0)}),
]


TRANSFORMS = {"momentum": "trace", "adagrad": "scale_by_rss", "rmsprop": "scale_by_rms"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda x: x if isinstance(x, str) else ",".join(x))
def test_directions_are_their_formulas(name, arguments):
    gradients, params = storm()
    expected = getattr(oracle, name)(gradients, **arguments)
    transform = getattr(novoclip, TRANSFORMS.get(name, f"scale_by_{name}"))(**arguments)
    # A variance is a difference in the formula, and a sum in the product.
    assert_equal_updates(transform, expected, gradients, params, 1e-8 if name == "stddev" else 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weight_decay", [0.0, 0.1, falling(0.2, 0.0)])
def test_novograd_is_its_formula(weight_decay):
    gradients, params = storm()
    expected = list(oracle.novograd(gradients, params, weight_decay=weight_decay))
    assert_equal_updates(novoclip.scale_by_novograd(weight_decay=weight_decay), expected, gradients, params)
    descent = novoclip.novograd(falling(0.1, 0.0), eps=1e-8, weight_decay=weight_decay)
    scaled = [{k: -falling(0.1, 0.0)(step) * u for k, u in tree.items()} for step, tree in enumerate(expected)]
    assert_equal_updates(descent, scaled, gradients, params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("weight_decay", [None, 0.1, falling(0.2, 0.0)])
@pytest.mark.parametrize("arguments", [{}, {"max_rms": falling(2.0, 0.5), "b2": falling(0.9, 0.99), "eps": 1e-3}])
def test_stable_adamw_is_its_formula(weight_decay, arguments):
    gradients, params = storm()
    expected = list(oracle.stable_adamw(gradients, params, weight_decay=weight_decay or 0.0, **arguments))
    direction = novoclip.scale_by_stable_adamw(weight_decay=weight_decay, **arguments)
    assert_equal_updates(direction, expected, gradients, params)
    descent = novoclip.stable_adamw(falling(0.1, 0.0), weight_decay=weight_decay, **arguments)
    scaled = [{k: -falling(0.1, 0.0)(step) * u for k, u in tree.items()} for step, tree in enumerate(expected)]
    assert_equal_updates(descent, scaled, gradients, params)


ALIASES = [
    ("momentum", oracle.momentum, {"nesterov": True}),
    ("adagrad", oracle.adagrad, {}),
    ("rmsprop", oracle.rmsprop, {}),
    ("adam", oracle.adam, {}),
    ("amsgrad", functools.partial(oracle.amsgrad, maximum="raw"), {"maximum": "raw"}),
    ("novoclip", oracle.novoclip, {"clipping": 0.1}),
    ("spam", oracle.spam, {"reset_every": 9, "delay": 2, "warmup": 3}),
    ("acclip", oracle.acclip, {"alpha": 1.5}),
    ("adopt", oracle.adopt, {}),
    ("nsgd", oracle.nsgd, {"per": "tensor"}),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "loop", "arguments", "decay"),
    [("sgd", iter, {}, None), *((*alias, decay) for alias in ALIASES for decay in ("decoupled", "coupled"))],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_optimizers_clip_decay_and_follow_schedules(name, loop, arguments, decay):
    gradients, params = storm()
    rate, pull = falling(0.1, 0.01), falling(0.2, 0.1)
    mask = {"bias": False, "kernel": True, "scale": True}
    pulls = [{k: (pull(step) if mask[k] else 0.0) * w for k, w in params.items()} for step in range(50)]
    entering = [{k: np.clip(g, -0.5, 0.5) for k, g in tree.items()} for tree in gradients]
    if decay == "coupled":
        entering = [{k: g + p[k] for k, g in tree.items()} for tree, p in zip(entering, pulls, strict=True)]
    directions = loop(entering, **arguments)
    expected = []
    for step, (tree, p) in enumerate(zip(directions, pulls, strict=True)):
        after = {k: u + (0 if decay == "coupled" else p[k]) for k, u in tree.items()}
        expected.append({k: -rate(step) * u for k, u in after.items()})
    form = {} if decay is None else {"weight_decay_mode": decay}
    descent = getattr(novoclip, name)(
        rate,
        **arguments,
        **form,
        clip=novoclip.clip_by_value(0.5),
        weight_decay=pull,
        weight_decay_mask=lambda tree: mask,
    )
    assert_equal_updates(descent, expected, gradients, params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: case["name"])
def test_trajectories_are_those_of_torch_and_keras(case):
    arguments = case["arguments"]
    descent = getattr(novoclip, case["optimizer"])(**arguments)
    params = np.asarray(STORED["start"])
    state, update = descent.init(params), jax.jit(descent.update)
    for gradient, expected in zip(STORED["gradients"], case["params"], strict=True):
        updates, state = update(np.asarray(gradient), state, params)
        params = params + updates
        np.testing.assert_allclose(params, expected, rtol=1e-9, atol=1e-12)


def three(transform, gradients, params=None):
    transform = compiled(transform)
    state, found = transform.init(gradients[0]), []
    for gradient in gradients:
        updates, state = transform.update(gradient, state, params)
        found.append(updates)
    return found


@pytest.mark.usefixtures("x64")
def test_optax_starts_novograd_from_a_zero_gradient():
    gradients = [np.zeros(2), np.array([3.0, 4.0])]
    ours = novoclip.novograd(1.0, 0.9, 0.98, eps=1e-8)
    theirs = optax.novograd(1.0, 0.9, 0.98, eps=1e-8)
    np.testing.assert_allclose(np.linalg.norm(three(ours, gradients)[1]), 1.0, rtol=1e-6)
    too_long = np.linalg.norm(three(theirs, gradients, np.zeros(2))[1])
    np.testing.assert_allclose(too_long, 1 / np.sqrt(1 - 0.98), rtol=1e-6)


def test_a_constant_gradient_never_makes_centered_rmsprop_nan():
    # Which of them are rounded to a negative variance depends on how the program is compiled.
    constant = np.linspace(1.0, 500.0, 256, dtype=np.float32)
    ours, theirs = novoclip.rmsprop(0.1, centered=True), optax.rmsprop(0.1, centered=True)
    for transform, broken in ((ours, False), (theirs, True)):
        update, state, seen = jax.jit(transform.update), transform.init(constant), False
        for _ in range(400):
            updates, state = update(constant, state)
            seen |= bool(np.any(np.isnan(updates)))
        assert seen == broken


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_second_moments_move_in_16_bits(dtype):
    gradient = jnp.ones(2, dtype)
    transforms = {name: getattr(novoclip, f"scale_by_{name}")(b2=0.999) for name in ("adam", "amsgrad", "novoclip")}
    transforms |= {"rms": novoclip.scale_by_rms(decay=0.999), "theirs": optax.scale_by_adam()}

    def step(states, _):
        return {name: each.update(gradient, states[name])[1] for name, each in transforms.items()}, None

    def run():
        return jax.lax.scan(step, {name: each.init(gradient) for name, each in transforms.items()}, length=2000)[0]

    states = jax.jit(run)()
    theirs = states.pop("theirs")
    for name, state in states.items():
        moments = state.moments.adam if name == "amsgrad" else state.moments
        assert moments.root.dtype == jnp.float32
        np.testing.assert_allclose(moments.root, np.sqrt(1 - 0.999**2000), rtol=1e-4)
    assert np.all(np.asarray(theirs.nu, np.float32) < 0.8)  # 0.86


def test_moments_take_the_dtype_that_is_asked_for():
    state = novoclip.adam(0.1, mu_dtype="bfloat16", nu_dtype=jnp.float16).init(jnp.ones(2))
    assert state.moments.mu.dtype == jnp.bfloat16
    assert state.moments.root.dtype == jnp.float16
    with pytest.raises(TypeError, match="mu_dtype must be a floating dtype"):
        novoclip.adam(0.1, mu_dtype="int32")


def test_a_spike_of_1e30_leaves_no_moment_infinite():
    for transform in (
        novoclip.adam(0.1),
        novoclip.novograd(0.1, b2=0.25),
        novoclip.adagrad(0.1),
        novoclip.rmsprop(0.1),
    ):
        found = three(transform, [np.array([s, 1.0], np.float32) for s in (1.0, 1e30, 1.0)])
        assert np.all(np.isfinite(found))
        assert np.all(np.abs(found) < 1)


@functools.cache
def divides(make, per):
    return compiled(make(per=per))


@pytest.mark.parametrize("size", [1e38, 2e38, 3e38])
@pytest.mark.parametrize("per", ["tensor", "tree", "unit"])
@pytest.mark.parametrize("make", [novoclip.scale_by_rss, novoclip.scale_by_novograd])
def test_norms_near_the_largest_number_divide_too(make, per, size):
    """XLA multiplies by the inverse of what all numbers of a block are divided by, and flushes it to 0."""
    transform = divides(make, per)
    gradient = {"w": np.array([[0.6], [0.8]], np.float32) * np.float32(size)}
    updates, _ = transform.update(gradient, transform.init(gradient))
    np.testing.assert_allclose(updates["w"], [[0.6], [0.8]], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "per"),
    [
        (make, per)
        for make, granularities in (
            (novoclip.scale_by_rss, ("tensor", "unit", "element")),
            (novoclip.scale_by_novograd, ("tensor", "unit")),
            (functools.partial(novoclip.scale_by_novoclip, clipping=1.0), ("tensor", "unit", "element")),
        )
        for per in granularities
    ],
)
def test_the_blocks_of_a_missing_gradient_are_missed(make, per):
    """Where two tensors become one, its norm would be broadcast to both."""
    transform = make(per=per)
    params = {"a": jnp.ones((2, 1)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="the gradients do not fit the state of "):
        transform.update({"a": None, "b": jnp.ones(2)}, transform.init(params), params)


def test_a_proportional_limit_near_the_largest_number_is_in_range():
    transform = novoclip.scale_by_novoclip(b2=0.0, threshold="proportional", per="tensor", clipping=3.0)
    for size in (1e30, 2e36):
        gradient = np.full(10_000, size, np.float32)
        _, state = jax.jit(transform.update)(gradient, transform.init(gradient))
        spike = np.where(np.arange(gradient.size) == 0, 100 * gradient, gradient)
        _, state = jax.jit(transform.update)(spike, state)
        # 0.1 of the spike, which is clipped to 3, and of 0.9 of what came before.
        np.testing.assert_allclose(state.moments.mu[0] / size, 0.9 * 0.1 + 0.1 * 3, rtol=1e-5)


SURVIVORS = ["sgd", "adam", "novograd"]
ALIKE = ["adagrad", "novoclip", "spam", "momentum", "rmsprop", "amsgrad", "acclip", "adopt", "stable_adamw", "nsgd"]


@pytest.mark.parametrize("name", [*SURVIVORS, *(pytest.param(name, marks=pytest.mark.full) for name in ALIKE)])
def test_optimizers_survive_what_optax_wraps_around_them(name):
    make = getattr(novoclip, name)
    params = {"w": np.array([3.0, -2.0, 1.0], np.float32)}
    clip = novoclip.clip_by_global_norm(1.0)
    plain = make(0.05, clip=clip)
    scheduled = make(lambda step: 0.05, clip=clip)
    integers = ("delay", "reset_every", "warmup") if name == "spam" else ()
    injected = optax.inject_hyperparams(make, static_args=integers)(learning_rate=0.05, clip=clip)
    several = optax.MultiSteps(plain, 1).gradient_transformation()
    guarded = optax.apply_if_finite(plain, 3)
    transforms = (plain, scheduled, injected, several, guarded, optax.chain(plain, optax.identity()))

    def loss(tree):
        return jnp.sum(tree["w"] ** 2)

    def stepped(transform, tree, state):
        updates, state = transform.update(jax.grad(loss)(tree), state, tree)
        return optax.apply_updates(tree, updates), state

    def step(carry, _):
        return [stepped(transform, *each) for transform, each in zip(transforms, carry, strict=True)], None

    def run(params):
        return jax.lax.scan(step, [(params, transform.init(params)) for transform in transforms], length=100)[0]

    (first, _), *others = jax.jit(run)(params)
    assert loss(first) < loss(params)
    for end, _ in others:
        # A hundred steps of rounding, which XLA fused differently.
        np.testing.assert_allclose(end["w"], first["w"], rtol=1e-4, atol=1e-6)


NAMES = ("sgd", "momentum", "adagrad", "rmsprop", "adam", "amsgrad", "novograd", "novoclip")
MADE = [*((name, {}) for name in NAMES), ("novoclip", {"threshold": "proportional"})]


@programs.WRITES_IN_PLACE
@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "options"), MADE, ids=lambda x: x if isinstance(x, str) else "")
def test_a_step_makes_no_copy_of_the_gradients(name, options, dtype, nonfinite):
    optimizer = getattr(novoclip, name)(0.1, nonfinite=nonfinite, **options)
    params = {"w": jax.ShapeDtypeStruct((4096, 4096), dtype)}
    state = jax.eval_shape(optimizer.init, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    memory = step.lower(params, state, params).compile().memory_analysis()
    # Its norms and its quotients share the upcast of 16 bits.
    copies = int(name == "novograd" and dtype == "bfloat16")
    assert memory.temp_size_in_bytes < (4 * copies + 0.01) * params["w"].size


@pytest.mark.parametrize("per", ["element", "tensor"])
def test_a_root_that_underflowed_is_no_limit(per):
    transform = novoclip.scale_by_novoclip(0.0, threshold="proportional", bias_correction=True, per=per)
    update, state = jax.jit(transform.update), transform.init(jnp.zeros(()))
    for size in (1e-37, 1.0):  # sqrt(1 - b2) 1e-37 is less than the least number
        updates, state = update(jnp.float32(size), state)
    # v is 0.001, its weight 0.001, or 0.001999 if the gradient that was lost counts. With a limit of 0 it would be 0.
    assert 0.999 < updates < np.sqrt(2)


@pytest.mark.parametrize("per", ["element", "tensor"])
def test_rare_gradients_are_not_clipped_by_the_zeros_between(per):
    transform = novoclip.scale_by_novoclip(0.0, threshold="proportional", bias_correction=True, per=per)
    gradients = {"rare": np.zeros((1001, 1), np.float32), "dense": np.ones((1001, 1), np.float32)}
    gradients["rare"][[0, 500, 1000]] = 1.0

    def step(state, gradient):
        updates, state = transform.update(gradient, state)
        return state, updates

    def run(gradients):
        start = transform.init(jax.tree.map(lambda leaf: leaf[0], gradients))
        return jax.lax.scan(step, start, gradients)[1]

    for leaf in jax.jit(run)(gradients).values():
        np.testing.assert_allclose(leaf[-1], 1.0, rtol=1e-4)


@pytest.mark.parametrize("clip", [novoclip.autoclip(50.0, window=4, per="tensor"), optax.ema(0.9)])
def test_a_skipped_step_leaves_no_trace_in_the_clip(clip):
    params = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    descent = compiled(novoclip.adam(0.1, clip=clip))
    _, state = descent.update(params, descent.init(params))
    bad = {"a": np.array([np.nan, 1.0], np.float32), "b": np.full(2, 1e6, np.float32)}
    _, after = descent.update(bad, state)
    jax.tree.map(np.testing.assert_array_equal, after.clip, state.clip)


def test_long_sums_keep_their_small_terms():
    transform = novoclip.scale_by_rss()
    gradients = np.random.default_rng(0).normal(size=100_000).astype(np.float32)

    def step(state, gradient):
        return transform.update(gradient[None], state)[1], None

    state = jax.jit(lambda g: jax.lax.scan(step, transform.init(jnp.zeros(1)), g)[0])(gradients)
    np.testing.assert_allclose(state.moments.root[0], np.linalg.norm(np.asarray(gradients, np.float64)), rtol=1e-4)


def test_a_mask_of_novograd_sees_the_parameters_as_they_are():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2), "i": jnp.array(3)}
    mask = lambda tree: {name: leaf.dtype == jnp.bfloat16 for name, leaf in tree.items()}  # noqa: E731
    zeros = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(2), "i": np.zeros((), jax.dtypes.float0)}
    for make in (novoclip.novograd, novoclip.adam):
        descent = compiled(make(1.0, weight_decay=1.0, weight_decay_mask=mask))
        updates, _ = descent.update(zeros, descent.init(params), params)
        np.testing.assert_array_equal(np.asarray(updates["a"], np.float32), -1)
        np.testing.assert_array_equal(updates["b"], 0)


def test_float16_moments_stay_finite():
    for dtypes in ({"mu_dtype": "float16"}, {"nu_dtype": "float16"}):
        found = three(novoclip.adam(0.1, **dtypes), [np.full(1, g, np.float32) for g in (1e9, 1.0, 1.0)])
        assert np.all(np.isfinite(found))


def test_wrong_arguments_of_optimizers_are_named():
    for make, name in ((novoclip.adagrad, "initial_accumulator_value"), (novoclip.rmsprop, "initial_scale")):
        with pytest.raises(TypeError, match=f"{name} must be a number or an array, not a schedule"):
            make(0.1, **{name: lambda step: 0.1})
    with pytest.raises(TypeError, match="learning_rate must be"):
        novoclip.adam(None)
    for make, flag in (
        (novoclip.adam, "bias_correction"),
        (novoclip.momentum, "nesterov"),
        (novoclip.rmsprop, "centered"),
    ):
        with pytest.raises(TypeError, match=f"{flag} must be True or False; got 'no'"):
            make(0.1, **{flag: "no"})
    with pytest.raises(ValueError, match=r"clipping must be a number in \[1, inf\]"):
        novoclip.novoclip(clipping=0.5, threshold="proportional")
    for make, message in (
        (lambda: novoclip.adam(-1.0), "learning_rate must be"),
        (lambda: novoclip.adam(0.1, b1=1.5), "b1 must be"),
        (lambda: novoclip.adam(0.1, b2=1.0), r"b2 must be a number in \[0, 1\)"),
        (lambda: novoclip.rmsprop(0.1, 1.0), r"decay must be a number in \[0, 1\)"),
        (lambda: novoclip.adam(0.1, weight_decay_mode="l2"), "weight_decay_mode must be one of 'decoupled', 'coupled'"),
        (lambda: novoclip.adam(0.1, nonfinite="zero"), "nonfinite must be one of 'skip', 'propagate'"),
        (lambda: novoclip.momentum(0.1, nesterov=True, dampening=0.1), "dampening must be None"),
        (lambda: novoclip.novoclip(threshold="other"), "threshold must be one of 'inverse', 'proportional'"),
        (lambda: novoclip.adagrad(0.1, per="layer"), "per must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match=r"clip must be a GradientTransformation.*; got 1.0"):
        novoclip.adam(0.1, clip=1.0)
    descent = novoclip.adam(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="weight_decay needs the parameters"):
        descent.update(jnp.ones(2), descent.init(jnp.ones(2)))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (novoclip.lamb, "mask"),
        (novoclip.lars, "weight_decay_mask"),
        (novoclip.lars, "trust_ratio_mask"),
        (novoclip.novograd, "weight_decay_mask"),
        (novoclip.stable_adamw, "weight_decay_mask"),
    ],
)
def test_masks_are_checked_in_init(make, argument):
    name = "trust_ratio_mask" if argument == "trust_ratio_mask" else "the mask of weight_decay"
    descent = make(0.1, weight_decay=0.1, **{argument: {"other": True}})
    with pytest.raises(ValueError, match=f"^{name} must be a prefix of the parameters"):
        descent.init({"w": jnp.ones(2)})


def test_an_error_that_is_not_about_the_structure_stays_as_it_is():
    params = jnp.ones(2)
    for make in (novoclip.lars, novoclip.novograd):
        descent = make(0.1, weight_decay=0.1)
        with pytest.raises(ValueError, match=r"^(weight_decay|the trust ratio) needs the parameters"):
            descent.update(params, descent.init(params))

    def schedule(step):
        msg = "no such step"
        raise TypeError(msg)

    descent = novoclip.adam(0.1, schedule)
    with pytest.raises(TypeError, match=r"^no such step"):
        descent.update(params, descent.init(params))


def test_a_step_that_is_not_finite_can_be_let_through():
    descent = compiled(novoclip.adam(0.1, nonfinite="propagate"))
    updates, state = descent.update(np.array([np.nan, 1.0], np.float32), descent.init(np.ones(2, np.float32)))
    assert np.isnan(updates[0])
    assert updates[1] < 0
    assert int(state.nonfinite) == 0


def test_metrics_tell_of_the_optimizer_and_its_clip():
    descent = compiled(novoclip.adam(0.1, clip=novoclip.clip_by_global_norm(1.0)))
    state = descent.init(np.ones(2, np.float32))
    for gradient in ([3.0, 4.0], [np.nan, 1.0]):
        _, state = descent.update(np.array(gradient, np.float32), state)
    found = novoclip.metrics(state)
    assert int(found["optimizer/steps"]) == 2
    assert int(found["optimizer/nonfinite"]) == 1
    assert int(found["clip/clipped"]) == 1


def test_a_clip_that_does_not_see_all_numbers_hides_no_nan():
    """Where a rule shows norms of all numbers, these are looked at in place of the numbers, but only there."""
    params = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    bad = params | {"b": np.array([1.0, np.nan], np.float32)}
    unit = novoclip.clip_by_global_norm(1.0)
    clips = (unit, novoclip.agc(0.1), novoclip.clip_by_norm(1.0, mask={"a": True, "b": False}), optax.chain(unit))
    optimizers = [novoclip.adam(0.1, clip=clip) for clip in clips]

    @jax.jit
    def steps(bad, params):
        return [optimizer.update(bad, optimizer.init(params), params) for optimizer in optimizers]

    for updates, state in steps(bad, params):
        assert int(state.nonfinite) == 1
        np.testing.assert_array_equal(state.leaf_steps, [0, 1])
        np.testing.assert_array_equal(updates["a"], 0)


def test_a_step_whose_norm_is_beyond_the_range_of_numbers_is_not_skipped():
    """Its numbers are finite: the rule makes it zeros, and the optimizer counts it as any other."""
    optimizer = compiled(novoclip.adam(0.1, clip=novoclip.clip_by_global_norm(1.0)))
    params = {"a": np.ones(4, np.float32)}
    _, state = optimizer.update({"a": np.full(4, 3e38, np.float32)}, optimizer.init(params), params)
    assert int(state.nonfinite) == 0
    assert int(state.clip.nonfinite) == 1


def test_a_state_of_clip_may_be_cast():
    transform = compiled(novoclip.adam(0.1, clip=novoclip.autoclip(50.0, window=4)))
    params = {"w": np.ones(3, np.float32)}
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, transform.init(params))
    updates, _ = transform.update(params, state, params)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-6)
