"""Thresholds as floats, arrays and schedules; wrong ones raise at once, and say why."""

import functools
import inspect
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.catalog import CATALOG
from novoclip.testing import check_contract
from novoclip.testing.subject import SMALL, random_tree
from tests.cases import CASES

INTEGERS = ("window", "warmup", "count", "release", "steps", "ramp", "stacked", "max_in_a_row", "every", "seed")
# The last may be None; those of loss_scaling before it are fixed numbers, as in torch, and have tests of their own.
SCALES = ("scale", "growth_interval", "growth_factor", "backoff_factor", "min_scale", "max_scale")
NOT_NUMBERS = (*INTEGERS, "per", "inner", "limit", "axes", "of", *SCALES, "learning_rate")


def default_of(entry, example, name):
    return example.get(name, inspect.signature(entry.make).parameters[name].default)


NUMBERS = [
    (entry, example, name)
    for entry in CATALOG
    if entry.kind != "optimizer"
    for example in entry.examples[:1]
    for name in inspect.signature(entry.make).parameters
    if name not in NOT_NUMBERS and not isinstance(default_of(entry, example, name), bool | str | type(None))
]
CHOICES = [
    (entry, name)
    for entry in CATALOG
    for name in inspect.signature(entry.make).parameters
    if name in ("per", "norm", "shape", "nonfinite", "form", "mode", "learn", "policy")
]


def three_steps(rule):
    params = random_tree(shapes=SMALL)
    state = rule.init(params)
    for seed in range(3):
        updates, state = rule.update(random_tree(seed, shapes=SMALL), state, params)
    return updates


@pytest.mark.parametrize(("entry", "example", "name"), NUMBERS)
def test_numbers_may_be_arrays_schedules_or_injected(entry, example, name):
    number = default_of(entry, example, name)
    expected = three_steps(entry.make(**example))
    for value in (np.float32(number), jnp.float32(number), lambda step: jnp.float32(number)):
        given = three_steps(entry.make(**{**example, name: value}))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), given, expected)
    static = tuple(k for k in inspect.signature(entry.make).parameters if k in (*INTEGERS, "eps") and k != name)
    injected = optax.inject_hyperparams(entry.make, static_args=static)(**{**example, name: number})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), three_steps(injected), expected)


@pytest.mark.parametrize(("entry", "example", "name"), NUMBERS)
@pytest.mark.parametrize("wrong", [-1.0, float("nan"), "1.0", None, True, 1j])
def test_wrong_numbers_raise_at_construction(entry, example, name, wrong):
    error = ValueError if isinstance(wrong, float) else TypeError
    with pytest.raises(error, match=name) as caught:
        entry.make(**{**example, name: wrong})
    assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize(("entry", "name"), CHOICES)
def test_wrong_names_raise_at_construction(entry, name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'unknown'"):
        entry.make(**{**entry.examples[0], name: "unknown"})
    with pytest.raises(TypeError, match=f"{name} must be one of .*; got 3"):
        entry.make(**{**entry.examples[0], name: 3})


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.entry.kind in ("clip", "transform")], ids=lambda case: case.name
)
def test_missing_params_and_structure_mistakes_are_named(case):
    rule = case.transform()
    state = rule.init(random_tree())
    if case.entry.needs_params:
        with pytest.raises(ValueError, match=r"call update\(updates, state, params\)"):
            rule.update(random_tree(1), state)
        return
    jax.eval_shape(rule.update, random_tree(1), state)
    if case.subject().per == "tensor":
        with pytest.raises(ValueError, match=r"the gradients have blocks of shape \(1,\)"):
            rule.update({"kernel": jnp.ones(2)}, state)


def test_a_schedule_is_read_at_the_step_that_counts_from_0():
    rule = novoclip.clip_by_global_norm(lambda step: jnp.array([1.0, 2.0, 4.0])[step])
    state = rule.init(jnp.zeros(1))
    limits = []
    for _ in range(3):
        _, state = rule.update(jnp.array([8.0]), state)
        limits.append(float(state.limits))
    assert limits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("wrong", [-1.0, np.nan, [1.0, -1.0]])
def test_arrays_of_numpy_are_checked_as_numbers_are(wrong):
    with pytest.raises(ValueError, match=r"max_norm must be a number in \[0, inf\], an array or a schedule; got "):
        novoclip.clip_by_norm(np.array(wrong))


@pytest.mark.parametrize("jit", [False, True])
def test_injected_numbers_may_round_to_their_bound_or_be_nan(jit):
    for make, numbers in ((novoclip.scale_by_adam, {"b2": 0.99999999}), (novoclip.clip_by_norm, {"max_norm": np.nan})):
        schedules = {name: lambda _, number=number: jnp.float32(number) for name, number in numbers.items()}
        static = tuple(name for name in inspect.signature(make).parameters if name not in numbers)
        rule = optax.inject_hyperparams(make, static_args=static)(**schedules)
        updates, _ = (jax.jit if jit else lambda update: update)(rule.update)(jnp.ones(2), rule.init(jnp.ones(2)))
        assert updates.shape == (2,)


def test_a_negative_value_of_a_schedule_counts_as_0():
    rule = novoclip.clip_by_global_norm(lambda step: -1.0 + 0.0 * step)
    updates, state = rule.update(jnp.array([8.0]), rule.init(jnp.zeros(1)))
    assert updates == 0
    assert state.limits == 0


def test_thresholds_may_be_one_a_block():
    rule = novoclip.clip_by_norm(np.array([1.0, 100.0]))
    gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([6.0, 8.0])}
    updates, _ = rule.update(gradients, rule.init(gradients))
    np.testing.assert_allclose(updates["a"], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(updates["b"], gradients["b"])
    rule = novoclip.clip_by_norm(np.ones(3))
    with pytest.raises(ValueError, match=r"max_norm has shape \(3,\), but the blocks have shape \(2,\)"):
        rule.update(gradients, rule.init(gradients))


def test_a_limit_of_zero_gives_zeros():
    gradients = random_tree(1)
    for rule in (novoclip.clip_by_value(0), novoclip.clip_by_global_norm(0), novoclip.clip_by_norm(0, shape="tanh")):
        for tree in (gradients, jax.tree.map(jnp.zeros_like, gradients)):
            updates, _ = rule.update(tree, rule.init(tree))
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_clip_says_which_function_takes_a_number():
    with pytest.raises(TypeError, match="clip_by_value"):
        novoclip.clip_by_limit(1.0, novoclip.limits.constant(1.0))
    with pytest.raises(TypeError, match="constant"):
        novoclip.clip_by_limit("tree", 1.0)
    with pytest.raises(ValueError, match=r"tree.*tensor.*unit.*element"):
        novoclip.clip_by_limit("layer", novoclip.limits.constant(1.0))


@pytest.mark.parametrize(("name", "value"), [("window", 0), ("window", 2.0), ("warmup", 0), ("warmup", True)])
def test_wrong_counts_raise(name, value):
    rule = functools.partial(novoclip.autoclip, 90.0) if name == "window" else novoclip.zclip
    with pytest.raises(ValueError if value == 0 and value is not False else TypeError, match=name):
        rule(**{name: value})


def test_the_contract_takes_transforms_and_subjects():
    with pytest.raises(TypeError, match="subject must be a GradientTransformation, or a Subject with what it promises"):
        check_contract(novoclip.clip_by_global_norm)


def test_groups_and_units_name_what_is_wrong():
    with pytest.raises(TypeError, match="label_of must return a string; got 3 for 'a'"):
        novoclip.groups(lambda path, leaf: 3).norms({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"axes=\(2,\) are not all axes of 'a', which has shape \(2, 2\)"):
        novoclip.units(2).norms({"a": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="norm='l1' has no effect beside a Measure"):
        novoclip.clip_by_norm(1.0, per=novoclip.units(0), norm="l1")


def test_a_limit_whose_state_does_not_begin_with_the_blocks_is_refused():
    shared = novoclip.Limit(lambda norms: jnp.zeros(()), lambda norms, state, params=None, **extra: (norms, state))
    with pytest.raises(ValueError, match="must begin with the norms' shape"):
        novoclip.clip_by_limit("tensor", shared).init({"a": jnp.ones(2), "b": jnp.ones(2)})


@pytest.mark.parametrize("rule", [novoclip.adaclip, novoclip.clippy, novoclip.scale_by_novograd])
def test_rules_with_a_norm_of_their_own_refuse_blocks_that_have_no_other(rule):
    own = novoclip.Measure(lambda tree: jnp.ones(()), lambda tree, old, new: tree)
    for measure in (own, novoclip.singular_values()):
        with pytest.raises(TypeError, match=r"per must be a string, or a Measure made by tensors\(\), units\(\)"):
            rule(per=measure)
    with pytest.raises(ValueError, match="per must name blocks whose norms can be kept"):
        rule(per="element")


def test_a_limit_that_needs_parameters_says_so():
    relative = novoclip.Limit(lambda norms: (), lambda norms, state, sizes=None, **extra: (0.1 * sizes, state), True)
    rule = novoclip.clip_by_limit("tensor", relative)
    params = {"w": jnp.array([3.0, 4.0])}
    updates, _ = rule.update(params, rule.init(params), params)
    np.testing.assert_allclose(updates["w"], [0.3, 0.4], rtol=1e-6)
    with pytest.raises(ValueError, match="depend on the parameters"):
        rule.update(params, rule.init(params))


@pytest.mark.parametrize("per", ["tree", "tensor", "unit", "element"])
def test_numpy_arrays_and_python_numbers_are_gradients_too(per):
    rule = novoclip.clip_by_norm(1.0, per=per)
    params = {"scale": 2.0, "w": np.ones(2)}
    updates, _ = rule.update({"scale": 4.0, "w": np.array([3.0, 0.0])}, rule.init(params))
    total = np.hypot(4.0, 3.0)
    expected = {"scale": 4 / total, "w": [3 / total, 0]} if per == "tree" else {"scale": 1.0, "w": [1.0, 0.0]}
    np.testing.assert_allclose(updates["scale"], expected["scale"], rtol=1e-6)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-6)


FRACTIONS = [0.9, 1, 1e-3, np.float32(0.5), np.array(0.25), np.array([50.0, 0.5])]


@pytest.mark.parametrize("make", [novoclip.autoclip, novoclip.limits.autoclip])
@pytest.mark.parametrize("wrong", FRACTIONS, ids=repr)
def test_percentiles_are_in_percent(make, wrong):
    number = float(np.asarray(wrong).flat[-1])
    with pytest.raises(ValueError, match=f"percentile is in percent: got {number:g}, write {100 * number:g}"):
        make(wrong)
    for right in (0, 0.0, 1.5, 50, 100.0, np.array([0.0, 50.0]), jnp.float32(0.9), lambda step: 0.9):
        assert make(right)


@pytest.mark.parametrize("make", [novoclip.limits.running_quantile, novoclip.clip_by_running_quantile])
def test_quantiles_are_fractions(make):
    for wrong in (90, 1.5, np.array([0.5, 90.0])):
        number = float(np.asarray(wrong).flat[-1])
        with pytest.raises(ValueError, match=f"quantile is a fraction.*got {number:g}, write {number / 100:g}"):
            make(wrong)
    for right in (0, 1, 0.9, np.array([0.0, 1.0]), jnp.float32(90.0), lambda step: 90.0):
        assert make(right)


LONG = {
    "autoclip": lambda per: novoclip.autoclip(90.0, per=per),
    "autoclip, 65": lambda per: novoclip.autoclip(90.0, window=65, per=per),
    "clip_by_deviation": lambda per: novoclip.clip_by_deviation(per=per),
    "clip": lambda per: novoclip.clip_by_limit(
        novoclip.resolve_measure(per), novoclip.limits.autoclip(90.0, window=100)
    ),
    "tighter": lambda per: novoclip.clip_by_limit(
        novoclip.resolve_measure(per),
        novoclip.limits.tighter(novoclip.limits.deviation(window=40), novoclip.limits.autoclip(90.0, window=40)),
    ),
    "a Limit of one's own": lambda per: novoclip.clip_by_limit(
        novoclip.resolve_measure(per),
        novoclip.Limit(lambda n: jnp.zeros((*n.shape, 99), jnp.int32), lambda n, state, p=None, **extra: (n, state)),
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_more_than_64_copies_of_the_parameters_are_asked_for(name):
    params = {"a": jax.ShapeDtypeStruct((4000, 1000), jnp.float32), "b": jax.ShapeDtypeStruct((10,), jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"copies of the parameters.*GB for 4000010 elements.*window=.*max_copies="):
        jax.eval_shape(LONG[name]("element").init, params)
    jax.eval_shape(LONG[name](novoclip.elements(max_copies=1000)).init, params)
    jax.eval_shape(LONG[name]("tensor").init, params)
    LONG[name]("element").init({})


def test_the_size_of_a_history_per_element_is_estimated_right():
    rule = novoclip.autoclip(90.0, window=65, per=novoclip.elements(max_copies=65))
    state = rule.init(jnp.zeros(1000)).limit_state
    size = sum(array.nbytes for array in jax.tree.leaves(state))
    with pytest.raises(ValueError, match=f"65 copies of the parameters here, {size / 1000:.3g} kB for 1000 elements"):
        novoclip.autoclip(90.0, window=65, per="element").init(jnp.zeros(1000))
    for make in (functools.partial(novoclip.autoclip, 90.0), novoclip.clip_by_deviation):
        make(window=64, per="element").init(jnp.zeros(2))
    with pytest.raises(ValueError, match="max_copies must be an integer of at least 1"):
        novoclip.elements(max_copies=0)


OPTIMIZERS = [
    entry.make for entry in CATALOG if entry.kind == "optimizer" and "clip" in inspect.signature(entry.make).parameters
]
WRAPPERS = [
    novoclip.uclip,
    novoclip.clip21,
    novoclip.per_example,
    novoclip.guard_nonfinite,
    novoclip.skip_spikes,
    lambda inner: novoclip.start_after(inner, 3),
    lambda inner: novoclip.across_shards(inner, axis_name="devices", sharded=True),
]


def test_a_limit_or_a_factory_is_no_rule():
    for argument, makers in (
        ("clip", [lambda clip, make=make: make(0.1, clip=clip) for make in OPTIMIZERS]),
        ("inner", WRAPPERS),
    ):
        for make in makers:
            for limit in (novoclip.limits.constant(1.0), novoclip.limits.zclip()):
                with pytest.raises(TypeError, match=f"{argument} must be.*got a Limit.*write {argument}=novoclip.clip"):
                    make(limit)
            for factory in (novoclip.autoclip, optax.adam, novoclip.limits.constant, optax.MultiSteps):
                name = factory.__name__
                with pytest.raises(TypeError, match=f"got {name} itself.*not called: write {argument}={name}"):
                    make(factory)
            with pytest.raises(TypeError, match=f"{argument} must be a GradientTransformation.*got 1.0"):
                make(1.0)


def test_an_optimizer_is_no_rule():
    params = jnp.ones(2)
    for given in (novoclip.adam(0.1), novoclip.scale_by_nsgd(), novoclip.sgd(0.1)):
        with pytest.raises(TypeError, match=r"clip must be a rule.*got an optimizer"):
            novoclip.momentum(0.1, clip=given)
    # What contains one is known by its state.
    for given in (
        optax.chain(novoclip.clip_by_norm(1.0), novoclip.adam(0.1)),
        novoclip.guard_nonfinite(novoclip.adam(0.1)),
        optax.inject_hyperparams(novoclip.sgd)(0.1),
    ):
        with pytest.raises(TypeError, match=r"clip must be a rule.*got an optimizer"):
            novoclip.adam(0.1, clip=given).init(params)
    novoclip.adam(0.1, clip=optax.chain(novoclip.clip_by_norm(1.0), novoclip.centralize())).init(params)


LIMITS = [
    novoclip.limits.constant(1.0),
    novoclip.limits.tighter(novoclip.limits.constant(1.0), novoclip.limits.constant(2.0)),
    novoclip.limits.autoclip(90.0),
    novoclip.limits.deviation(),
    novoclip.limits.running_mean(3.0),
    novoclip.limits.running_quantile(0.9),
    novoclip.limits.second_moment(3.0),
    novoclip.limits.agc(0.1),
    novoclip.limits.trust_ratio(),
    novoclip.limits.zclip(),
]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_in_a_chain_says_what_to_write(limit):
    chain = optax.chain(limit, optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"a Limit is one part of a rule.*write novoclip\.clip"):
        chain.init({"w": jnp.ones(2)})
    # An array of parameters may be an array of norms: then it shows one call later.
    state = (limit.init(jnp.ones(2)), optax.sgd(0.1).init(jnp.ones(2)))
    with pytest.raises(TypeError, match=r"a Limit is one part of a rule.*write novoclip\.clip"):
        chain.update(jnp.ones(2), state, jnp.ones(2))


SENSITIVE = {"b1", "b2", "decay", "dampening", "momentum", "percentile", "quantile", "eps", "eps_root"}
ROUNDED = [
    (entry, name)
    for entry in CATALOG
    for name in inspect.signature(entry.make).parameters
    if name in SENSITIVE
    and not isinstance(default_of(entry, entry.examples[0], name), str)  # weight_decay_mode="decoupled"
    and not entry.examples[0].get("nesterov")  # beside which there is no dampening
    and (entry.name, name) != ("sgd", "dampening")  # which needs momentum
]


@pytest.mark.parametrize(("entry", "name"), ROUNDED, ids=lambda value: getattr(value, "name", value))
def test_numbers_that_16_bits_change_are_refused(entry, name):
    example = dict(entry.examples[0])
    for dtype in (np.float16,) if name.startswith("eps") else (jnp.bfloat16, np.float16):
        with pytest.raises(ValueError, match=f"{name} has dtype .*hyperparam_dtype=jnp.float32"):
            entry.make(**example | {name: jnp.asarray(0.5, dtype)})
        rule = entry.make(**example | {name: lambda step, dtype=dtype: jnp.asarray(0.5, dtype)})
        with pytest.raises(ValueError, match=f"{name} has dtype .*hyperparam_dtype=jnp.float32"):
            jax.eval_shape(lambda tree, rule=rule: rule.update(tree, rule.init(tree), tree), random_tree())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_injected_decays_keep_their_digits_or_raise(dtype):
    params = jnp.ones(2, dtype)
    for make, arguments in (
        (novoclip.adam, {}),
        (novoclip.momentum, {"decay": 0.9}),
        (novoclip.novograd, {}),
        (novoclip.nsgd, {}),
        (novoclip.rmsprop, {}),
    ):
        rounded = optax.inject_hyperparams(make)(0.1, **arguments)
        with pytest.raises(ValueError, match="hyperparam_dtype"):
            jax.eval_shape(rounded.init, params)
        kept = optax.inject_hyperparams(make, hyperparam_dtype=jnp.float32)(0.1, **arguments)
        expected, found = make(0.1, **arguments), kept
        one, other = (d.update(params, d.init(params), params)[0] for d in (expected, found))
        np.testing.assert_allclose(one.astype(np.float32), other.astype(np.float32), rtol=0.02)
    optax.inject_hyperparams(novoclip.clip_by_global_norm)(1.0).init(params)  # a threshold is only rounded


# Public names of 0.1.0 that the package itself no longer has.
GONE = """ACClipMemory ADOPTMemory AMSGradMemory AdaGCMemory AdagradMemory AdamMemory ArithmeticQuantileMemory
AverageMemory
CarryState DelayedState HistoryMemory MomentumMemory NonfiniteState NovoClipMemory NovoGradMemory QuantileMemory
RMSpropMemory RootRatioMemory RunningMeanMemory SecondMomentMemory Slices SpikeState ZScoreMemory constant
deviations_of_history percentile_of_history running_mean running_quantile scale_by_adagrad scale_by_momentum
scale_by_rmsprop second_moment share_of_parameters tighter trust_ratio z_score"""


@pytest.mark.parametrize("name", GONE.split())
def test_a_name_of_an_earlier_version_says_what_to_write(name):
    with pytest.raises(AttributeError, match=r"; write novoclip\.([\w.]+)$") as caught:
        getattr(novoclip, name)
    assert operator.attrgetter(str(caught.value).rpartition("novoclip.")[2])(novoclip)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("adabelief", "only Optax has it: write optax.adabelief"), ("zclp", r"did you mean novoclip\.zclip\?")],
)
def test_another_name_is_answered_with_the_nearest(name, hint):
    with pytest.raises(AttributeError, match=hint):
        getattr(novoclip, name)
