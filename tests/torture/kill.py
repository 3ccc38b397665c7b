"""`python -m tests.torture.kill KIND FOLDER SEED`: trains, killed again and again, until it is done; prints the kills.

Every process is a fork of this one and kills itself: at a step, or in the middle of a write.
"""

import os
import random
import signal
import sys
from pathlib import Path

import torch

from ppvae import storage
from ppvae.infer.trainer import Trainer
from tests.torture.runs import train

torch.set_num_threads(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: object, name: str, number: int, *, after: bool) -> None:
    """Dies in the n-th call of a function, before or after what it does."""
    function, calls = getattr(owner, name), []

    def counted(*args: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == number and not after:
            die()
        found = function(*args, **options)
        if len(calls) == number:
            die()
        return found

    setattr(owner, name, counted)


def half_a_file(number: int) -> None:
    """Dies in the n-th tensor file, half of it written."""
    save_file, calls = storage.save_file, []

    def broken(tensors: object, path: Path, metadata: object) -> None:
        calls.append(1)
        save_file(tensors, path, metadata)
        if len(calls) == number:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2])
            die()

    storage.save_file = broken


def main() -> None:
    kind, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    chance, kills = random.Random(seed), 0
    torch._inductor.compile = lambda module, inputs, options: module  # graphs as they were traced
    while True:
        way, number = chance.choice(["step", "replace", "fsync", "touch", "half"]), chance.randint(1, 9)
        if (pid := os.fork()) == 0:
            if way == "step":
                at_call(Trainer, "_step", number, after=chance.random() < 0.5)
            elif way == "half":
                half_a_file(number)
            else:
                at_call(Path if way == "touch" else storage.os, way, number, after=chance.random() < 0.5)
            train(kind, folder, resume=True)
            os._exit(0)
        chance.random()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status == 0:
            break
        if status != -signal.SIGKILL:
            sys.exit(f"died otherwise, {status}")
        kills += 1
    print(kills)


if __name__ == "__main__":
    main()
