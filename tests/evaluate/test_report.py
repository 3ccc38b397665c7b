import json
import math

import pytest
import torch

import ppvae
from ppvae.evaluate.report import report, table
from tests.reference import REFERENCES, ppca


@pytest.fixture(scope="module")
def figures():
    reference = ppca()
    x = reference.data[0]
    return report(reference.pair, {"train": (x[:4],), "test": (x,)}, num_samples=150, seed=3)


def test_numbers_equal_a_computation_by_hand(figures):
    reference = ppca()
    x = reference.data[0]
    for name, data in (("train", x[:4]), ("test", x)):
        terms = ppvae.elbo(reference.pair, data, num_samples=100, seed=3)
        expected = {"elbo": terms.values, "reconstruction": terms.reconstruction, "kl_z": terms.kl["z"]}
        if name == "test":
            estimate = ppvae.log_marginal(reference.pair, data, num_samples=150, seed=3)
            expected["log_marginal"] = estimate.values
            assert figures[name]["ess"]["median"] == pytest.approx(float(estimate.ess.median()))
            assert figures[name]["ess"]["min"] == pytest.approx(float(estimate.ess.min()))
        assert figures[name]["num_data"] == len(data)
        for key, values in expected.items():
            assert figures[name][key]["mean"] == pytest.approx(float(values.mean()))
            assert figures[name][key]["std_error"] == pytest.approx(float(values.std()) / math.sqrt(len(data)))
    assert "log_marginal" not in figures["train"]
    assert (figures["num_dims"], figures["num_samples"], figures["seed"]) == (6, 150, 3)


def test_is_json(figures):
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_table_prints_every_row(figures):
    rows = table(figures).splitlines()
    assert len(rows) == 1 + 3 + 4 + 1
    for name in ("train", "test"):
        for key, label in (("elbo", "ELBO"), ("reconstruction", "reconstruction"), ("kl_z", "KL z")):
            (row,) = [r for r in rows if r.startswith(name) and label in r]
            mean, error, bits = row.replace(name, "", 1).replace(label, "", 1).replace("±", " ").split()
            value = figures[name][key]
            assert float(mean) == pytest.approx(value["mean"], abs=6e-4)
            assert float(error) == pytest.approx(value["std_error"], abs=6e-4)
            sign = 1 if key == "kl_z" else -1
            assert float(bits) == pytest.approx(sign * value["mean"] / 6 / math.log(2), abs=6e-5)
    assert any("log p(x), K=150" in r for r in rows)
    assert "11 data" in rows[-1]
    assert f"least {figures['test']['ess']['min']:.1f} of 150" in rows[-1]


def test_limit_and_several_latents():
    reference = REFERENCES["hierarchy"]()
    figures = report(reference.pair, {"test": reference.data}, num_samples=7, limit=3)
    assert figures["test"]["num_data"] == 3
    assert {"kl_z1", "kl_z2"} <= figures["test"].keys()
    assert "KL z2" in table(figures)
    masked = REFERENCES["masked_series"]()
    assert report(masked.pair, {"test": masked.data}, num_samples=7, limit=None)["test"]["num_data"] == 11


def test_one_datum_has_no_standard_error():
    reference = ppca()
    figures = report(reference.pair, {"test": reference.data}, num_samples=7, limit=1)
    assert math.isnan(figures["test"]["elbo"]["std_error"])
    assert "nan" in table(figures)


def test_nothing_to_report():
    with pytest.raises(ValueError, match="splits"):
        report(ppca().pair, {})
    with pytest.raises(ValueError, match="empty"):
        report(ppca().pair, {"test": (torch.zeros(0, 6),)})
