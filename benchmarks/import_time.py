"""What `import ppvae` costs over `import pyro`: whole processes, taking turns.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys
import time

ROUNDS = 9


def seconds(module: str) -> float:
    """Wall time of a Python process that imports `module`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Prints the medians and their ratio."""
    turns = [(seconds("pyro"), seconds("ppvae")) for _ in range(ROUNDS + 1)][1:]
    pyro, ppvae = (statistics.median(times) for times in zip(*turns, strict=True))
    ratio = statistics.median(b / a for a, b in turns)
    print(f"import pyro {pyro:.2f} s, import ppvae {ppvae:.2f} s: ratio {ratio:.2f} (median of {ROUNDS})")


if __name__ == "__main__":
    main()
