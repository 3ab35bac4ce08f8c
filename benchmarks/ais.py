"""What annealing costs: decoder gradients a second in ais against a bare loop over the same decoder.

The bare loop takes the gradient of log p(x, z) for as many chains, written by hand, and does nothing with it: no
leapfrog, no acceptance, no weights.

    PYROVAE_DATA=... python -m benchmarks.ais
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv
from benchmarks._timing import interleave, mnist_and_vae, ratio, write

CHUNKS = (250, 500, 800, 1600)


def bare(vae: pv.VAE, x: Tensor, num_gradients: int, chunk: int) -> None:
    """``num_gradients`` gradients of log p(x, z) with respect to z, a chunk of chains at a time."""
    z, data = torch.randn(chunk, vae.latent_dim, device=x.device), x[torch.arange(chunk) % len(x)]
    for parameter in vae.parameters():
        parameter.requires_grad_(False)
    for _ in range(num_gradients // chunk):
        z = z.detach().requires_grad_()
        log_x = -binary_cross_entropy_with_logits(vae.decoder(z), data, reduction="none").sum()
        torch.autograd.grad(log_x - 0.5 * z.square().sum(), z)
    for parameter in vae.parameters():
        parameter.requires_grad_(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-temperatures", type=int, default=100)
    parser.add_argument("--num-data", type=int, default=100)
    args, x, vae = mnist_and_vae(parser)

    def ours() -> pv.AISResult:
        return pv.ais(vae, x, num_temperatures=args.num_temperatures, progress=False)

    count = ours().num_gradients
    variants: dict[str, Callable[[], object]] = {"ais": ours}
    for chunk in CHUNKS:
        variants[f"bare loop, chunks of {chunk}"] = partial(bare, vae, x, count, chunk)
    seconds = interleave(variants, repeats=args.repeats)
    ratios = {name: ratio(seconds, "ais", name) for name in variants if name != "ais"}
    for name, times in seconds.items():
        print(f"{name:28} {count / statistics.median(times):10.0f} gradients a second")
    for name, r in ratios.items():
        print(f"cost of ais / {name}: {r['ratio']:.3f} (rounds {r['min']:.3f} to {r['max']:.3f})")
    worst = max(r["ratio"] for r in ratios.values())
    print(f"against the fastest loop: {worst:.3f}")
    facts = {"num_gradients": count, "seconds": seconds, "ratios": ratios, "against_fastest": worst, "args": vars(args)}
    print(write("ais", facts))


if __name__ == "__main__":
    main()
