"""Several gloo processes for tests: started once, given one function after another, each with a time limit.

Processes are forked from one that has imported the package, which takes seconds, and has done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

LIMIT = 60
"""Seconds after which a process that has no answer fails, and a function that is not done."""


FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["ppvae.infer", "ppvae.evaluate", "ppvae.models", "tests.group"])


class Group:
    """As many processes as a function asks for; those that have ended are started anew."""

    def __init__(self):
        self._workers = {}
        self._files = tempfile.TemporaryDirectory()
        self._calls = 0

    def __call__(self, world, function, *args, lost=()):
        """What the function gives in each process, an error as such; nothing is awaited of those that are `lost`."""
        self._calls += 1
        store = str(Path(self._files.name) / str(self._calls))
        pipes = [self._pipe(rank) for rank in range(world)]
        for rank, pipe in enumerate(pipes):
            pipe.send((rank, world, store, function, args))
        found = []
        for rank, pipe in enumerate(pipes):
            if rank in lost:
                self._workers[rank][0].join(LIMIT)
                found.append(None)
                continue
            assert pipe.poll(LIMIT + 30), f"process {rank} of {world} hangs in {function.__name__}"
            found.append(pipe.recv())
        return found

    def close(self):
        for process, _ in self._workers.values():
            process.kill()
            process.join()
        self._files.cleanup()

    def _pipe(self, rank):
        process, pipe = self._workers.get(rank, (None, None))
        if process is None or not process.is_alive():
            pipe, theirs = FORKED.Pipe()
            process = FORKED.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._workers[rank] = (process, pipe)
        return pipe


def values(found):
    """What all processes gave, none an error."""
    for answer in found:
        if isinstance(answer, Exception):
            raise answer
    return found


def _serve(pipe):
    """Runs what comes."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch._inductor.compile = lambda module, inputs, options: module  # as the fixture `graphs_as_traced` has it
    import ppvae.compile.compiled

    ppvae.compile.compiled.build_headers = lambda: None
    warnings.simplefilter("ignore")  # the first alone shows some, and one that is an error there is not one elsewhere
    while True:
        rank, world, store, function, args = pipe.recv()
        limit = timedelta(seconds=LIMIT)
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=limit)
        torch.manual_seed(rank)  # what a user's processes have in common is no seed
        try:
            answer = function(*args)
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))
            answer = error
        pipe.send(answer)
        dist.destroy_process_group()
