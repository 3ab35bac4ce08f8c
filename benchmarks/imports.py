"""How long ``import pyrovae`` takes against ``import pyro``, each in a process of its own.

python -m benchmarks.imports
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks._timing import arguments, interleave, ratio, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args = arguments(parser, repeats=7)

    def importing(name: str) -> Callable[[], Any]:
        return partial(subprocess.run, [sys.executable, "-c", f"import {name}"], check=True)

    seconds = interleave({name: importing(name) for name in ("pyro", "pyrovae")}, repeats=args.repeats)
    for name, times in seconds.items():
        print(f"import {name:8} {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    found = ratio(seconds, "pyrovae", "pyro")
    print(f"pyrovae / pyro: {found['ratio']:.2f} (rounds {found['min']:.2f} to {found['max']:.2f}), at most 1.4")
    print(write("imports", {"seconds": seconds, "ratio": found, "args": vars(args)}))


if __name__ == "__main__":
    main()
