"""A report as one HTML file that needs nothing beside it: style, script and plots are inside."""

import io
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib import rc_context

from cetnet.benchmarks.study.definition import PAGE
from cetnet.benchmarks.study.report.document import Document, Plot, Section
from cetnet.trainer.files import write_text

# What comes from a study file is Markdown without HTML of its own; a picture would be loaded from elsewhere.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")


def write_html(document: Document, out: Path) -> None:
    """Write report.html into the folder `out`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"markdown": _markdown, "svg": inline_svg, "anchor": anchor}
    environment.tests["kind"] = lambda block, name: type(block).__name__ == name
    page = environment.get_template("page.html.jinja").render(document=document)
    write_text(out / PAGE, page)


def anchor(section: Section) -> str:
    """What a link to the section ends in."""
    return "section-" + re.sub(r"[^\w.-]+", "-", section.title.lower()).strip("-")


def _markdown(text: str) -> Markup:
    return Markup(_MARKDOWN.render(text))


def inline_svg(plot: Plot) -> Markup:
    """The plot as an SVG element. Its ids start with the plot's name, as a page may have several plots."""
    buffer = io.StringIO()
    # Text as text: it can be searched and copied, and takes less room than outlines.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name}):
        plot.figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", svg)
    label = Markup.escape(plot.caption)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))
