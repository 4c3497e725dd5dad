"""Every rule in the storm of examples/train_lm.py, before, behind or around Adam, and the optimizers by themselves.

    python benchmarks/rules.py                   # one seed, clean and stormed
    python benchmarks/rules.py --seeds 3 --best  # three seeds, the ten that the list below names as the best

Prints one Markdown row for each as it is measured; the loss is the validation loss in nats a character after
1000 steps. Adam's learning rate is 0.003, other optimizers' that of examples/train_lm.py.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
import sys

import numpy as np
import optax

import novoclip

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from storm_rules import NO_RULE, Rule, parse_optimizer, parse_rule
from storm_training import Task, final_loss, make_optimizer

BEFORE = (
    "record",
    "clip_by_value:max_delta=0.03",
    "clip_by_norm:max_norm=0.3",
    "clip_by_global_norm:max_norm=1.0",
    "clip_by_global_norm:max_norm=0.3",
    "clip_by_global_norm:max_norm=1.0,shape=tanh",
    "clip_by_global_norm:max_norm=1.0,shape=smooth",
    "clip_by_global_norm:max_norm=1.0,shape=drop",
    "clip_by_second_moment:threshold=3.0,form=proportional",
    "clip_by_second_moment:threshold=0.01",
    "normalize_by_norm",
    "clip_to_band:min_norm=1e-5,max_norm=0.03",
    "delta_gclip",
    "autoclip:percentile=90,window=200",
    "autoclip:percentile=90,window=200,per=tensor",
    "autoclip:percentile=90,window=200,include_current=False",
    "autoclip:percentile=10,window=1000",
    "clip_by_running_quantile:quantile=0.9",
    "clip_by_running_quantile:quantile=0.5",
    "clip_by_deviation:learn=raw",
    "clip_by_deviation:learn=clipped",
    "clip_by_deviation:learn=clipped,per=tensor",
    "zclip",
    "zclip:max_norm=inf",
    "zclip:max_norm=inf,release=20",
    "zclip:max_norm=inf,mode=percentile",
    "zclip:max_norm=inf,per=tensor",
    "clip_by_running_mean:factor=2.0",
    "clip_by_running_mean:factor=2.0,per=tensor",
    "adagc:warmup=100",
    "adagc:lambda_rel=1.5",
    "adaclip",
    "adagn",
    "agc:clipping=0.1",
    "agc:clipping=0.01",
    "agc:clipping=0.3,per=tensor",
    "clip_by_spectral_norm:max_norm=0.3",
    "clip_by_spectral_norm:max_norm=0.3,shape=algebraic",
    "centralize",
    "per_example",
    "uclip",
    "clip21",
    "start_after:inner=clip_by_global_norm,steps=100,ramp=100",
)
BEHIND = (
    "clip_by_norm:max_norm=0.003,norm=rms",
    "clip_by_value:max_delta=0.003",
    "autoclip:percentile=90,window=200",
    "clip_by_trust_ratio:coefficient=0.003",
    "clippy:absolute=1e-7",
    "clippy:absolute=1e-3,floor=0.1",
)
AROUND = ("skip_spikes", "guard_nonfinite")
ALONE = (
    "sgd",
    "momentum",
    "adagrad",
    "rmsprop",
    "amsgrad",
    "novograd",
    "novograd:b2=0.25",
    "novoclip",
    "novoclip:threshold=proportional,bias_correction=True",
    "nsgd",
    "nsgd:normalize=before,learning_rate=0.003",
    "stable_adamw",
    "adopt",
    "acclip",
    "acclip:previous=True",
    "spam",
    "spam:threshold=20.0",
)
BEST = (  # of the gradient rules, by the loss after the storm with one seed
    "clip_by_norm:max_norm=0.3 → adam",
    "clip_by_global_norm:max_norm=1.0 → adam",
    "autoclip:percentile=90,window=200 → adam",
    "autoclip:percentile=90,window=200,include_current=False → adam",
    "clip_by_deviation:learn=clipped → adam",
    "zclip → adam",
    "zclip:max_norm=inf → adam",
    "zclip:max_norm=inf,mode=percentile → adam",
    "adagc:lambda_rel=1.5 → adam",
    "agc:clipping=0.01 → adam",
)


def listed() -> Iterator[tuple[str, Rule, optax.GradientTransformation]]:
    """Yield (what it is called, the rule, the optimizer) for every row."""
    adam = parse_optimizer("adam").transform
    for text in BEFORE:
        yield f"{text} → adam", parse_rule(text), adam
    stable_spam = Rule("chain", {}, lambda: optax.chain(novoclip.adaclip(), novoclip.adagn()))
    yield "adaclip → adagn → adam", stable_spam, adam
    for text in BEHIND:
        yield f"adam → {text}", parse_rule(text)._replace(place="updates"), adam
    for text in AROUND:
        yield f"{text}(adam)", parse_rule(text), adam
    for text in ALONE:
        yield text, NO_RULE, parse_optimizer(text).transform


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--only", help="rows whose name contains this")
    options = parser.parse_args()
    task = Task("\n".join(topics.values()))
    print("| rule | clean | stormed | storm's cost |\n|---|---|---|---|", flush=True)
    for name, rule, descent in listed():
        if (options.best and name not in BEST) or (options.only and options.only not in name):
            continue
        optimizer = make_optimizer(rule, descent)
        losses = {
            stormed: [final_loss(task, rule, optimizer, stormed=stormed, seed=seed) for seed in range(options.seeds)]
            for stormed in (False, True)
        }
        cells = [cell(losses[False]), cell(losses[True]), cell(np.subtract(losses[True], losses[False]))]
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


def cell(values: np.ndarray | list[float]) -> str:
    """Return the mean, and the range over the seeds if there are several."""
    if not np.all(np.isfinite(values)):
        return "did not survive"
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({np.min(values):.3f} to {np.max(values):.3f})"


if __name__ == "__main__":
    main()
