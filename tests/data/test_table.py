"""Data frames as tensors: what a column is taken for, and every value that is not of its family by name."""

import numpy as np
import pandas as pd
import pytest
import torch

from ppvae.data import Column, Table, split_missing

FRAME = pd.DataFrame(
    {
        "height": [1.7, 1.6, None, 1.8],
        "visits": [0, 3, 1, 250],
        "visits with a gap": [0.0, None, 1.0, 2.0],
        "member": [True, False, True, True],
        "flag": [0, 1, 1, 0],
        "sex": ["m", "f", None, "f"],
        "city": ["b", "c", "a", "b"],
        "size": pd.Categorical(["s", "l", "m", None], categories=["s", "m", "l"], ordered=True),
        "kind": pd.Categorical(["x", "y", "z", "x"], categories=["z", "x", "y"]),
        "change": [-1, 0, 2, 5],
    }
)
FAMILIES = {
    "height": "normal",
    "visits": "count",
    "visits with a gap": "count",
    "member": "bernoulli",
    "flag": "bernoulli",
    "sex": "bernoulli",
    "city": "categorical",
    "size": "ordinal",
    "kind": "categorical",
    "change": "normal",
}


def test_families_are_read_off_a_frame():
    table = Table.of(FRAME)
    assert {column.name: column.family for column in table.columns} == FAMILIES
    levels = {column.name: column.levels for column in table.columns if column.levels}
    assert levels["city"] == ("a", "b", "c")
    assert levels["size"] == ("s", "m", "l")
    assert levels["kind"] == ("z", "x", "y")
    assert table.columns[0].loc == pytest.approx(1.7)
    assert table.columns[0].scale == pytest.approx(np.std([1.7, 1.6, 1.8]))


def test_a_family_can_be_chosen():
    table = Table.of(FRAME, families={"height": "log-normal", "visits": "categorical", "flag": "count"})
    of = {column.name: column for column in table.columns}
    assert of["height"].loc == pytest.approx(np.log([1.7, 1.6, 1.8]).mean())
    assert of["visits"].levels == (0, 1, 3, 250)
    assert of["flag"].family == "count"


def test_a_frame_comes_back():
    table = Table.of(FRAME)
    x, observed = table.tensors(FRAME)
    assert x.shape == observed.shape == (4, 10)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    assert torch.equal(observed, torch.from_numpy(FRAME.notna().to_numpy()))
    back = table.frame(x, observed)
    assert back["sex"].tolist()[:2] == ["m", "f"]
    assert back["size"].tolist()[:3] == ["s", "l", "m"]
    np.testing.assert_allclose(back["height"].to_numpy(), FRAME["height"].to_numpy(), rtol=1e-6)
    assert torch.equal(torch.from_numpy(back.notna().to_numpy()), observed)
    shuffled = FRAME[[*FRAME.columns[::-1]]].assign(more=1)
    assert torch.equal(table.tensors(shuffled)[0], x)


def test_what_is_missing_lies_in_the_support():
    frame = pd.DataFrame({"income": [None, 5.0, 7.0]})
    x, observed = Table.of(frame, families={"income": "log-normal"}).tensors(frame)
    assert x.flatten().tolist() == [1.0, 5.0, 7.0]
    assert observed.flatten().tolist() == [False, True, True]


BAD = {
    "a new level": (
        FRAME.assign(city="d"),
        r"'city' is categorical: row 0 must hold one of \['a', .*\], got 'd'",
    ),
    "a negative count": (FRAME.assign(visits=-1), r"'visits' is count: row 0 must hold a whole number >= 0, got .*-1"),
    "half a count": (FRAME.assign(visits=0.5), "'visits' is count: row 0 must hold a whole number"),
    "infinity": (FRAME.assign(height=np.inf), r"'height' is normal: row 0 must hold a finite number, got .*inf"),
    "text": (FRAME.assign(height="tall"), "'height' is normal, and holds .* in place of numbers"),
    "a column less": (FRAME.drop(columns="city"), r"the frame lacks the columns \['city'\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_of_another_kind_is_named(case):
    frame, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        Table.of(FRAME).tensors(frame)


def test_columns_are_checked():
    with pytest.raises(ValueError, match=r"the family of 'a' must be one of normal, .*; got 'gauss'"):
        Column("a", "gauss")
    with pytest.raises(ValueError, match="'a' is categorical, and has 0 levels"):
        Column("a", "categorical")
    with pytest.raises(ValueError, match="'a' is bernoulli, and has 3 levels in place of 2"):
        Column("a", "bernoulli", (1, 2, 3))
    with pytest.raises(ValueError, match="the scale of 'a' must be a finite number > 0"):
        Column("a", scale=0.0)
    with pytest.raises(ValueError, match="column 'a' has no values"):
        Table.of(pd.DataFrame({"a": [None, None]}))
    with pytest.raises(ValueError, match=r"families names columns that are not there: \['b'\]"):
        Table.of(pd.DataFrame({"a": [1.0]}), families={"b": "count"})
    with pytest.raises(TypeError, match="frame must be a pandas data frame, got ndarray"):
        Table.of(np.zeros((3, 2)))


def test_nan_becomes_a_mask():
    x = torch.tensor([[1.0, float("nan")], [float("nan"), 2.0]])
    values, observed = split_missing(x, fill=7.0)
    assert values.tolist() == [[1.0, 7.0], [7.0, 2.0]]
    assert observed.tolist() == [[True, False], [False, True]]
    with pytest.raises(TypeError, match="x must be of floating-point numbers"):
        split_missing(torch.zeros(3, dtype=torch.int64))
