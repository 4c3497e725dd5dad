"""`metrics` finds every state, under keys that do not depend on what else is there."""

from flax import nnx
from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip

PARAMS = {"a": jnp.ones(4), "b": jnp.ones(9)}
RULE, OTHER = novoclip.clip_by_global_norm(1.0), novoclip.autoclip(90.0, window=3)
MASKED = optax.masked(RULE, {"a": True, "b": False})


def keys(transform):
    return set(jax.eval_shape(lambda: novoclip.metrics(transform.init(PARAMS))))


def norms(transform):
    """Return every clip/.../norm after one step of ones, whose norm is the root of 13."""
    return {
        name: float(value) for name, value in metrics_after_one_step(transform, PARAMS).items() if name.endswith("norm")
    }


def metrics_after_one_step(transform, params):
    state = transform.init(params)
    _, state = jax.jit(transform.update)(jax.tree.map(jnp.ones_like, params), state, params)
    return novoclip.metrics(state)


def test_metrics_are_found_wherever_a_rule_may_stand():
    params = {"a": jnp.ones(4), "b": jnp.ones(9)}
    rule = novoclip.clip_by_global_norm(1.0)
    chain = optax.chain(rule, optax.adam(1e-3))
    halves = {"x": optax.chain(rule, optax.sgd(0.1)), "y": novoclip.clip_by_norm(1.0)}
    norm = np.sqrt(13)
    for transform, name, expected in (
        (chain, "clip/norm", norm),
        (optax.masked(chain, {"a": True, "b": False}), "clip/norm", 2.0),
        (optax.inject_hyperparams(novoclip.clip_by_global_norm)(max_norm=1.0), "clip/norm", norm),
        (optax.apply_if_finite(chain, 3), "clip/norm", norm),
        (optax.MultiSteps(chain, 1).gradient_transformation(), "clip/norm", norm),
        (optax.partition(halves, {"a": "x", "b": "y"}), "clip/x/norm", 2.0),
        (optax.named_chain(("first", rule), ("second", rule)), "clip/second/norm", 1.0),
        (novoclip.clip_by_norm(1.0), "clip/norm_max", 3.0),
        (novoclip.clip_by_norm(1.0), "clip/norm_mean", 2.5),
    ):
        np.testing.assert_allclose(metrics_after_one_step(transform, params)[name], expected, rtol=1e-6)
    assert novoclip.metrics(optax.adam(1e-3).init(params)) == {}


def test_metrics_read_an_nnx_optimizer():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(novoclip.clip_by_norm(1.0), optax.sgd(0.1)), wrt=nnx.Param)
    gradients = nnx.grad(lambda model: jnp.sum(model(jnp.ones((4, 3)))))(model)
    optimizer.update(model, gradients)
    found = novoclip.metrics(optimizer.opt_state)
    assert int(found["clip/steps"]) == 1
    np.testing.assert_allclose(found["clip/norm_max"], np.sqrt(6 * 16), rtol=1e-6)


BEFORE_AND_AFTER = {
    "chain": (optax.chain(RULE, optax.adam(0.1)), optax.chain(RULE, OTHER, optax.adam(0.1))),
    "chain in a chain": (optax.chain(RULE, optax.sgd(0.1)), optax.chain(optax.chain(RULE, OTHER), OTHER)),
    "alone": (RULE, optax.chain(RULE, RULE)),
    "after a transform": (optax.chain(optax.identity(), RULE), optax.chain(optax.identity(), RULE, OTHER)),
    "named chain, after": (
        optax.named_chain(("body", RULE), ("adam", optax.adam(0.1))),
        optax.named_chain(("body", RULE), ("other", OTHER), ("adam", optax.adam(0.1))),
    ),
    "named chain, before": (
        optax.named_chain(("body", RULE), ("adam", optax.adam(0.1))),
        optax.named_chain(("other", OTHER), ("body", optax.chain(RULE)), ("adam", optax.adam(0.1))),
    ),
    "within an optimizer": (novoclip.adam(0.1, clip=RULE), optax.chain(novoclip.adam(0.1, clip=RULE), OTHER)),
    "guard": (novoclip.skip_spikes(RULE), novoclip.skip_spikes(optax.chain(RULE, OTHER))),
    "guards": (novoclip.skip_spikes(RULE), novoclip.skip_spikes(novoclip.skip_spikes(RULE))),
    "mask": (MASKED, optax.chain(MASKED, OTHER)),
    "partition": (
        optax.partition({"x": RULE, "y": optax.sgd(0.1)}, {"a": "x", "b": "y"}),
        optax.partition({"x": RULE, "y": OTHER}, {"a": "x", "b": "y"}),
    ),
    "partition, sorted before": (
        optax.partition({"x": optax.sgd(0.1), "y": RULE}, {"a": "x", "b": "y"}),
        optax.partition({"x": OTHER, "y": RULE}, {"a": "x", "b": "y"}),
    ),
}


@pytest.mark.parametrize("name", BEFORE_AND_AFTER)
def test_keys_stay_when_a_second_rule_is_added(name):
    before, after = (keys(transform) for transform in BEFORE_AND_AFTER[name])
    assert before < after


def test_values_stay_when_a_second_rule_is_added():
    after = {"clip/norm": 13**0.5, "clip/1/norm": 1.0}
    assert norms(optax.chain(RULE, optax.sgd(0.1))) == pytest.approx({"clip/norm": 13**0.5})
    assert norms(optax.chain(RULE, novoclip.record(), optax.sgd(0.1))) == pytest.approx(after)
    named = optax.named_chain(("seen", novoclip.record()), ("rule", RULE), ("passed", novoclip.record()))
    sizes = {"clip/seen/norm": 13**0.5, "clip/rule/norm": 13**0.5, "clip/passed/norm": 1.0}
    assert norms(named) == pytest.approx(sizes)
    # Without the rule that one sees less, what remains keeps its name.
    named = optax.named_chain(("rule", RULE), ("passed", novoclip.record()))
    assert norms(named) == pytest.approx({"clip/rule/norm": 13**0.5, "clip/passed/norm": 1.0})


def test_states_within_states_of_the_same_kind_are_all_found():
    guarded = novoclip.skip_spikes(novoclip.guard_nonfinite(novoclip.skip_spikes(optax.sgd(0.1))))
    assert {name for name in keys(guarded) if "skipped" in name} == {"spikes/skipped", "spikes/inner/inner/skipped"}
    assert {"guard/nonfinite", "guard/inner/nonfinite"} <= keys(
        novoclip.guard_nonfinite(novoclip.guard_nonfinite(RULE), policy="zero_leaf")
    )
    carried = novoclip.uclip(novoclip.uclip(novoclip.uclip(RULE)))
    counters = {name for name in keys(carried) if name.startswith("carry/") and name.endswith("steps")}
    assert counters == {"carry/steps", "carry/inner/steps", "carry/inner/inner/steps"}
    assert "clip/norm" in keys(carried)


def test_a_name_that_reads_as_a_path_hides_no_other():
    rules = {"a": optax.named_chain(("b", RULE)), "a/b": OTHER}
    assert len([name for name in keys(optax.named_chain(*rules.items())) if name.endswith("/norm")]) == 2


def test_a_train_state_is_read_as_its_optimizer_state_is():
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.chain(RULE, OTHER))
    found = set(novoclip.metrics(state))
    assert {"clip/norm", "clip/opt_state/1/norm"} <= found
    assert len(found) == len(keys(state.tx))


@pytest.mark.parametrize("transform", [RULE, novoclip.adam(0.1), novoclip.skip_spikes(optax.sgd(0.1))])
def test_a_vmapped_state_is_named_as_such(transform):
    states = jax.vmap(transform.init)(jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), PARAMS))
    with pytest.raises(ValueError, match=r"leading axes of sizes \(3,\).*jax\.vmap\(novoclip\.metrics\)"):
        novoclip.metrics(states)
    assert {value.shape for value in jax.vmap(novoclip.metrics)(states).values()} == {(3,)}
