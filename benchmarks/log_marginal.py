"""What log_marginal costs over a hand-written loop: L_5000 of a mean-field MLP VAE on 200 MNIST images.

The loop is what one writes once the answer is all that matters: chunks over particles, one log-sum-exp at the end, no
errors, no k̂, no memory bound. Both use the same decoder and the same number of draws.

    PYROVAE_DATA=... python -m benchmarks.log_marginal
"""

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv
from benchmarks._timing import interleave, ratio, write


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=5000)
    parser.add_argument("--num-data", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = pv.datasets.load("mnist", binarize="static").test[: args.num_data].to(args.device)
    vae = pv.VAE((784,), 40, hidden=(300, 300)).to(args.device)

    def ours() -> pv.MarginalResult:
        return pv.log_marginal(vae, x, num_samples=args.num_samples, progress=False)

    result = ours()
    difference = result.pointwise["log_px"].mean() - by_hand(vae, x, args.num_samples, 2500).mean().item()
    noise = math.sqrt(2) * result.summary()["mc_se"]
    variants: dict[str, Callable[[], object]] = {"log_marginal": ours}
    for chunk in (1000, 2500, 5000):
        variants[f"by hand, chunks of {chunk}"] = partial(by_hand, vae, x, args.num_samples, chunk)
    seconds = interleave(variants, repeats=args.repeats)
    ratios = {name: ratio(seconds, "log_marginal", name) for name in variants if name != "log_marginal"}
    for name, times in seconds.items():
        print(f"{name:26} {sorted(times)[len(times) // 2]:7.2f} s (median of {args.repeats})")
    for name, r in ratios.items():
        print(f"log_marginal / {name}: {r['ratio']:.2f} (rounds {r['min']:.2f} to {r['max']:.2f})")
    worst = max(r["ratio"] for r in ratios.values())
    print(
        f"against the fastest loop: {worst:.2f}; difference of the two estimates: {difference:.4f} ± {noise:.4f} nats"
    )
    print(write("log_marginal", {"seconds": seconds, "ratios": ratios, "against_fastest": worst, "args": vars(args)}))


if __name__ == "__main__":
    main()
