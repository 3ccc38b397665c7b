"""Wrong calls of the public functions get an answer that names the argument."""

import pytest

from tests.torture.functions import functions

FUNCTIONS = {function.name: function for function in functions()}
CALLS = [call for function in FUNCTIONS.values() for call in function.calls()]
FEW = {"fit", "KLWeight", "save", "elbo", "Batches", "Linear", "MLP", "MLP.forward", "plot.samples"}
"""Functions whose wrong calls, the first of each argument, are made in every run."""
MOST_UNCLEAR = 10


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def answers(calls):
    """The calls that got another answer than a clear one, with its words."""
    found = {"unclear": [], "silent": []}
    for call in calls:
        answer, words = call.answer()
        if answer != "clear":
            found[answer].append(f"{call}: {words[:200]}")
    return found


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FEW else pytest.mark.torture) for n in FUNCTIONS])
def test_right_arguments_work(name):
    FUNCTIONS[name].call(**FUNCTIONS[name].right())


@pytest.mark.torture
def test_no_wrong_call_is_silent_and_few_are_unclear():
    found = answers(CALLS)
    print(f"{len(CALLS)} wrong calls: {len(found['silent'])} silent, {len(found['unclear'])} unclear")
    assert len(CALLS) >= 1000
    assert not found["silent"], "\n".join(found["silent"])
    assert len(found["unclear"]) <= MOST_UNCLEAR, "\n".join(found["unclear"])


@pytest.mark.parametrize("name", sorted(FEW))
def test_a_wrong_value_of_each_argument_gets_a_clear_answer(name):
    calls = {call.argument: call for call in reversed(list(FUNCTIONS[name].calls()))}
    found = answers(calls.values())
    assert found == {"unclear": [], "silent": []}


def test_answers_are_told_apart():
    def silent(x):
        return x

    def own(x):
        raise ValueError(f"y must be something else than {x}")

    function = FUNCTIONS["KLWeight"]
    of = {
        name: type(function)(name, call, lambda: {"x": 1}, {"x": {"two": lambda: 2}})
        for name, call in {
            "silent": silent,
            "depths": own,
        }.items()
    }
    assert [next(of[name].calls()).answer()[0] for name in ("silent", "depths")] == ["silent", "unclear"]
    clear = next(call for call in function.calls() if call.argument == "sites")
    assert clear.answer()[0] == "clear"
