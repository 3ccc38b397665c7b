"""The pages of models have one shape, and their code runs."""

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "models").glob("*.md"))
SECTIONS = ["## Run it", "## Numbers", "## In Python", "## Related", "## Paper"]

QUICK = {
    r"epochs=\d+": "epochs=1",
    r"num_samples=1000?": "num_samples=10",
    r"subset\(100_000\)": "subset(2_000)",
    r"split\.x\.": "split.x[:40].",  # of which each is summed over 4,096 words
    r"log_marginal\(pair, x, lengths\)": "log_marginal(pair, x[:20], lengths[:20])",
}

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


@each_page
def test_a_page_tells_story_bound_figure_command_numbers_relatives_and_paper_in_this_order(path):
    text = path.read_text(encoding="utf-8")
    story, _, rest = text.partition("\n    ")
    title, sentence = story.strip().split("\n\n")
    assert title.startswith("# ")
    assert sentence.count(". ") == 0
    assert [line for line in text.splitlines() if line.startswith("## ")] == SECTIONS
    formulas, _, _ = rest.partition("![")
    assert "guide: " in formulas
    assert re.search(r"log p\(x.*≥|log p\(x\) = |no bound|maximised", formulas)
    parts = dict(zip(["head", *SECTIONS], re.split(r"^## .*$", text, flags=re.MULTILINE), strict=True))
    assert re.search(r"!\[[^\]]+\]\(\.\./images/\w[\w-]*\.png\)", parts["head"])
    assert "python -m ppvae.examples." in parts["## Run it"]
    assert "| --- |" in parts["## Numbers"]
    assert re.search(r"\]\(\w+\.md", parts["## Related"])
    assert re.search(r"\b(19|20)\d\d\b", parts["## Paper"])


def test_pictures_are_small_and_each_is_shown():
    shown = "".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size < 120_000
        assert picture.name in shown


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ppvae.evaluate.ParetoWarning")
@each_page
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text = path.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    for full, quick in QUICK.items():
        code = re.sub(full, quick, code)
    exec(compile(code, path.name, "exec"), {})
    assert capsys.readouterr().out
