"""The README says what is true: its snippet runs, its links exist, its commands are the real ones."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short():
    assert len(README.splitlines()) <= 120


def test_snippet_runs_and_prints_the_likelihood(capsys):
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len(snippet.splitlines()) <= 15
    exec(compile(snippet.replace("epochs=100", "epochs=2"), "README.md", "exec"), {})
    assert "log p(x) = " in capsys.readouterr().out


def test_commands_stand_in_the_readme():
    assert "\npip install -e . && python -m ppvae.examples.vae\n" in README
    assert '\npip install -e ".[test]" && pytest\n' in README


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
