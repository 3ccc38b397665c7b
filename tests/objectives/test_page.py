"""The code of docs/objectives.md runs as it stands there, and does what the text beside it says."""

import re
from pathlib import Path

import pyro
import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


@pytest.fixture(scope="module")
def after():
    """The names that are there after each block of the page."""
    scope, after = {}, []
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), scope)
        after.append(dict(scope))
    return after


def test_the_term_is_in_the_history_and_no_part_of_the_likelihood(after):
    assert {"size", "loss", "elbo"} <= set(after[0]["run"].history[-1])
    pair, plain = (after[0][name](8, 2, guide="amortized") for name in ("SmallCodes", "PPCA"))
    plain.load_state_dict(pair.state_dict())
    x, ppvae = after[0]["x"], after[0]["ppvae"]
    both = [ppvae.log_marginal(of, x, num_samples=5).values for of in (pair, plain)]
    assert torch.equal(*both)


def test_the_objective_is_what_its_formula_says(after):
    assert after[1]["run"].history[-1]["error"] > 0
    pair, x = after[1]["PPCA"](8, 2, guide="amortized"), after[1]["x"]
    seeded = pyro.poutine.seed(pair.guide, rng_seed=0)
    with torch.no_grad():
        guide_trace = pyro.poutine.trace(seeded).get_trace(x)
        model_trace = pyro.poutine.trace(pyro.poutine.replay(pair.model, guide_trace)).get_trace(x)
        log_joint, log_q = float(model_trace.log_prob_sum()), float(guide_trace.log_prob_sum())
        reconstruction = float(model_trace.nodes["x"]["log_prob_sum"])
    loss = after[1]["Tempered"](3.0).loss(pair.model, seeded, x)
    assert loss == pytest.approx(log_q - log_joint - 2 * reconstruction, rel=1e-5)


def test_the_options_reach_their_parameters(after):
    pair, svi = after[2]["PPCA"](8, 2, guide="amortized"), after[2]["ppvae"].SVI
    svi = svi(pair.model, pair.guide, after[2]["optim"], pyro.infer.Trace_ELBO(), param_groups=after[2]["options"])
    svi.step(after[2]["x"])
    groups = {id(p): group for group in svi.optimizer.param_groups for p in group["params"]}
    for name, parameter in pair.named_parameters():
        assert groups[id(parameter)]["lr"] == (1e-4 if name.startswith("q_z_given_x") else 1e-3)
        assert groups[id(parameter)]["weight_decay"] == (0.0 if name.endswith(".bias") else 1e-2)
