"""Write rules.json: what published code of clipping rules gives, in float64.

    python -m tests.trajectories.make_rules FOLDER

FOLDER holds the files of FILES, each as owner+name/path, at the commit named there. Needs torch, jax,
optax 0.2.8, autoclip 0.2.1, pytorch_optimizer 4.1.0, timm 1.0.31, torch-optimi 0.3.3 and AdamWClip
0.1.4, which the tests do not. Cases of libraries that are missing stay as they are: TensorFlow (with
TF_USE_LEGACY_KERAS=1 and tf_keras) can be run apart from the others. The inputs are in inputs.py. The
parameters are set back after every step, so an update depends on earlier gradients alone. A case
whose name ends in "gradient" holds the clipped gradient, any other what the code adds to the
parameters; null is NaN.
"""

import contextlib
import dataclasses
import enum
import functools
import importlib.util
import io
import json
import math
from pathlib import Path
import sys
import types
import warnings

import numpy as np

from tests.trajectories.inputs import gradients_without_faults, losses, parameters

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
if HAS_TORCH:
    from AdamWClip import AdamWClip
    from autoclip.torch import QuantileClip
    import jax
    import jax.numpy as jnp
    import optax
    from optimi import StableAdamW
    from pytorch_optimizer import AdaGC
    import torch
if HAS_TENSORFLOW:
    import tensorflow as tf

FILES = {
    "zclip": ("bluorion-com/ZClip", "584ce4f5a4aabab59e7df1dbaffc26a44df39dc1", "zclip/zclip.py"),
    "autoclip": ("pseeth/autoclip", "dfb622c3caca9dc0ecc8bf0afeb773e190256d6e", "autoclip.py"),
    "agc": ("danijar/dreamerv3", "e3f02248693a79dc8b0ebd62c93683888ddaccfe", "embodied/jax/opt.py"),
    "spam": ("TianjinYellow/SPAM-Optimizer", "e8185fbe695fdc449953b4a1f96121df5bf0d268", "galore_torch/SPAM.py"),
    "stablespam": (
        "TianjinYellow/StableSPAM",
        "6a66da1ea7005f7fe7bc570b7968144b42163bed",
        "galore_torch/stablespam.py",
    ),
    "acclip": ("rivercold/ACClip-Pytorch", "8141bc87b1493e31c0a29999db2e315a4787721f", "optimizers/ACClip.py"),
    "spectra": (
        "mlolab/llm-spectral-clipping",
        "ed9df11d797aa94f312f4d7810d5f8cd8ddc9897",
        "src/optim/post_process.py",
    ),
    "dgclip": ("matteo-tucat/delta-gradient-clipping", "de24023c4932ce322fdafef3409c2a35dc4a8b8d", "dGClip.py"),
    "levanter": (
        "marin-community/levanter",
        "9263f81e8b453241332c2c0b2d2001bfb2d2241c",
        "src/levanter/optim/clip_update_norm.py",
    ),
    "olmo": (
        "allenai/OLMo-core",
        "fa6c5014c9f6e9ee789da2d9c20d5126fee8df0d",
        "src/olmo_core/optim/skip_step_optimizer.py",
    ),
    "clippy": (
        "tensorflow/recommenders",
        "cf1dafa988f223ed5f30b68cb9aed518484b3a1d",
        "tensorflow_recommenders/experimental/optimizers/clippy_adagrad.py",
    ),
}
FOLDER = Path(sys.argv[1])
GRADIENTS = gradients_without_faults()
PARAMETERS = parameters()
NAMES = sorted(PARAMETERS)
SOME = ("a/bias", "b/scale")  # enough of a rule that scales all leaves alike
cases = {}


def source_of(key):
    name, commit, path = FILES[key]
    return f"{name}@{commit} {path}"


def module_of(path, name="published", **stubs):
    for stub, content in stubs.items():
        sys.modules[stub.replace("__", ".")] = types.SimpleNamespace(**content)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def published(key, **options):
    name, _, path = FILES[key]
    return module_of(FOLDER / name.replace("/", "+") / path, **options)


def rounded(values):
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.13g}") if math.isfinite(values) else None


def add(name, source, arguments, steps, leaves=NAMES):
    steps = [{leaf: rounded(np.asarray(step[leaf]).tolist()) for leaf in leaves} for step in steps]
    cases[name] = {"source": source, "arguments": arguments, "updates": steps}


def to_torch(leaf):
    """Our last axis, the output, first."""
    return np.moveaxis(leaf, -1, 0) if leaf.ndim else leaf


def from_torch(leaf):
    return np.moveaxis(leaf, 0, -1) if leaf.ndim else leaf


def torch_steps(make, read, layout=(np.asarray, np.asarray)):
    """make(leaves) -> (step, state of a leaf); read(leaf, its value before, state of a leaf) -> tensor."""
    into, out = layout
    leaves = torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.tensor(into(PARAMETERS[name]).copy())) for name in NAMES}
    )
    step, state = make(leaves)
    for gradient in GRADIENTS:
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.tensor(into(gradient[name]).copy())
        step()
        yield {name: out(read(leaf, before[name], state).detach().numpy()) for name, leaf in leaves.items()}
        for name, leaf in leaves.items():
            leaf.data.copy_(before[name])


def the_gradient(leaf, before, state):
    return leaf.grad.clone()


def the_update(leaf, before, state):
    return leaf - before


def the_momentum(leaf, before, state):
    """With beta_1 = 0, the gradient as it reaches the moments."""
    return state[leaf]["exp_avg"].clone()


def torch_optimizer(kind, **arguments):
    def make(leaves):
        optimizer = kind(list(leaves.values()), **arguments)
        return optimizer.step, optimizer.state

    return make


def add_torch(name, source, kind, read=the_update, leaves=NAMES, **arguments):
    add(name, source, arguments, torch_steps(torch_optimizer(kind, **arguments), read), leaves)


def zclip():
    kind = published("zclip").ZClip
    common = {"z_thresh": 2.0, "alpha": 0.9, "warmup_steps": 9}
    for name, own in {
        "adaptive scaling": {"max_grad_norm": 5.0},
        "adaptive scaling, no max": {"max_grad_norm": None},
        "mean": {"max_grad_norm": 5.0, "clip_option": "mean"},
        "percentile": {"max_grad_norm": 5.0, "mode": "percentile"},
        "mean, no max": {"max_grad_norm": None, "clip_option": "mean"},
        "percentile, no max": {"max_grad_norm": None, "mode": "percentile"},
        "factor": {"max_grad_norm": 5.0, "clip_factor": 0.5},
        "skip": {"max_grad_norm": 5.0, "skip_update_on_spike": True},
        "skip, no max": {"max_grad_norm": None, "skip_update_on_spike": True},
    }.items():
        arguments = {**common, **own}

        def make(leaves, arguments=arguments):
            clip = kind(**arguments)
            return lambda: clip.step(leaves), None

        add(f"zclip, {name}: gradient", source_of("zclip"), arguments, torch_steps(make, the_gradient), SOME)


def autoclip():
    for scope in (False, True):
        add_torch(
            f"autoclip, quantile, {'global' if scope else 'tensor'}: gradient",
            "autoclip 0.2.1 autoclip/torch/quantile.py",
            QuantileClip,
            the_gradient,
            SOME if scope else NAMES,
            quantile=0.9,
            history_length=10,
            global_threshold=scope,
        )

    events = {"EventEnum": enum.Enum}
    handler = published("autoclip", ignite={}, ignite__engine=events).add_autoclip_gradient_handler
    for percentile in (10, 90):
        arguments = {"clip_percentile": percentile}

        def make(leaves, arguments=arguments):
            handlers = []
            engine = types.SimpleNamespace(on=lambda _: handlers.append)
            handler(engine, leaves, **arguments)
            return functools.partial(handlers[0], engine), None

        add(
            f"autoclip, {percentile}: gradient", source_of("autoclip"), arguments, torch_steps(make, the_gradient), SOME
        )


def adagc():
    source = "pytorch_optimizer 4.1.0 pytorch_optimizer/optimizer/adagc.py"
    common = {"beta": 0.98, "lambda_abs": 1.0, "lambda_rel": 1.05, "warmup_steps": 10, "weight_decay": 0.0, "lr": 1.0}
    add_torch("adagc: gradient", source, AdaGC, the_momentum, betas=(0.0, 0.999), **common)


def agc():
    file = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "utils" / "agc.py"
    clip = module_of(file).adaptive_clip_grad
    arguments = {"clip_factor": 0.1, "eps": 1e-3}

    def make(leaves):
        return lambda: clip(leaves.values(), **arguments), None

    steps = torch_steps(make, the_gradient, (to_torch, from_torch))
    add("agc, unit: gradient", "timm 1.0.31 timm/utils/agc.py", arguments, steps)


def agc_per_tensor():
    package = "embodied.jax"
    stubs = {
        "ninjax": {"Module": object},
        "embodied": {},
        "embodied__jax": {"__path__": [], "internal": None, "nets": None},
    }
    arguments = {"clip": 0.3, "pmin": 1e-3}
    rule = published("agc", name=f"{package}.opt", **stubs).clip_by_agc(**arguments)
    add("agc, tensor: gradient", source_of("agc"), arguments, jax_steps(rule))


def spam():
    kind = published("spam").AdamW
    common = {"lr": 1.0, "no_deprecation_warning": True}
    with contextlib.redirect_stdout(io.StringIO()):
        for threshold in (5000, 20):
            for name, own in {
                "defaults": {},
                "reset": {"DeltaT": 12, "grad_accu_steps": 3, "warmup_steps": 4},
            }.items():
                arguments = {"threshold": threshold, **own, **common}
                add_torch(f"spam, {threshold}, {name}", source_of("spam"), kind, **arguments)


def stablespam():
    kind = published("stablespam").StableSPAM
    source = source_of("stablespam")
    common = {"lr": 1.0, "gamma1": 0.7, "gamma2": 0.9}
    for gamma3 in (0.999, 0.9):
        options = {"gamma3": gamma3, "update_proj_gap": 0, **common}
        add_torch(f"stablespam, {gamma3}, adaclip: gradient", source, kind, the_gradient, **options)
        add_torch(f"stablespam, {gamma3}, adagn: gradient", source, kind, the_momentum, betas=(0.0, 0.999), **options)
    add_torch("stablespam", source, kind, gamma3=0.999, update_proj_gap=0, **common)
    add_torch("stablespam, reset", source, kind, gamma3=0.999, update_proj_gap=12, **common)


def stableadamw():
    add_torch(
        "stableadamw",
        "torch-optimi 0.3.3 optimi/stableadamw.py",
        StableAdamW,
        lr=0.1,
        weight_decay=0.01,
        betas=(0.9, 0.99),
        eps=1e-6,
        foreach=False,
        triton=False,
    )


def adamwclip():
    source = "AdamWClip 0.1.4 AdamWClip/optimizer.py"
    common = {"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0.01, "clip_grad_adapt": 2.0}
    add_torch("adamwclip", source, AdamWClip, **common, clip_grad_warm_up=0)
    add_torch("adamwclip, warmup", source, AdamWClip, **common, clip_grad_warm_up=1)


def acclip():
    kind = published("acclip").ACClip
    for alpha in (1.0, 1.5):
        arguments = {"lr": 1.0, "betas": (0.9, 0.99), "eps": 1e-5, "weight_decay": 0.0, "alpha": alpha, "mod": 0}
        add_torch(f"acclip, alpha {alpha:g}, mod 0", source_of("acclip"), kind, **arguments)


def dgclip():
    kind = published("dgclip").dGClip
    add_torch("delta clip", source_of("dgclip"), kind, leaves=SOME, lr=0.5, gamma=1.0, delta=0.1)


def spectra():
    clip = published("spectra").clip_sigvals
    arguments = {"clip_c": 1.0, "ns_iter": 40, "use_float32": True}
    steps = [
        {name: clip(torch.tensor(gradient[name]), **arguments).numpy() for name in ("a/kernel", "a/bias")}
        for gradient in GRADIENTS
    ]
    add("spectra, 40 iterations: gradient", source_of("spectra"), arguments, steps, ("a/bias", "a/kernel"))


def skip_step():
    stubs = {
        "olmo_core": {},
        "olmo_core__utils": {"get_default_device": None, "move_to_device": lambda tensor, device: tensor},
    }
    kind = published("olmo", **stubs).SkipStepOptimizer
    norms = [math.sqrt(sum(np.sum(leaf**2) for leaf in gradient.values())) for gradient in GRADIENTS]
    for window, sigma in ((16, 6), (8, 2)):
        for name, given in {"loss": ("loss",), "loss and norm": ("loss", "norm")}.items():
            optimizer = kind([torch.zeros(1)], {}, rolling_interval_length=window, sigma_factor=sigma)
            steps = []
            for gradient, loss, norm in zip(GRADIENTS, losses(), norms, strict=True):
                optimizer.latest_loss = torch.tensor(loss)
                if "norm" in given:
                    optimizer.latest_grad_norm = torch.tensor(norm)
                factor = optimizer.get_step_factor().item()
                steps.append({leaf: factor * value for leaf, value in gradient.items()})
            arguments = {"rolling_interval_length": window, "sigma_factor": sigma, "given": given}
            add(f"skip step, {name}, {sigma} sigma: gradient", source_of("olmo"), arguments, steps, SOME)


def jax_steps(rule, change=lambda state: state):
    state = change(rule.init(PARAMETERS))
    for gradient in GRADIENTS:
        updates, state = rule.update(gradient, state, PARAMETERS)
        yield updates


def adopt():
    arguments = {"learning_rate": 1.0}
    add("adopt", "optax 0.2.8 optax.contrib.adopt", arguments, jax_steps(optax.contrib.adopt(**arguments)))


def historical_norm():
    tracker = types.SimpleNamespace(jit_log=lambda _: None)
    stubs = {"levanter": {"tracker": tracker}, "levanter__tracker": {"jit_log": tracker.jit_log}}
    kind = published("levanter", **stubs).clip_update_by_historical_norm
    for window, sigma in ((12, 2.0), (6, 0.5)):
        arguments = {"rolling_interval_length": window, "sigma_factor": sigma}
        # The norms are kept in float32 there.
        steps = jax_steps(
            kind(**arguments),
            lambda state: dataclasses.replace(state, update_norms=state.update_norms.astype(jnp.float64)),
        )
        add(f"historical norm, {window}: gradient", source_of("levanter"), arguments, steps, SOME)


def clippy():
    kind = published("clippy").ClippyAdagrad
    for name, own in {
        "defaults": {},
        "loose, standard accumulator": {"absolute_threshold": 1e-2, "use_standard_accumulator_update": True},
    }.items():
        arguments = {"learning_rate": 1.0, **own}
        variables = [tf.Variable(PARAMETERS[leaf], dtype=tf.float64) for leaf in NAMES]
        optimizer = kind(**arguments, jit_compile=False)
        optimizer.build(variables)
        steps = []
        for gradient in GRADIENTS:
            optimizer.apply_gradients(
                [(tf.constant(gradient[leaf]), v) for leaf, v in zip(NAMES, variables, strict=True)]
            )
            steps.append({leaf: v.numpy() - PARAMETERS[leaf] for leaf, v in zip(NAMES, variables, strict=True)})
            for leaf, variable in zip(NAMES, variables, strict=True):
                variable.assign(PARAMETERS[leaf])
        add(f"clippy, {name}", source_of("clippy"), arguments, steps)


warnings.simplefilter("ignore")
path = Path(__file__).parent / "rules.json"
if HAS_TORCH:
    jax.config.update("jax_enable_x64", True)
    # Some code casts to float32, or compiles: here it stays in float64, and eager.
    torch.Tensor.float = torch.Tensor.double
    torch.compile = lambda function: function
    for make_cases in (zclip, autoclip, adagc, agc, agc_per_tensor, spam, stablespam, stableadamw, adopt, adamwclip):
        make_cases()
    for make_cases in (acclip, spectra, dgclip, historical_norm, skip_step):
        make_cases()
if HAS_TENSORFLOW:
    clippy()
stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
stored.update(cases)
path.write_text(json.dumps(dict(sorted(stored.items())), separators=(",", ":")) + "\n", encoding="utf-8")
