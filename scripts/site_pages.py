"""What mkdocs does beside reading docs/: pages made from the schema, the commands and the notebook.

A link that leaves docs/ works on a git host as it stands; on the site it leads to a page with that file.
"""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs"
# Files that have a page of their own on the site.
PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "configs/config.yaml": "settings.md",
    "src/finetune/commands.py": "commands.md",
    "src/finetune/api.py": "api.md",
    "docs/notebook.ipynb": "notebook.md",
}
MADE = ("settings.md", "commands.md", "api.md", "notebook.md")  # their links are the site's own
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, and one for each file outside docs/ that is linked to."""
    written = {Path(name): (ROOT / name).read_text("utf-8") for name in PLACES if name.endswith(".md")}
    made = {PLACES[str(path)]: text for path, text in written.items()}
    written |= {Path("docs") / file.src_uri: file.content_string for file in files.documentation_pages()}
    for path, text in written.items():
        for target in LINK.findall(text):
            name = os.path.normpath(path.parent / target)
            if name not in PLACES and not name.startswith("docs/"):
                made[place_of(name)] = source_page(name)
    made |= {"settings.md": settings_page(), "commands.md": commands_page(), "api.md": API}
    made["notebook.md"] = notebook_page()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to where their files are on the site."""
    here = page.file.src_uri
    came_from = {where: name for name, where in PLACES.items()}.get(here, f"docs/{here}")
    if here.startswith("source/"):
        came_from = here.removeprefix("source/")
    folder = os.path.dirname(came_from)

    def led(match: re.Match[str]) -> str:
        name = os.path.normpath(os.path.join(folder, match[1]))
        return os.path.relpath(place_of(name), os.path.dirname(here) or ".")

    return markdown if here in MADE else LINK.sub(led, markdown)


def place_of(name: str) -> str:
    """Where a file of the repository is on the site, below docs."""
    if name in PLACES:
        return PLACES[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return f"source/{name}" if name.endswith(".md") else f"source/{name}.md"


def source_page(name: str) -> str:
    """A file as a page: Markdown as it is, anything else as code; of a folder its files."""
    path = ROOT / name
    if path.is_dir():
        return f"# {name}\n\n" + "".join(f"- `{one.name}`\n" for one in sorted(path.iterdir()))
    text = path.read_text("utf-8")
    return text if name.endswith(".md") else f"# {name}\n\n````{path.suffix[1:]}\n{text}````\n"


SETTINGS = """# Settings

Each is set as `key=value` on the command line, or as a keyword of [`finetune.fit`](api.md). This page is
made from the schema that checks them, and from the comments in `configs/`. Values with brackets are quoted:
`'freeze=[all,-layer4]'`.
"""


def settings_page() -> str:
    """Every setting with what it takes, its default and its meaning."""
    page = SETTINGS
    for title, rows in sections((CONFIG / "config.yaml").read_text("utf-8")):
        page += f"\n## {title.capitalize()}\n\n{table(rows)}"
    page += "\n## What data may be\n\n| | |\n|---|---|\n"
    for file in sorted((CONFIG / "data").glob("*.yaml")):
        page += f"| `data={file.stem}` | {file.read_text('utf-8').splitlines()[0].removeprefix('# ')} |\n"
    for chosen in ("optimizer=sgd", "optimizer=adamw", "optimizer=lbfgs", "trainer=auto", "trainer=ddp"):
        group, name = chosen.split("=")
        text = (CONFIG / group / f"{name}.yaml").read_text("utf-8")
        rows = [(f"{group}.{key}", *rest) for key, *rest in lines(text) if key != "name"]
        page += f"\n## {chosen}\n\n{table(rows, chosen)}"
    page += "\n## Experiments\n\n`experiment=NAME` sets several at once.\n"
    for file in sorted((CONFIG / "experiment").glob("*.yaml")):
        page += f"\n### {file.stem}\n\n```yaml\n{file.read_text('utf-8')}```\n"
    return page


def sections(text: str) -> Iterator[tuple[str, list[Any]]]:
    """The parts of config.yaml that hold settings: their titles and rows."""
    for part in re.split(r"\n\n+", text):
        first = part.splitlines()[0]
        if first.startswith("# ") and not first.startswith("# Every"):
            yield first[2:], list(lines(part))
        elif first == "data:":
            yield "data", [(f"data.{key}", *rest) for key, *rest in lines(part.replace("\n  ", "\n"))]
        elif first.startswith("resume:"):
            yield "resume", list(lines(part))


def lines(text: str) -> Iterator[tuple[str, str, str]]:
    """Key, default and comment of each line that has a value."""
    for line in text.splitlines():
        if found := re.match(r"(\w+): +(.*?)(?: +# (.*))?$", line):
            yield found[1], found[2].strip(), found[3] or ""


def table(rows: list[Any], *chosen: str) -> str:
    """Settings with their defaults, what they are, and what they take."""
    text = "| setting | default | |\n|---|---|---|\n"
    for key, default, comment in rows:
        expected = takes(key, comment, *chosen)
        meaning = f"{comment} *({expected})*" if expected and comment else comment or expected
        cells = (f"`{key}`", f"`{default}`", meaning)
        text += "| " + " | ".join(cell.replace("|", r"\|").replace("<", "&lt;") for cell in cells) + " |\n"
    return text


@cache
def composed(*chosen: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from finetune.config.compose import compose_config

    plain: Any = OmegaConf.to_container(compose_config([*chosen]), resolve=True)
    return plain


def takes(key: str, comment: str, *chosen: str) -> str:
    """What the schema expects of a setting: what it says of values that it refuses.

    Nothing where the comment says as much.
    """
    from finetune.config.messages import validate
    from finetune.errors import RequestError

    def said(value: object) -> str:
        plain = copy.deepcopy(composed(*chosen))
        *section, name = key.split(".")
        (plain[section[0]] if section else plain)[name] = value
        try:
            validate(plain)
        except RequestError as error:
            return str(error).partition("expected ")[2] if str(error).startswith(f"{key}=") else ""
        return ""

    kind = said([{}])
    if kind == "text" or " | " in comment:
        return ""
    least, most = said(-(10**9)), said(10**12)
    if least.startswith("a list"):
        return least
    bounds = [least, most] if kind in ("a number", "a whole number") else []
    also = ["null"] if said(None) == "" else []
    parts = [kind, *(re.sub("^a number |=.*", "", one) for one in bounds)]
    return " or ".join([", ".join(filter(None, parts)), *also])


def commands_page() -> str:
    """What `--help` of each command says."""
    import typer

    from finetune.commands import app

    group: Any = typer.main.get_command(app)
    page = "# Commands\n\nAs `finetune COMMAND --help` has them. [Settings](settings.md) are `key=value`.\n"
    for name, command in group.commands.items():
        usage = command.get_help(typer.Context(command, info_name=f"finetune {name}", max_content_width=100))
        page += f"\n## {name}\n\n```text\n{usage}\n```\n"
    return page


API = """# Python

```python
import finetune

run = finetune.fit("photos", epochs=5)
print(run.summary["test"]["accuracy"])
for answer in run.load().predict(["a.jpg", "b.jpg"]):
    print(answer.label, answer.probability)
```

"""
API += "".join(f"\n::: finetune.api.{name}\n" for name in ("fit", "load", "Run", "Model", "Prediction"))


class NamedLines(griffe.Extension):
    """A parameter stands in a docstring as `name: what it is`; on the page these lines are a list."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^([a-z_]+): (?=\S)", r"- **`\1`**: ", obj.docstring.value, flags=re.M
            )


def notebook_page() -> str:
    """The notebook's cells, and what they printed."""
    page = ""
    for cell in json.loads((ROOT / "docs" / "notebook.ipynb").read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        page += f"{source}\n\n" if cell["cell_type"] == "markdown" else f"```python\n{source}\n```\n\n"
        for output in cell.get("outputs", []):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            page += f"```text\n{''.join(text)}\n```\n\n"
    return page
