"""What an epoch of ``fit`` with validation costs, code already made, against loops by hand.

Dynamic MNIST, the mean-field MLP 784-300-300-40, batches of 100, and after every epoch the loss of the held-out images
in batches of 1000, from the same seed each time. The loops by hand take the closed-form loss, once by torch.compile,
once as it is, look at every loss, and do nothing else. Epochs after the first are counted.

    PYROVAE_DATA=... python -m benchmarks.epoch
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

import pyrovae as pv
from benchmarks._timing import arguments, ratio, write
from benchmarks.training_step import Setting, adam, finite, mean_field_loss
from pyrovae.training.engines import Name

VALIDATION, EPOCHS = 1000, 3
ENGINES: tuple[Name, ...] = ("inductor", "graph")


def by_hand(setting: Setting, held_out: Tensor, *, compiled: bool) -> Iterator[float]:
    """Seconds of one epoch after another."""
    vae = setting.vae()
    optimizer, make = adam(vae), torch.compile if compiled else lambda function: function
    loss = make(lambda rows: mean_field_loss(vae, setting.batch(rows)))
    held_out_loss = make(lambda x: mean_field_loss(vae, x))
    while True:
        start = time.perf_counter()
        for rows in setting.rows():
            optimizer.zero_grad(set_to_none=True)
            value = loss(rows)
            (value / len(rows)).backward()
            finite(value.detach())
            optimizer.step()
        state = torch.get_rng_state()
        torch.manual_seed(0)
        with torch.no_grad():
            total = sum(float(held_out_loss(x)) for x in held_out.split(VALIDATION))
        torch.set_rng_state(state)
        finite(total)
        yield time.perf_counter() - start


def fitted(setting: Setting, held_out: Tensor, engine: Name) -> list[float]:
    run = pv.fit(
        setting.vae(),
        setting.x,
        validation=held_out,
        batch_transform=setting.transform,
        epochs=EPOCHS,
        compile=engine,
        device="cpu",
        progress=False,
    )
    return run.history["seconds"].tolist()[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-data", type=int, default=20_000)
    args = arguments(parser, repeats=3)
    data = pv.datasets.load("mnist", binarize="dynamic")
    setting = Setting(data.train[: args.num_data], data.batch_transform, 100, "mean_field", "mlp")
    hands = {
        name: by_hand(setting, data.val, compiled=name == "by hand compiled")
        for name in ("by hand compiled", "by hand eager")
    }
    for hand in hands.values():
        next(hand)  # which compiles
    seconds: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        for engine in ENGINES:
            seconds.setdefault(f"fit {engine}", []).extend(fitted(setting, data.val, engine))
        for name, hand in hands.items():
            seconds.setdefault(name, []).extend(islice(hand, EPOCHS - 1))
    ratios = {}
    for ours, theirs, bound in (("fit inductor", "by hand compiled", 1.05), ("fit graph", "by hand eager", 1.15)):
        ratios[f"{ours} / {theirs}"] = {**ratio(seconds, ours, theirs), "bound": bound}
    for name, times in seconds.items():
        print(f"{name:20} {statistics.median(times):.3f} s an epoch ({min(times):.3f} to {max(times):.3f})")
    for name, r in ratios.items():
        print(f"{name:35} {r['ratio']:.3f} ({r['min']:.3f} to {r['max']:.3f}), at most {r['bound']}")
    print(write("epoch", {"seconds": seconds, "ratios": ratios, "args": vars(args)}))


if __name__ == "__main__":
    main()
