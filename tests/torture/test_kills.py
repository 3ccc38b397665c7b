"""A run that is killed at any moment, and in the middle of any write, resumes to the byte."""

import os
import subprocess
import sys

import pytest

from tests.torture.runs import KINDS, check_equal, train

WANTED = 18
"""Kills of each kind: with six kinds more than a hundred."""


def killed(kind, folder, seed):
    """Runs until it is done; how often it was killed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.kill", kind, str(folder), str(seed)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def torture(tmp_path, kind, wanted):
    train(kind, tmp_path / "whole")
    kills, seed = 0, 0
    while kills < wanted:
        folder = tmp_path / f"run{seed}"
        kills += killed(kind, folder, seed)
        seed += 1
        check_equal(tmp_path / "whole", folder)
        left = {path.name for path in folder.rglob(".*")}
        assert left == {".lock"}, left


@pytest.mark.torture
@pytest.mark.parametrize("kind", KINDS)
def test_every_kill_is_survived(tmp_path, kind):
    torture(tmp_path, kind, WANTED)


def test_some_kills_are_survived(tmp_path):
    torture(tmp_path, "validated", 1)
