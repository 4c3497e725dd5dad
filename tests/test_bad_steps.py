"""Which leaf was not finite, and when a training is stopped: `locate_nonfinite` and `check`."""

import pickle

from flax import linen, nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

PARAMS = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(1, np.float32)}
BAD = PARAMS | {"kernel": np.float32([[1.0, np.nan], [1.0, 1.0]])}
BOTH_BAD = BAD | {"bias": np.float32([-np.inf])}
SEQUENCE = [PARAMS, BAD, PARAMS, BOTH_BAD, PARAMS, BAD, PARAMS]
FOUND = ["kernel: not finite in 3 of 7 steps, last at step 6", "bias: not finite in 1 of 7 steps, last at step 4"]


def after(optimizer, gradients, **extra):
    """The state after these gradients."""
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for gradient in gradients:
        _, state = update(gradient, state, PARAMS, **extra)
    return state


COUNT_LEAVES = {
    "guard_nonfinite": novoclip.guard_nonfinite(optax.adam(0.1)),
    "zero_leaf": novoclip.guard_nonfinite(optax.adam(0.1), policy="zero_leaf"),
    "skip_spikes": novoclip.skip_spikes(optax.adam(0.1)),
    "adam": novoclip.adam(0.1),
    "scale_by_nsgd": optax.chain(novoclip.scale_by_nsgd(), optax.scale(-0.1)),
    "novoclip": novoclip.novoclip(per="tensor"),
    "a clip inside": novoclip.sgd(0.1, clip=novoclip.clip_by_global_norm(1.0)),
    "chain": optax.chain(optax.identity(), novoclip.skip_spikes(optax.sgd(1.0))),
    "inject_hyperparams": optax.inject_hyperparams(novoclip.adam)(0.1),
    "around MultiSteps": novoclip.skip_spikes(optax.MultiSteps(optax.sgd(0.1), 2)),
    "in MultiSteps": optax.MultiSteps(novoclip.adam(0.1), 1),
}


@pytest.mark.parametrize("optimizer", COUNT_LEAVES.values(), ids=COUNT_LEAVES.keys())
def test_each_state_says_which_leaf_how_often_and_when_last(optimizer):
    if isinstance(optimizer, optax.MultiSteps):
        # One step of accumulation: afterwards the mean is NaN for good, which test_multi_steps.py is about.
        lines = novoclip.locate_nonfinite(after(optimizer, SEQUENCE[:2]), PARAMS).split("\n")
        assert lines[1:] == ["kernel: not finite in 1 of 2 steps, last at step 2"]
        assert lines[0].startswith("acc_grads/kernel: not finite in what optax.MultiSteps accumulates")
    else:
        assert novoclip.locate_nonfinite(after(optimizer, SEQUENCE), PARAMS).split("\n") == FOUND
        assert "no gradient was ever not finite in 0 steps" in novoclip.locate_nonfinite(optimizer.init(PARAMS), PARAMS)


@pytest.mark.parametrize("rule", [novoclip.clip_by_global_norm(1.0), novoclip.uclip(novoclip.clip_by_value(1.0))])
def test_states_with_only_a_counter_say_so(rule):
    found = novoclip.locate_nonfinite(after(rule, SEQUENCE), PARAMS)
    assert found.startswith("not finite in 3 of 7 steps; this state does not count leaves")


def test_paths_are_those_of_the_parameters():
    model = linen.Sequential([linen.Dense(2), linen.Dense(1)])
    variables = jax.jit(model.init)(jax.random.key(0), np.ones((1, 3), np.float32))
    optimizer = compiled(novoclip.guard_nonfinite(optax.sgd(0.1)))
    slopes = jax.tree.map(np.ones_like, variables)
    slopes["params"]["layers_1"]["bias"] = np.float32([np.inf])
    _, state = optimizer.update(slopes, optimizer.init(variables), variables)
    assert novoclip.locate_nonfinite(state, variables).startswith("params/layers_1/bias: not finite in 1 of 1")


def test_several_states_are_all_reported_with_their_places():
    state = after(novoclip.guard_nonfinite(novoclip.skip_spikes(novoclip.adam(0.1))), SEQUENCE)
    assert novoclip.locate_nonfinite(state, PARAMS).split("\n") == [
        f"guard_nonfinite: {FOUND[0]}",
        f"guard_nonfinite: {FOUND[1]}",
        "skip_spikes at inner: no gradient was ever not finite in 4 steps",
        "optimizer at inner/inner: no gradient was ever not finite in 4 steps",
    ]
    state = after(optax.chain(novoclip.clip_by_global_norm(1.0), novoclip.adam(0.1)), SEQUENCE)
    assert novoclip.locate_nonfinite(state, PARAMS).split("\n")[0].startswith("rule at 0: not finite in 3 of 7 steps")


def test_in_a_partition_each_guard_counts_its_own_part():
    halves = {"x": novoclip.guard_nonfinite(optax.sgd(1.0)), "y": novoclip.adam(1.0)}
    optimizer = optax.partition(halves, {"kernel": "x", "bias": "y"})
    state = after(optimizer, SEQUENCE)
    assert novoclip.locate_nonfinite(state, PARAMS).split("\n") == [
        "guard_nonfinite at inner_states/x/inner_state: leaf 1 of 1: not finite in 3 of 7 steps, last at step 6",
        "optimizer at inner_states/y/inner_state: leaf 1 of 1: not finite in 1 of 7 steps, last at step 4",
    ]
    alone = optax.masked(novoclip.guard_nonfinite(optax.sgd(1.0)), {"kernel": True, "bias": False})
    state = after(alone, SEQUENCE)
    assert novoclip.locate_nonfinite(state, PARAMS) == FOUND[0].replace("kernel", "leaf 1 of 1")
    with pytest.raises(ValueError, match="params has 0 leaves with numbers, but the state of guard_nonfinite at inner"):
        novoclip.locate_nonfinite(state, {})
    assert novoclip.locate_nonfinite(state, {"kernel": PARAMS["kernel"]}) == FOUND[0]


def test_a_loss_that_is_not_finite_is_told_from_a_leaf():
    state = after(novoclip.skip_spikes(optax.sgd(0.1)), [PARAMS] * 3, value=np.float32(np.nan))
    assert novoclip.locate_nonfinite(state, PARAMS).startswith(
        "the loss, or a norm too large for its dtype: not finite in at least 3 of 3"
    )


def test_nothing_to_tell_raises():
    for nothing in (optax.adam(0.1).init(PARAMS), (), novoclip.clip_by_value(1.0).init(PARAMS)):
        with pytest.raises(ValueError, match="state holds no counters of steps that were not finite"):
            novoclip.locate_nonfinite(nothing, PARAMS)
        with pytest.raises(ValueError, match="opt_state has nothing to check"):
            novoclip.check(nothing)


def test_a_missing_gradient_is_blamed_on_no_other_leaf():
    one, nan = np.ones(1, np.float32), np.float32([np.nan])
    params = {"a": one, "b": one, "act": jax.nn.relu, "c": one}
    bad = dict.fromkeys(params)
    for make in (novoclip.guard_nonfinite, novoclip.skip_spikes):
        guard = make(optax.identity())
        step = jax.jit(lambda nan, guard=guard: guard.update(bad | {"b": nan}, guard.init(params), params))
        updates, state = step(nan)
        assert state.leaf_steps.tolist() == [0, 1, 0]
        assert updates["a"] is updates["c"] is updates["act"] is None
        assert novoclip.locate_nonfinite(state, params) == "b: not finite in 1 of 1 steps, last at step 1"
        # Without the parameters, a None stands for the leaf if there is no other.
        plain = {name: leaf for name, leaf in params.items() if name != "act"}
        guard = compiled(guard)
        first = guard.init(plain)
        _, state = guard.update({"a": None, "b": nan, "c": None}, first)
        assert state.leaf_steps.tolist() == [0, 1, 0]
        with pytest.raises(
            ValueError, match="the gradients have 1 leaves with numbers, the parameters given to init 3"
        ):
            guard.update({"b": nan}, first)


@pytest.mark.parametrize(
    "optimizer",
    [
        novoclip.guard_nonfinite(optax.adam(0.1)),
        novoclip.skip_spikes(optax.adam(0.1)),
        novoclip.adam(0.1),
        novoclip.uclip(novoclip.clip_by_value(1.0)),
        optax.chain(optax.chain(novoclip.clip_by_global_norm(1.0)), optax.sgd(0.1)),
        novoclip.clip_by_value(1.0, count=True),
        novoclip.clip_by_norm(1.0, per="tensor"),
        optax.inject_hyperparams(novoclip.sgd)(0.1),
    ],
    ids=["guard", "spikes", "adam", "uclip", "rule", "per element", "per tensor", "injected"],
)
def test_a_training_is_stopped_after_bad_steps_in_a_row_or_above_a_fraction(optimizer):
    nan = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), PARAMS)
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for good, in_a_row in ((1, 0), (0, 1), (0, 2), (1, 0), (0, 1), (0, 2), (0, 3)):
        _, state = update(PARAMS if good else nan, state, PARAMS)
        novoclip.check(state, PARAMS, max_in_a_row=in_a_row + 1)
        if in_a_row:
            with pytest.raises(novoclip.TrainingStoppedError, match=f"{in_a_row} bad steps in a row"):
                novoclip.check(state, PARAMS, max_in_a_row=in_a_row)
    novoclip.check(state, PARAMS, max_fraction=0.72)
    with pytest.raises(novoclip.TrainingStoppedError, match=r"5 bad steps of 7, more than max_fraction=0\.7") as caught:
        novoclip.check(state, max_fraction=0.7)
    counts = caught.value.counts
    assert (counts.steps, counts.bad, counts.nonfinite, counts.in_a_row) == (7, 5, 5, 3)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_error_names_leaf_and_step_and_spikes():
    spike = jax.tree.map(lambda leaf: 1000 * leaf, PARAMS)
    state = after(novoclip.skip_spikes(optax.sgd(0.1)), [PARAMS] * 8 + [BAD, spike])
    with pytest.raises(novoclip.TrainingStoppedError) as caught:
        novoclip.check(state, PARAMS, max_in_a_row=2)
    assert str(caught.value) == (
        "skip_spikes: 2 bad steps in a row, 2 of 10 in all; 1 of them for a spike; "
        "kernel: not finite in 1 of 10 steps, last at step 9"
    )
    with pytest.raises(novoclip.TrainingStoppedError, match="leaf 2 of 2: not finite in 1 of 10 steps"):
        novoclip.check(state, max_in_a_row=2)


def test_check_reads_one_run_on_the_host():
    state = novoclip.adam(0.1).init(PARAMS)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(novoclip.check)(state)
    with pytest.raises(ValueError, match=r"several runs, of shape \(3,\)"):
        novoclip.check(jax.vmap(novoclip.adam(0.1).init, axis_size=3, in_axes=None)(PARAMS))
    for wrong, error in (({"max_in_a_row": 0}, ValueError), ({"max_in_a_row": 2.0}, TypeError)):
        with pytest.raises(error, match="max_in_a_row"):
            novoclip.check(state, **wrong)
    with pytest.raises(ValueError, match="max_fraction"):
        novoclip.check(state, max_fraction=1.5)


def test_the_state_of_an_nnx_optimizer_is_read():
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, novoclip.skip_spikes(novoclip.adam(0.1)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        slopes = nnx.grad(lambda model: jnp.sum(model(jnp.full((1, 2), jnp.nan))))(model)
        optimizer.update(model, slopes)

    step(model, optimizer)
    params = nnx.state(model, nnx.Param)
    assert "skip_spikes: kernel: not finite in 1 of 1 steps" in novoclip.locate_nonfinite(optimizer.opt_state, params)
    with pytest.raises(novoclip.TrainingStoppedError, match="kernel"):
        novoclip.check(optimizer.opt_state, params, max_in_a_row=1)


def test_propagating_optimizers_look_for_nothing():
    state = after(novoclip.adam(0.1, nonfinite="propagate"), SEQUENCE)
    assert state.leaf_steps == state.nonfinite_in_a_row == ()
