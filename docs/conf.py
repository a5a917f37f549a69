"""How Sphinx builds the docs: `make docs`. The pages are the Markdown files of this folder; the rest is generated."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import make_api  # noqa: E402  # found by the path above

import lightning_kd  # noqa: E402  # as above

project = "lightning-kd"
author = "The lightning-kd authors"
copyright = f"2026, {author}"
version = release = lightning_kd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "furo"
html_title = f"lightning-kd {version}"
html_show_sphinx = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # a hook of Lightning's is documented in Lightning, a method of a base at the base
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Relations"]

nitpicky = True  # a reference to a name of ours that does not exist is an error
nitpick_ignore_regex = [("py:.*", r"(?!lightning_kd\.).*"), ("py:.*", r"lightning_kd\.(\w+\.)*_.*")]  # others', private

#: Written by each build and never committed: the API reference, the configs, and pages of the folder above.
GENERATED = DOCS / "_made"
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

log = logging.getLogger(__name__)


def moved(link: str) -> str | None:
    """Where a link out of this folder leads within the docs; None where only the text of it is kept."""
    target, _, anchor = link.removeprefix("../").partition("#")
    if target in PAGES:
        return f"_made/{PAGES[target]}" + (f"#{anchor}" if anchor else "")
    folder, _, file = target.removeprefix("configs").strip("/").partition("/")
    if target.startswith("configs"):
        return f"_made/configs/{folder or 'index'}.md" + (f"#{Path(file).stem.replace('_', '-')}" if file else "")
    if target.endswith(".py") and target.startswith(("lightning_kd", "callbacks", "datamodules")):
        package = "lightning_kd/" * (not target.startswith("lightning_kd")) + target.rpartition("/")[0]
        return f"_made/api/{package.replace('/', '.')}.rst"
    is_download = (ROOT / target).is_file() and not target.endswith(".md")
    return link if is_download else None  # a folder and a page of elsewhere, the README, have no page here


def rewrite(text: str, up: str = "") -> str:
    """Markdown whose links out of this folder lead to what is generated from there.

    Args:
        text: A page as it stands in this folder.
        up: From the page that is written to this folder.
    """

    def replaced(match: re.Match[str]) -> str:
        link = moved(match[2])
        return match[1] if link is None else f"[{match[1]}]({up if link.startswith('_made') else ''}{link})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\((\.\./[^)]+)\)", replaced, text)


def write_pages(app: Sphinx) -> None:
    """Write what is made from the code and from other folders, before Sphinx looks for pages."""
    make_api.write(GENERATED / "api")
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\((?!https?:|#)", "](../", text)  # as seen from this folder
        make_api.write_changed(GENERATED / page, rewrite(text, "../").replace("](../docs/", "](../"))
    folders = sorted(path for path in (ROOT / "configs").iterdir() if path.is_dir())
    for folder in folders:
        parts = [f"# {folder.name}\n"]
        for config in sorted(folder.glob("*.yaml")):
            parts += [f"## {config.stem}\n", f"```{{literalinclude}} ../../../configs/{folder.name}/{config.name}"]
            parts += [":language: yaml", "```\n"]
        make_api.write_changed(GENERATED / "configs" / f"{folder.name}.md", "\n".join(parts))
    names = "\n".join(folder.name for folder in folders)
    overview = "# Configs\n\nWhole experiments; the comment at the head of each is its command.\n"
    make_api.write_changed(GENERATED / "configs" / "index.md", f"{overview}\n```{{toctree}}\n{names}\n```\n")


def rewrite_links(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links such as `../configs/sst2`, which GitHub shows as a folder, to the page that is made of it."""
    if not docname.startswith("_made"):
        source[0] = rewrite(source[0])


def public_bases(app: Sphinx, name: str, obj: type, options: object, bases: list[type]) -> None:
    """Show the bases of a base that no module exports in its place."""

    def is_private(base: type) -> bool:
        module = sys.modules.get(getattr(base, "__module__", ""), None)
        own = getattr(module, "__name__", "").startswith("lightning_kd")
        return own and base.__name__ not in getattr(module, "__all__", ())

    while private := [base for base in bases if is_private(base)]:
        at = bases.index(private[0])
        bases[at : at + 1] = [base for base in private[0].__bases__ if base not in bases]


def plain_comments(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from taking what stands before a colon in the comment of an attribute for its type."""
    if what in ("attribute", "data", "property"):
        lines.insert(0, "")


def check_reference(app: Sphinx, error: Exception | None) -> None:
    """Warn, which ends the build, of a public name that has no entry and of an entry that is no public name."""
    if error is not None or app.builder.name != "html":
        return
    expected = {f"{module}.{name}" for module, names in make_api.entries().items() for name in names}
    objects = app.env.get_domain("py").get_objects()
    kinds = ("class", "exception", "function", "data", "type")
    found = {name for name, _, kind, _, _, priority in objects if kind in kinds and priority >= 0}
    for name in sorted(expected - found):
        log.warning("%s is public and not in the reference", name)
    for name in sorted(found - expected):
        log.warning("%s is in the reference and not public", name)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", rewrite_links)
    app.connect("autodoc-process-bases", public_bases)
    app.connect("autodoc-process-docstring", plain_comments, priority=100)  # before napoleon's
    app.connect("build-finished", check_reference)
