"""What a training step costs: the engines of fit against Pyro, hand-written PyTorch, NumPyro and pythae.

A step gathers its batch of MNIST images from a tensor on the device, takes the gradient of the negative ELBO and
updates by Adam: torch's fused one, except for plain SVI.step, which is Pyro as documented, with its validation. On a
CPU every step looks at its loss, on CUDA every round does. For the mean-field MLP, 784-300-300-40, the loss by hand is
the closed form, NumPyro jits its SVI.update, pythae differentiates its own loss, and the matrix products of forward and
backward are timed alone. For other posteriors and the conv networks "by hand" is a loop over the library's modules
without Pyro's handlers. Conv networks take a tenth of the steps, larger batches as many fewer. What is not installed
or fails is left out, and said to be.

    PYROVAE_DATA=... python -m benchmarks.training_step --posteriors mean_field iaf sylvester --batch-size 100 1000
    pip install numpyro; pip install --no-deps pythae pydantic pydantic_core annotated-types typing-inspection imageio
"""

import argparse
import math
import os
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import cycle, islice, product
from typing import Any

import pyro
import torch
from pyro.infer import ELBO, SVI, JitTrace_ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, softplus

import pyrovae as pv
from benchmarks._timing import arguments, interleave, ratio, write
from pyrovae.model._modes import local_parameters
from pyrovae.training.batches import as_batches
from pyrovae.training.engines import Task, build

LATENT_DIM, HIDDEN, LEARNING_RATE = 40, (300, 300), 1e-3
Steps = Iterator[Any]  # endless: every next() takes a step and gives a loss
Loss = Callable[[pv.VAE, Tensor], Tensor]  # summed over the batch
Context = Callable[[], AbstractContextManager[None]]


@dataclass
class Setting:
    """What the variants of one comparison share."""

    x: Tensor
    transform: Callable[[Tensor], Tensor] | None
    batch_size: int
    posterior: str
    network: str
    prior: str = "standard_normal"

    @property
    def on_cpu(self) -> bool:
        return self.x.device.type == "cpu"

    def vae(self) -> pv.VAE:
        torch.manual_seed(0)
        shape = self.x.shape[1:]
        parts: Any = {"posterior": self.posterior, "prior": self.prior, "network": self.network}
        vae = pv.VAE(shape, LATENT_DIM, hidden=HIDDEN, **parts)
        return vae.to(self.x.device)

    def rows(self) -> list[Tensor]:
        """The batches of an epoch."""
        split = torch.randperm(len(self.x), device=self.x.device).split(self.batch_size)
        return [rows for rows in split if len(rows) == self.batch_size]

    def batch(self, rows: Tensor) -> Tensor:
        x = self.x[rows]
        return x if self.transform is None else self.transform(x)


# -- Pyro ----------------------------------------------------------------------------------------------------


def engine(setting: Setting, name: str) -> Steps:
    """Epoch after epoch, as ``fit`` drives it."""
    vae, n = setting.vae(), setting.batch_size
    batches = as_batches(vae, setting.x, batch_size=n, transform=setting.transform)
    steps = build(name, Task(vae, pv.ELBO(), adam(vae)), batches, epochs=0)
    while True:
        steps.begin_epoch()
        for batch in batches:
            steps(batch)
            yield steps.work.total


@contextmanager
def as_fit() -> Iterator[None]:
    with local_parameters(), pyro.distributions.validation_enabled(False):
        yield


def svi(setting: Setting, elbo: ELBO, **options: Any) -> Steps:
    vae = setting.vae()
    step = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LEARNING_RATE, **options}), elbo).step
    for rows in cycle(setting.rows()):
        yield finite(step(setting.batch(rows)))


def own_store(*, validate: bool) -> Context:
    """A param store that no other variant sees."""
    state: Any = {"params": {}, "constraints": {}}

    @contextmanager
    def context() -> Iterator[None]:
        with pyro.get_param_store().scope(state), pyro.validation_enabled(validate):
            yield

    return context


# -- PyTorch -------------------------------------------------------------------------------------------------


def adam(module: nn.Module, **options: Any) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=LEARNING_RATE, fused=True, **options)


def finite(loss: Any) -> Any:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {float(loss)}")
    return loss


def affine(vae: pv.VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Location and raw scale of a mean-field normal."""
    head = vae.posterior.head
    loc, raw = linear(vae.encoder(x), head.weight, head.bias).chunk(2, dim=-1)
    return loc, raw


def mean_field_loss(vae: pv.VAE, x: Tensor) -> Tensor:
    """The negative ELBO as one writes it for a mean-field normal and nothing else."""
    loc, raw = affine(vae, x)
    scale = softplus(raw)
    logits = vae.decoder(loc + scale * torch.randn_like(loc))
    kl = 0.5 * (loc.square() + scale.square() - 1.0 - 2.0 * scale.log()).sum()
    return binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl


def modules_loss(vae: pv.VAE, x: Tensor) -> Tensor:
    """The negative ELBO of any posterior."""
    q = vae.q(x)
    z = q.rsample()
    return (q.log_prob(z) - vae.prior(vae.q).log_prob(z) - vae.p(z).log_prob(x)).sum()


def updates(setting: Setting, module: nn.Module, loss_at: Callable[[Tensor], Tensor]) -> Steps:
    """The loop one writes."""
    optimizer = adam(module)
    for rows in cycle(setting.rows()):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_at(rows)
        (loss / len(rows)).backward()
        loss = loss.detach()
        if setting.on_cpu:
            finite(loss)
        optimizer.step()
        yield loss


def by_hand(setting: Setting, loss: Loss, *, compiled: bool = False) -> Steps:
    vae = setting.vae()

    def loss_at(rows: Tensor) -> Tensor:
        return loss(vae, setting.batch(rows))

    return updates(setting, vae, torch.compile(loss_at) if compiled else loss_at)


def by_hand_captured(setting: Setting, loss: Loss) -> Steps:
    """The compiled step in a CUDA graph."""
    step, total = captured_step(setting, setting.vae(), loss)
    for rows in cycle(setting.rows()):
        step(rows)
        yield total


def captured_step(setting: Setting, vae: pv.VAE, loss: Loss) -> tuple[Callable[[Tensor], None], Tensor]:
    """The compiled step on rows of the data as one CUDA graph, and the sum of the losses of all steps."""
    optimizer = adam(vae, capturable=True)
    loss_at = torch.compile(lambda rows: loss(vae, setting.batch(rows)))
    total = torch.zeros((), dtype=torch.float64, device=setting.x.device)

    def step(rows: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        value = loss_at(rows)
        (value / len(rows)).backward()
        optimizer.step()
        total.add_(value.detach())

    return recorded(step, setting.rows()[0]), total


def recorded(function: Callable[[Tensor], None], first: Tensor) -> Callable[[Tensor], None]:
    """``function`` as one CUDA graph, which takes tensors of the shape of ``first``."""
    static, stream, graph = first.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(static)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        function(static)

    def replay(x: Tensor) -> None:
        static.copy_(x)
        graph.replay()

    return replay


def products(setting: Setting) -> Steps:
    """The matrix products of forward and backward."""
    vae = setting.vae()
    weights = [m.weight.detach() for part in (vae.encoder, vae.posterior, vae.decoder) for m in linears(part)]
    inputs = [torch.randn(setting.batch_size, w.shape[1], device=w.device) for w in weights]
    gradients = [torch.randn(setting.batch_size, w.shape[0], device=w.device) for w in weights]
    while True:
        for i, (w, a, g) in enumerate(zip(weights, inputs, gradients, strict=True)):
            a @ w.T
            g.T @ a
            if i:  # nobody needs the gradient of the data
                g @ w
        yield 0.0


def linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


# -- other libraries -----------------------------------------------------------------------------------------


def pythae(setting: Setting) -> Steps:
    """pythae's VAE with the same encoder and decoder."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, x: Tensor) -> ModelOutput:
            loc, log_variance = affine(self.vae, x)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.vae.decoder(z)))

    vae = setting.vae()
    config = VAEConfig(input_dim=tuple(setting.x.shape[1:]), latent_dim=LATENT_DIM, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder()).to(setting.x.device)
    return updates(setting, model, lambda rows: model({"data": setting.batch(rows)}).loss * len(rows))


def numpyro(setting: Setting) -> Steps:
    """NumPyro's jitted ``SVI.update``, from the same weights."""
    numpyro, jax, jnp = import_module("numpyro"), import_module("jax"), import_module("jax.numpy")
    dist, infer = import_module("numpyro.distributions"), import_module("numpyro.infer")
    if setting.on_cpu != (jax.default_backend() == "cpu"):
        raise RuntimeError(f"jax computes on {jax.default_backend()}, the others on {setting.x.device}")
    vae, transform = setting.vae(), setting.transform

    def layers(*parts: nn.Module) -> list[list[Any]]:
        affine = [m for part in parts for m in linears(part)]
        return [[jnp.asarray(p.detach().cpu().numpy()) for p in (m.weight.T, m.bias)] for m in affine]

    def mlp(weights: list[list[Any]], h: Any) -> Any:
        for i, (w, b) in enumerate(weights):
            h = (jax.nn.relu(h) if i else h) @ w + b
        return h

    def model(x: Any) -> None:
        decoder = numpyro.param("decoder", layers(vae.decoder))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT_DIM), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=mlp(decoder, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encoder = numpyro.param("encoder", layers(vae.encoder, vae.posterior))
        loc, raw = jnp.split(mlp(encoder, x), 2, axis=-1)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw)).to_event(1))

    inference = infer.SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), infer.Trace_ELBO())

    def update(state: Any, data: Any, rows: Any) -> Any:
        x = data[rows]
        if transform is not None:
            x = jax.random.bernoulli(jax.random.fold_in(state.rng_key, 1), x).astype(x.dtype)
        return inference.update(state, x)

    data = jnp.asarray(setting.x.cpu().numpy())
    batches = [jnp.asarray(rows.cpu().numpy()) for rows in setting.rows()]
    state = inference.init(jax.random.PRNGKey(0), data[batches[0]].round())
    jitted = jax.jit(update, donate_argnums=0)
    for rows in cycle(batches):
        state, loss = jitted(state, data, rows)
        yield finite(loss) if setting.on_cpu else loss


# -- the comparison ------------------------------------------------------------------------------------------


def variants(setting: Setting) -> dict[str, tuple[Callable[[], Steps], Context]]:
    """By name: what starts the steps, and what they are taken under."""
    engines = ["off", "graph", "inductor"] + ([] if setting.on_cpu else ["cudagraph"])
    mean_field_mlp = (setting.posterior, setting.network, setting.prior) == ("mean_field", "mlp", "standard_normal")
    loss = mean_field_loss if mean_field_mlp else modules_loss
    out: dict[str, tuple[Callable[[], Steps], Context]] = {
        **{f"pyrovae {name}": (partial(engine, setting, name), as_fit) for name in engines},
        "SVI.step": (partial(svi, setting, Trace_ELBO()), own_store(validate=True)),
        "SVI.step tuned": (partial(svi, setting, Trace_ELBO(), fused=True), own_store(validate=False)),
        "SVI.step jit": (
            partial(svi, setting, JitTrace_ELBO(ignore_jit_warnings=True), fused=True),
            own_store(validate=False),
        ),
        "by hand eager": (partial(by_hand, setting, loss), as_fit),
        "by hand compiled": (partial(by_hand, setting, loss, compiled=True), as_fit),
    }
    if not setting.on_cpu:
        out["by hand captured"] = partial(by_hand_captured, setting, loss), as_fit
    if mean_field_mlp:
        out["numpyro"] = partial(numpyro, setting), nullcontext
        out["pythae"] = partial(pythae, setting), nullcontext
        out["products"] = partial(products, setting), nullcontext
    return out


def rounds(setting: Setting, num_steps: int, only: list[str] | None) -> dict[str, Callable[[], None]]:
    """For every variant that can take a step, or ``only`` those named, what takes ``num_steps``."""
    out: dict[str, Callable[[], None]] = {}

    def take(steps: Steps, context: Context, num_steps: int) -> None:
        with context():
            *_, loss = islice(steps, num_steps)
            finite(loss)

    for name, (start, context) in variants(setting).items():
        if only is not None and name not in only:
            continue
        try:
            with context(), warnings.catch_warnings():
                warnings.filterwarnings("error", message="compile=")  # an engine that gives way to Pyro
                steps = start()
                take(steps, nullcontext, 5)  # CUDA graphs are captured at the fourth
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        else:
            out[name] = partial(take, steps, context, num_steps)
    return out


def compare(setting: Setting, num_steps: int, repeats: int, only: list[str] | None) -> dict[str, Any]:
    """Time one model, and print the ratios."""
    torch.compiler.reset()
    seconds = interleave(rounds(setting, num_steps, only), repeats=repeats)
    ms = {name: [1e3 * t / num_steps for t in times] for name, times in seconds.items()}
    print(f"\n{setting.posterior}, {setting.prior}, {setting.network}, batches of {setting.batch_size}")
    for name, times in ms.items():
        print(f"{name:20} {statistics.median(times):8.3f} ms a step ({min(times):.3f} to {max(times):.3f})")
    engines = [name for name in ms if name.startswith("pyrovae")]
    best = min(engines, key=lambda name: statistics.median(ms[name]))
    peers = [name for name in ms if name.startswith("by hand") or name in ("numpyro", "pythae")]
    pairs = [(name, peer) for name in engines for peer in peers]
    pairs += [(name, best) for name in ms if name.startswith("SVI.step")]
    pairs += [(best, "products")] if "products" in ms else []
    ratios = {f"{a} / {b}": ratio(ms, a, b) for a, b in pairs}
    for pair, r in ratios.items():
        print(f"{pair}: {r['ratio']:.3f} (rounds {r['min']:.3f} to {r['max']:.3f})")
    return {"milliseconds": ms, "best": best, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", nargs="+", type=int, default=[100])
    parser.add_argument("--posteriors", nargs="+", default=["mean_field"])
    parser.add_argument("--priors", nargs="+", default=["standard_normal"])
    parser.add_argument("--network", nargs="+", default=["mlp"], choices=["mlp", "conv"])
    parser.add_argument("--binarize", default="static", choices=["static", "dynamic"])
    parser.add_argument("--steps", type=int, default=50, help="of a round")
    parser.add_argument("--only", nargs="+", default=None, help="variants to time; default: all")
    parser.add_argument("--name", default="training_step", help="of the file of results")
    args = arguments(parser, repeats=9)
    if args.device == "cpu" and hasattr(os, "sched_setaffinity"):  # as many cores for jax too
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    results = {}
    for network in args.network:
        data = pv.datasets.load("mnist", binarize=args.binarize, flatten=network == "mlp")
        for posterior, prior, size in product(args.posteriors, args.priors, args.batch_size):
            num_steps = max(1, round(args.steps * (100 / size) * (1 if network == "mlp" else 0.1)))
            setting = Setting(data.train.to(args.device), data.batch_transform, size, posterior, network, prior)
            name = " ".join([posterior, *([prior] if len(args.priors) > 1 else []), network, str(size)])
            results[name] = compare(setting, num_steps, args.repeats, args.only)
    print(write(args.name, {"results": results, "args": vars(args)}))


if __name__ == "__main__":
    main()
