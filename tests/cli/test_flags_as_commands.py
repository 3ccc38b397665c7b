"""The command that a run is said to have been made with makes the same run."""

from importlib import import_module

import pytest
import tyro

from ppvae.cli.flags import command_of
from ppvae.cli.main import models

ALSO = {
    "vae": ["--hidden-dims", "20", "10", "--beta", "0.5", "--cuda", "--norm", "batch"],
    "beta_vae": ["--objective", "free-bits", "--free-bits", "0.25"],
    "table": ["--leave-out", "alcohol", "ash", "--families", "hue=log-normal"],
}
"""Flags of each kind: several values, a switch, a choice."""


CASES = [(name, ALSO.get(name, [])) for name in models()]
CASES += [("ssvae", ["--variant", variant, *smoke]) for variant in ("m1", "m1m2") for smoke in ([], ["--smoke"])]


@pytest.mark.parametrize(("name", "flags"), CASES, ids=lambda case: case if isinstance(case, str) else " ".join(case))
def test_the_command_of_resolved_flags_resolves_to_the_same(name, flags):
    args = import_module(f"ppvae.examples.{name}").EXPERIMENT.args
    made = tyro.cli(args, args=[*flags, "--seed", "3", "--lr", "1e-4"]).resolved()
    assert tyro.cli(args, args=command_of(made)).resolved() == made
