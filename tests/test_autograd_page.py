"""docs/autograd.md is a program: its snippets, in order, in one namespace; they assert what the page says.

Run in the folder docs they write the page's figures: `cd docs && python ../tests/test_autograd_page.py`.
"""

import re
from pathlib import Path

import matplotlib as mpl
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "autograd.md"
TEXT = PAGE.read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
FIGURES = re.findall(r'savefig\("(.*?)"\)', TEXT)


def run_snippets() -> None:
    names: dict[str, object] = {}
    with mpl.rc_context({"backend": "agg", "svg.fonttype": "none"}):
        for snippet in SNIPPETS:
            line = TEXT[: TEXT.index(snippet)].count("\n")
            exec(compile("\n" * line + snippet, str(PAGE), "exec"), names)


@pytest.mark.slow
def test_the_snippets_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(SNIPPETS) >= 15
    run_snippets()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FIGURES)
    assert all((PAGE.parent / name).exists() for name in FIGURES)


def test_each_link_within_the_page_leads_to_a_heading() -> None:
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    places = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#(.*?)\)", TEXT)) <= places


if __name__ == "__main__":
    run_snippets()
