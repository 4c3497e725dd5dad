"""NovoGrad equals each published implementation in float64, and its options compose."""

import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from novoclip.optimizers.algorithm import OptimizerState
from novoclip.optimizers.novograd import NovoGradState
from novoclip.presets import NovoGradPreset, novograd_preset
from tests.oracles import novograd as oracle
from tests.oracles.novograd_cases import AFTER, APEX, IMPLEMENTATIONS, OPTIONS, PUBLISHED, RATE, STEPS, TFA
from tests.oracles.novograd_general import general
from tests.steps import compiled

SHAPES = {"bias": (3,), "kernel": (4, 3), "scale": (), "stack": (2, 2, 3)}


def storm(begins="one", seed=0):
    """Gradients of which one tensor, or all, is zero at first; with zeros later, in all and in one, and spikes."""
    generator = np.random.default_rng(seed)
    draw = lambda: {name: np.asarray(generator.normal(size=shape)) for name, shape in SHAPES.items()}  # noqa: E731
    gradients, blank = [draw() for _ in range(STEPS)], {name: np.zeros(shape) for name, shape in SHAPES.items()}
    gradients[0] = blank if begins == "all" else gradients[0] | {"bias": np.zeros(3)}
    gradients[1]["bias"] = np.zeros(3)
    gradients[7] = blank
    gradients[12]["kernel"] = np.zeros((4, 3))
    for step, by in ((20, 100.0), (30, 1e-5), (31, 1e-5)):
        gradients[step] = {name: by * leaf for name, leaf in gradients[step].items()}
    return gradients, draw()


def descent(optimizer):
    """The function of gradients and parameters, of one compiled step, that returns the parameters after each step."""

    @jax.jit
    def step(gradient, inner, at):
        updates, inner = optimizer.update(gradient, inner, at)
        return optax.apply_updates(at, updates), inner

    def descend(gradients, params):
        inner, found = optimizer.init(params), []
        for gradient in gradients:
            params, inner = step(gradient, inner, params)
            found.append(params)
        return {name: np.stack([at[name] for at in found]) for name in params}

    return descend


def distance(found, loop):
    """The largest distance of parameters from those of a loop, relative to the largest of their tensor; or NaN."""
    distances = [
        np.max(np.abs(found[name][step] - leaf)) / (np.max(np.abs(leaf)) + 1e-300)
        for step, wanted in enumerate(loop)
        for name, leaf in wanted.items()
    ]
    assert len(distances) == STEPS * len(found)
    return np.max(distances)


def gap(optimizer, loop, gradients, params):
    return distance(descent(optimizer)(gradients, params), loop)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "rate", "theirs", "ours"), IMPLEMENTATIONS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_published_implementations_are_matched(name, rate, theirs, ours):
    descend = descent(novoclip.novograd(rate, **ours))
    for begins in ("one", "all"):
        gradients, params = storm(begins)
        loop = getattr(oracle, name)(gradients, params, rate, **theirs)
        assert distance(descend(gradients, params), loop) < 1e-12, begins


@pytest.mark.usefixtures("x64")
def test_optax_itself_is_matched_with_start_first():
    gradients, params = storm("all")
    arguments = {"b1": 0.95, "b2": 0.98, "eps": 1e-8, "weight_decay": 0.05}
    ours, theirs = novoclip.novograd(0.1, **arguments, start="first"), optax.novograd(0.1, **arguments)
    expected = descent(theirs)(gradients, params)
    wanted = [{name: leaf[step] for name, leaf in expected.items()} for step in range(STEPS)]
    assert gap(ours, wanted, gradients, params) < 1e-12
    assert gap(novoclip.novograd(0.1, **arguments), wanted, gradients, params) > 0.1


@pytest.mark.usefixtures("x64")
def test_apex_shortens_its_first_step_where_it_corrects_a_norm_that_is_not_biased():
    gradients, params = storm()
    theirs = next(oracle.apex(gradients, params, 0.1))["kernel"] - params["kernel"]
    optimizer = novoclip.novograd(0.1, **APEX | AFTER | {"start": "first", "bias_correction_mu": True})
    ours = descent(optimizer)(gradients, params)["kernel"][0] - params["kernel"]
    np.testing.assert_allclose(theirs, np.sqrt(1 - 0.999) * ours, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_tensorflow_addons_differs_under_a_schedule():
    gradients, params = storm()
    loop = oracle.tensorflow_addons(gradients, params, RATE)
    assert gap(novoclip.novograd(RATE, **TFA), loop, gradients, params) > 1e-3


def allowed(arguments):
    inside = arguments.get("weight_decay_mode", "moment") == "moment" and arguments.get("weight_decay", 0.0) != 0
    return not (inside and arguments.get("normalize") == "after")


def assert_composed(arguments):
    # Of the tensors that are zero in some steps, one decays.
    gradients, params = storm("one")
    *gradients, params = ({name: tree[name] for name in ("bias", "kernel")} for tree in (*gradients, params))
    masked = {"weight_decay_mask": lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)}
    loop = general(gradients, params, RATE, **arguments, decays=lambda name: len(SHAPES[name]) > 1)
    assert gap(novoclip.novograd(RATE, **arguments, **masked), loop, gradients, params) < 1e-12


PAIRS = [
    {"weight_decay": OPTIONS["weight_decay"][1], one: OPTIONS[one][-1], other: OPTIONS[other][-1]}
    for one, other in itertools.combinations(
        ("start", "averaging", "amsgrad", "norm", "normalize", "luc", "eps_root"), 2
    )
]
PAIRS += [{"weight_decay": 0.1, "start": start, "norm": norm} for start in ("first", "zero") for norm in ("rms", "l1")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("arguments", PAIRS, ids=lambda pair: ",".join(list(pair)[1:]))
def test_pairs_of_options_compose(arguments):
    place = "decoupled" if "normalize" in arguments else "moment"
    assert_composed(arguments | {"weight_decay_mode": place})


@pytest.mark.usefixtures("x64")
@settings(max_examples=30)
@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONS.items()}).filter(allowed))
def test_all_options_compose(arguments):
    assert_composed(arguments)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("arguments", [{}, {"norm": "max", "amsgrad": True}, {"luc": 0.02}, {"start": "zero"}])
def test_layers_of_a_stack_have_norms_of_their_own(arguments):
    gradients, params = storm()
    split = lambda tree: {f"{name}{i}": leaf for name in ("stack",) for i, leaf in enumerate(tree[name])}  # noqa: E731
    alone = [split(tree) for tree in gradients]
    loop = list(general(alone, split(params), RATE, **arguments))
    wanted = [{"stack": np.stack([tree["stack0"], tree["stack1"]])} for tree in loop]
    only = lambda tree: {"stack": tree["stack"]}  # noqa: E731
    stacked, whole = (novoclip.novograd(RATE, per=novoclip.tensors(stacked=n), **arguments) for n in (1, 0))
    assert gap(stacked, wanted, [only(tree) for tree in gradients], only(params)) < 1e-12
    assert gap(whole, wanted, [only(tree) for tree in gradients], only(params)) > 1e-3


@pytest.mark.usefixtures("x64")
def test_scale_by_novograd_is_novograd_without_a_rate():
    gradients, params = storm()
    arguments = {"start": "zero", "averaging": "later", "amsgrad": True, "weight_decay": 0.1}
    arguments |= {"weight_decay_mode": "decoupled", "normalize": "after", "norm": "max", "eps": 1e-8}
    chain = optax.chain(novoclip.scale_by_novograd(**arguments), optax.scale(-0.1))
    loop = general(gradients, params, 0.1, **arguments)
    assert gap(chain, loop, gradients, params) < 1e-12


def test_states_hold_only_what_the_options_need():
    params = {"a": jnp.ones(2), "b": jnp.ones((2, 2))}

    def counts(**options):
        return len(jax.tree.leaves(jax.eval_shape(novoclip.novograd(0.1, **options).init, params).moments))

    assert counts() == 3
    assert counts(averaging="later", start="first", luc=1e-3, norm="max", normalize="after") == 3
    assert counts(amsgrad=True) == 4
    assert counts(start="zero") == 4
    assert counts(start="zero", bias_correction_nu=False) == 3
    assert counts(bias_correction_mu=True) == 4
    assert counts(bias_correction_mu=True, averaging="later") == 3


def test_no_two_arrays_of_a_state_share_a_buffer():
    options = {"amsgrad": True, "start": "zero", "bias_correction_mu": True}
    written = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    for per in ("tree", "tensor", "unit"):
        written(novoclip.novograd(0.1, per=per, **options).init({"a": jnp.ones(2)}))


def test_states_of_two_fields_stay_loadable():
    optimizer = novoclip.novograd(0.1)

    @jax.jit
    def twice(params):
        updates, state = optimizer.update(params, optimizer.init(params), params)
        old = OptimizerState(state.steps, state.nonfinite, NovoGradState(state.moments.mu, state.moments.root), ())
        return updates, optimizer.update(params, old, params)[0]

    updates, again = twice({"a": np.array([3.0, 4.0], np.float32)})
    np.testing.assert_allclose(again["a"], 1.9 * updates["a"], rtol=1e-5)


def test_the_state_of_other_options_is_refused():
    params = jnp.ones(2)
    state = novoclip.novograd(0.1).init(params)
    with pytest.raises(ValueError, match=r"made by novograd per tensor \(l2\), and not by novograd\(norm='max'\) per"):
        novoclip.novograd(0.1, norm="max").update(params, state, params)


def test_a_skipped_step_is_not_the_first():
    optimizer = compiled(novoclip.novograd(1.0, averaging="later", start="first", eps=0.0))
    bad, good, params = np.array([[np.nan, 1.0], [3.0, 4.0], [0.0, 0.0]], np.float32)
    _, state = optimizer.update(bad, optimizer.init(params), params)
    updates, _ = optimizer.update(good, state, params)
    np.testing.assert_allclose(updates, [-0.6, -0.8], rtol=1e-6)


def test_luc_keeps_a_tensor_of_zeros_as_it_is():
    optimizer = compiled(novoclip.novograd(0.1, luc=1e-3))
    params = {"a": np.zeros(2, np.float32), "b": np.array([6.0, 8.0], np.float32)}
    gradients = {"a": np.ones(2, np.float32), "b": np.array([3.0, 4.0], np.float32)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["a"], 0)
    np.testing.assert_allclose(updates["b"], [-0.006, -0.008], rtol=1e-5)


def test_numbers_may_be_injected():
    params, options = {"a": np.array([3.0, 4.0], np.float32)}, {"luc": 0.02, "start": "zero", "amsgrad": True}
    injected = optax.inject_hyperparams(novoclip.novograd, hyperparam_dtype=jnp.float32)(0.1, **options)
    both = (injected, novoclip.novograd(0.1, **options))
    found, expected = jax.jit(lambda params: [o.update(params, o.init(params), params)[0] for o in both])(params)
    np.testing.assert_allclose(found["a"], expected["a"], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start": "one"}, ValueError, "start must be one of 'nonzero', 'first', 'zero'; got 'one'"),
        ({"averaging": True}, TypeError, "averaging must be one of 'never', 'always', 'later'; got True"),
        ({"amsgrad": 1}, TypeError, "amsgrad must be True or False; got 1"),
        ({"norm": "l3"}, ValueError, "norm must be one of 'l1', 'l2', 'max', 'rms', 'inf'; got 'l3'"),
        ({"luc": True}, TypeError, "luc must be a trust coefficient, or None .*; got True: write luc=1e-3"),
        ({"luc": -1.0}, ValueError, "luc must be a number in"),
        ({"luc_eps": -1.0}, ValueError, "luc_eps must be a number in"),
        ({"weight_decay_mode": "coupled"}, ValueError, "weight_decay_mode must be one of 'moment', 'decoupled'"),
        (
            {"normalize": "after", "weight_decay": 0.1},
            ValueError,
            'weight_decay_mode must be "decoupled" with normalize',
        ),
    ],
)
def test_wrong_options_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        novoclip.novograd(0.1, **arguments)


def test_luc_and_decoupled_decay_need_the_parameters():
    for arguments, message in (
        ({"luc": 1e-3}, "^luc needs the parameters"),
        ({"weight_decay": 0.1}, "^weight_decay needs"),
    ):
        optimizer = novoclip.novograd(0.1, **arguments, weight_decay_mode="decoupled")
        with pytest.raises(ValueError, match=message):
            optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_arguments_of_novograd(name):
    preset = novograd_preset(name)
    numbers = tuple(preset.arguments[key] for key in ("learning_rate", "b1", "b2", "weight_decay"))
    assert numbers == PUBLISHED[name]
    assert preset.source.startswith("https://github.com/NVIDIA/")
    assert str(preset.arguments["learning_rate"]) in preset.schedule
    optimizer, params = novoclip.novograd(**preset.arguments), jnp.ones(2)
    updates, _ = optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(params), params)
    decayed = np.array([0.6, 0.8]) + preset.arguments["weight_decay"]
    np.testing.assert_allclose(updates, -preset.arguments["learning_rate"] * decayed, rtol=1e-5)
    assert json.loads(json.dumps(dict(preset.arguments))) == preset.arguments
    row = [line for line in novograd_preset.__doc__.splitlines() if f'"{name}"' in line]
    assert all(f"| {number:g} |" in row[0].replace("1e-5", "1e-05") for number in numbers)


def test_presets_cannot_be_changed():
    with pytest.raises(TypeError):
        novograd_preset("jasper").arguments["b1"] = 0.5


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("Jasper", "jasper"), ("resnet-50", "resnet50"), ("TransformerBig", "transformer_big"), ("citrnet", "citrinet")],
)
def test_an_unknown_preset_suggests_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"name='{wrong}' is no preset: write '{near}'"):
        novograd_preset(wrong)
    assert isinstance(novograd_preset(near), NovoGradPreset)


def test_a_preset_is_asked_for_by_a_string():
    with pytest.raises(TypeError, match=r"name must be a string, one of 'resnet50', .*; got 50"):
        novograd_preset(50)
