"""The referee's known answers for series, by another way: a Kalman filter, one step after another."""

import random

import pytest
import torch
from torch import Tensor

from tests.referee.gaussian_cases import series


def kalman(pair, args) -> Tensor:
    """Log p(x_1, ..., x_T) of each datum, of which the first steps may be all that there are."""
    seen, keep = pair.arguments(args)
    story, offset = pair.story, pair.offset.detach().double()
    steps, total = len(story.nodes) // 2, []
    for i in range(len(args[0])):
        mean, covariance, log_p = None, None, torch.zeros((), dtype=torch.float64)
        for t in range(steps):
            z, x = story.parts[f"z{t}"], story.parts[f"x{t}"]
            if keep is not None and not keep[i, z].all():
                break
            q, r = torch.diag(story.scale[z] ** 2), torch.diag(story.scale[x] ** 2)
            if t == 0:
                mean, covariance = offset[z], q
            else:
                a = story.weight[z, story.parts[f"z{t - 1}"]]
                mean, covariance = offset[z] + a @ mean, a @ covariance @ a.T + q
            c = story.weight[x, z]
            predicted, spread = offset[x] + c @ mean, c @ covariance @ c.T + r
            value = seen[f"x{t}"][i].double()
            log_p = log_p + torch.distributions.MultivariateNormal(predicted, spread).log_prob(value)
            gain = covariance @ c.T @ torch.linalg.inv(spread)
            mean, covariance = mean + gain @ (value - predicted), covariance - gain @ c @ covariance
        total.append(log_p)
    return torch.stack(total)


@pytest.mark.parametrize("seed", range(30))
def test_series_have_the_log_p_of_a_kalman_filter(seed):
    torch.manual_seed(seed)
    case = series(random.Random(seed))
    keep = case.pair.arguments(case.data)[1]
    if keep is not None and not all(
        len({bool(of) for node in ("z", "x") for of in keep[i, case.pair.story.parts[f"{node}{t}"]]}) == 1
        for i in range(len(keep))
        for t in range(len(case.pair.story.nodes) // 2)
    ):
        pytest.skip("a mask leaves out parts of a step, and no filter is that simple")
    torch.testing.assert_close(kalman(case.pair, case.data), case.log_prob, atol=1e-8, rtol=1e-8)
