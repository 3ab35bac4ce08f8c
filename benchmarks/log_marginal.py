"""What L_K costs: log_marginal against a hand-written loop, the decoder's products alone, and pythae's get_nll.

All with one mean-field MLP VAE, 784-300-300-40, on MNIST images. The hand-written loop is what one writes once the
answer is all that matters: chunks over draws, one log-sum-exp at the end, no errors, no k̂. The matrix products are
those of the decoder: no activation, no likelihood, no draw. Ours is timed as machine code (compiled in the round that
does not count; the first run's time is printed) and without. pythae runs as shipped, with its default of 100 draws at a
time and with 1000; its loop over images is timed on fewer images and scaled up.

    PYROVAE_DATA=... python -m benchmarks.log_marginal
    pip install --no-deps pythae pydantic pydantic_core annotated-types typing-inspection imageio    # for its rows
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv
from benchmarks._timing import interleave, mnist_and_vae, ratio, write

CHUNKS = (500, 1000, 5000)
OURS = ("log_marginal, inductor", "log_marginal, off")


@torch.no_grad()
def by_hand(vae: pv.VAE, x: Tensor, num_samples: int, chunk: int) -> Tensor:
    """log p̂(x), datum by datum."""
    out = []
    for datum in x:
        q = vae.q(datum)
        loc, scale = q.base_dist.loc, q.base_dist.scale
        log_w = []
        for start in range(0, num_samples, chunk):
            n = min(chunk, num_samples - start)
            eps = torch.randn(n, len(loc), device=x.device)
            z = loc + scale * eps
            logits = vae.decoder(z)
            log_x = -binary_cross_entropy_with_logits(logits, datum.expand_as(logits), reduction="none").sum(-1)
            log_w.append(log_x - 0.5 * z.square().sum(-1) + 0.5 * eps.square().sum(-1) + scale.log().sum())
        out.append(torch.cat(log_w).logsumexp(0) - math.log(num_samples))
    return torch.stack(out)


@torch.no_grad()
def products(vae: pv.VAE, num_data: int, num_samples: int, chunk: int) -> None:
    """The decoder's matrix products for as many draws."""
    weights = [m.weight.T for m in vae.decoder.modules() if isinstance(m, nn.Linear)]
    z = torch.randn(chunk, weights[0].shape[0], device=weights[0].device)
    for _ in range(num_data * num_samples // chunk):
        h = z
        for w in weights:
            h = h @ w


def pythae_nll(vae: pv.VAE) -> Callable[[Tensor, int, int], float]:
    """``get_nll`` of pythae's VAE with the same encoder and decoder."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, x: Tensor) -> ModelOutput:
            q = self.vae.q(x).base_dist
            return ModelOutput(embedding=q.loc, log_covariance=2.0 * q.scale.log())

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.vae.decoder(z)))

    config = VAEConfig(input_dim=(784,), latent_dim=vae.latent_dim, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder()).to(vae.placement.device).eval()

    def run(x: Tensor, num_samples: int, batch_size: int) -> float:
        with torch.no_grad():
            return float(model.get_nll(x, n_samples=num_samples, batch_size=batch_size))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--num-data", type=int, default=500)
    parser.add_argument("--pythae-data", type=int, default=50, help="images that get_nll is timed on")
    args, x, vae = mnist_and_vae(parser)
    few = x[: args.pythae_data]

    def ours(compile: Literal["off", "inductor"]) -> pv.MarginalResult:
        return pv.log_marginal(vae, x, num_samples=args.num_samples, compile=compile, progress=False)

    start = time.perf_counter()
    result = ours("inductor")
    first = time.perf_counter() - start
    print(f"first compiled run: {first:.2f} s")
    difference = result.pointwise["log_px"].mean() - by_hand(vae, x, args.num_samples, 2500).mean().item()
    noise = math.sqrt(2) * result.summary()["mc_se"]
    print(f"difference from the hand-written loop: {difference:.4f} ± {noise:.4f} nats")

    variants: dict[str, Callable[[], object]] = {OURS[0]: partial(ours, "inductor"), OURS[1]: partial(ours, "off")}
    for chunk in CHUNKS:
        variants[f"by hand, chunks of {chunk}"] = partial(by_hand, vae, x, args.num_samples, chunk)
        variants[f"matrix products, chunks of {chunk}"] = partial(products, vae, args.num_data, args.num_samples, chunk)
    scale = {}
    try:
        nll = pythae_nll(vae)
    except ImportError as error:
        print(f"pythae is not installed ({error}): its rows are left out")
    else:
        nats = nll(few, args.num_samples, 1000)
        print(f"pythae on {len(few)} images: {nats:.4f}; ours {result.pointwise['log_px'][: len(few)].mean():.4f}")
        for size in (100, 1000):
            name = f"pythae get_nll, batch_size={size}"
            variants[name] = partial(nll, few, args.num_samples, size)
            scale[name] = args.num_data / len(few)
    seconds = interleave(variants, repeats=args.repeats)
    for name, factor in scale.items():
        seconds[name] = [factor * t for t in seconds[name]]
    ratios = {
        name: {theirs: ratio(seconds, name, theirs) for theirs in variants if theirs not in OURS} for name in OURS
    }
    for name, times in seconds.items():
        scaled = " (scaled)" if name in scale else ""
        print(f"{name:32} {statistics.median(times):7.2f} s (median of {args.repeats}){scaled}")
    for name in OURS:
        for theirs, r in ratios[name].items():
            print(f"{name} / {theirs}: {r['ratio']:.3f} (rounds {r['min']:.3f} to {r['max']:.3f})")
    fastest = {
        name: {
            kind: max(r["ratio"] for theirs, r in ratios[name].items() if theirs.startswith(kind))
            for kind in ("by hand", "matrix products", "pythae")
            if any(theirs.startswith(kind) for theirs in ratios[name])
        }
        for name in OURS
    }
    for name, kinds in fastest.items():
        print(f"{name} against the fastest of each:", {kind: round(value, 3) for kind, value in kinds.items()})
    facts = {
        "first_compiled_seconds": first,
        "seconds": seconds,
        "ratios": ratios,
        "against_fastest": fastest,
        "scaled": scale,
        "args": vars(args),
    }
    print(write("log_marginal", facts))


if __name__ == "__main__":
    main()
