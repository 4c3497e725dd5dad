"""SGD with and without clipping under alpha-stable gradient noise, each at its own best learning rate.

    python examples/evidence/heavy_tails.py

The claim is that of Zhang et al., "Why are adaptive methods good for attention models?" (2020),
https://arxiv.org/abs/1912.03194: under noise with infinite variance, SGD need not converge, and clipped SGD does.
"""

import functools
from itertools import product

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from shared import mean_and_interval, parser, save, table

import novoclip

mpl.use("Agg")
import matplotlib.pyplot as plt

ALPHAS = (1.2, 1.5, 2.0)
RATES = tuple(10.0 ** (power / 2) for power in range(-8, 4))
TUNING_SEEDS = 9  # other seeds than those of the tables
CRITERIA = {"median": np.median, "mean": np.mean}
POINTS = 50  # of each curve
# Each rule takes one number, from a grid of three; the number of none does nothing.
RULES = {
    "none": (lambda _: optax.identity(), (0.0,)),
    "per element": (novoclip.clip_by_value, (0.1, 1.0, 10.0)),
    "by norm": (novoclip.clip_by_global_norm, (1.0, 10.0, 100.0)),
    "autoclip": (lambda percentile: novoclip.autoclip(percentile, window=100), (10.0, 50.0, 90.0)),
}


def stable_noise(key, alpha, shape):
    """Return symmetric alpha-stable numbers of scale 1, by the method of Chambers, Mallows and Stuck.

    With U uniform in (-pi/2, pi/2) and E exponential of mean 1,

        X = sin(alpha U) / cos(U)^(1/alpha) (cos((1 - alpha) U) / E)^((1 - alpha) / alpha).

    For alpha = 2 it is a normal distribution of variance 2; for alpha < 2 its variance is infinite.

    Args:
      key: a JAX random key.
      alpha: the stability, in (0, 2].
      shape: the shape of the array.

    References:
      Chambers, Mallows, Stuck, `A method for simulating stable random variables
      <https://doi.org/10.1080/01621459.1976.10480344>`_, 1976, with beta = 0.
    """
    angle_key, exponential_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, shape, minval=-jnp.pi / 2, maxval=jnp.pi / 2)
    exponential = jax.random.exponential(exponential_key, shape)
    first = jnp.sin(alpha * angle) / jnp.cos(angle) ** (1 / alpha)
    return first * (jnp.cos((1 - alpha) * angle) / exponential) ** ((1 - alpha) / alpha)


def quadratic():
    """Return f(x) = sum_i a_i x_i^2 / 2 with a_i from 0.1 to 1, its start and its smallest value."""
    curvature = jnp.linspace(0.1, 1.0, 50)
    return (lambda x: 0.5 * jnp.sum(curvature * x**2)), jnp.full(50, 3.0), 0.0


def logistic_regression():
    """Return the mean logistic loss of 500 points in 20 dimensions, its start and its smallest value."""
    generator = np.random.default_rng(0)
    points = generator.normal(size=(500, 20))
    signs = np.sign(points @ generator.normal(size=20) + 2 * generator.normal(size=500))
    signed = points * signs[:, None]

    def loss(x):
        return jnp.mean(jax.nn.softplus(-jnp.asarray(signed, jnp.float32) @ x)) + 0.005 * jnp.sum(x**2)

    best = np.zeros(20)
    for _ in range(30):  # Newton's method in float64
        wrong = 1 / (1 + np.exp(signed @ best))
        gradient = -signed.T @ wrong / 500 + 0.01 * best
        hessian = (signed * (wrong * (1 - wrong))[:, None]).T @ signed / 500 + 0.01 * np.eye(20)
        best -= np.linalg.solve(hessian, gradient)
    smallest = np.mean(np.log1p(np.exp(-signed @ best))) + 0.005 * np.sum(best**2)
    return loss, jnp.zeros(20), float(smallest)


PROBLEMS = {"quadratic": (quadratic, 1.0), "logistic regression": (logistic_regression, 0.3)}


@functools.cache
def runner(problem, rule, steps):
    """Return a compiled function of (alpha, seeds, numbers, rates): gaps of shape (seeds, numbers, rates, POINTS).

    A gap is the loss above its smallest value. The rate falls linearly to 0. All rules see the same noise.
    """
    make, scale = PROBLEMS[problem]
    loss, start, smallest = make()
    transform = RULES[rule][0]
    points = min(POINTS, steps)

    def train(alpha, seed, number, rate):
        clip = transform(number)

        def step(carry, index):
            x, state = carry
            noise = stable_noise(jax.random.fold_in(jax.random.key(seed), index), alpha, x.shape)
            updates, state = clip.update(jax.grad(loss)(x) + scale * noise, state, x)
            return (x - rate * (1 - index / steps) * updates, state), None

        def chunk(carry, first):
            carry, _ = jax.lax.scan(step, carry, first + jnp.arange(steps // points))
            return carry, loss(carry[0]) - smallest

        return jax.lax.scan(chunk, (start, clip.init(start)), jnp.arange(points) * (steps // points))[1]

    over_rates = jax.vmap(train, (None, None, None, 0))
    over_numbers = jax.vmap(over_rates, (None, None, 0, None))
    return jax.jit(jax.vmap(over_numbers, (None, 0, None, None)))


def measure(problem, alpha, rule, options):
    """Tune the number and the rate on seeds of their own, and yield the row, and the curves, with the best.

    What is tuned has the smallest median over these seeds. With infinite variance the mean is the largest of a few
    seeds, so that the median is kind to SGD; for SGD alone the mean is tried too.
    """
    run = functools.partial(runner(problem, rule, options.steps), alpha)
    numbers, rates = jnp.array(RULES[rule][1]), jnp.array(RATES)
    tuning = finite(run(1000 + jnp.arange(TUNING_SEEDS), numbers, rates))[..., -1]
    for criterion, average in CRITERIA.items():
        if criterion == "mean" and rule != "none":
            continue
        scores = average(tuning, axis=0)
        number, rate = np.unravel_index(np.argmin(scores), scores.shape)
        gaps = finite(run(jnp.arange(options.seeds), numbers[number][None], rates[rate][None]))[:, 0, 0]
        mean, half = mean_and_interval(gaps[:, -1])
        row = {
            "alpha": f"{alpha:g}",
            "clipping": rule,
            "tuned by": criterion,
            "number": "-" if rule == "none" else f"{RULES[rule][1][number]:g}",
            "learning rate": f"{RATES[rate]:.2g}" + (" (end of the grid)" if rate in {0, len(RATES) - 1} else ""),
            "mean": f"{mean:.3g} ± {half:.2g}",
            "median": float(np.median(gaps[:, -1])),
            "worst": float(np.max(gaps[:, -1])),
        }
        yield row, gaps


def finite(gaps):
    """Return the gaps, where one that is not finite counts as infinite."""
    gaps = np.asarray(gaps, np.float64)
    return np.where(np.isfinite(gaps), gaps, np.inf)


def draw(curves):
    figure, panels = plt.subplots(len(PROBLEMS), len(ALPHAS), figsize=(12, 7), layout="constrained")
    for panel, (problem, alpha) in zip(np.ravel(panels), product(PROBLEMS, ALPHAS), strict=True):
        for rule in RULES:
            if (problem, alpha, rule) not in curves:
                continue
            gaps = curves[problem, alpha, rule]
            steps = np.linspace(0, 1, gaps.shape[1] + 1)[1:]
            (line,) = panel.plot(steps, np.median(gaps, axis=0), label=rule)
            panel.fill_between(steps, gaps.min(axis=0), gaps.max(axis=0), color=line.get_color(), alpha=0.12)
        panel.set(yscale="log", title=f"{problem}, alpha {alpha:g}", xlabel="fraction of the steps", ylabel="gap")
    np.ravel(panels)[0].legend()
    figure.suptitle("Loss above its smallest value: median over the seeds, and all seeds (shaded)")
    return figure


def main(argv=None):
    arguments = parser(__doc__.splitlines()[0], steps=2000, seeds=20)
    arguments.add_argument("--first", type=int, default=len(RULES), help="how many of the rules to try")
    options = arguments.parse_args(argv)
    rules = list(RULES)[: options.first]
    curves, text = {}, []
    for problem in PROBLEMS:
        rows = []
        for alpha, rule in product(ALPHAS, rules):
            for row, gaps in measure(problem, alpha, rule, options):
                curves.setdefault((problem, alpha, rule), gaps)
                rows.append(row)
                print(problem, row, flush=True)
        text.append(f"**{problem.capitalize()}**: the loss above its smallest value after {options.steps} steps\n")
        text.append(table(rows) + "\n")
    text.append(
        f"Means over {options.seeds} seeds with 95 % intervals. The number is the threshold of the clip, and the "
        f"percentile of autoclip. It and the learning rate had the smallest median, or mean, over {TUNING_SEEDS} other "
        "seeds."
    )
    save("heavy_tails", "\n".join(text), draw(curves), options.out)


if __name__ == "__main__":
    main()
