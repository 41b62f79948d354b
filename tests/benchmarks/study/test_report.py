"""The report as one HTML file: whole, safe, and the same numbers as table.csv."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import log_loss

from cetnet.benchmarks.study.run import report_study
from cetnet.trainer.console import PlainConsole
from tests.benchmarks.study.fake_trainer import write_run

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "source", "embed"}


class Page(HTMLParser):
    """Fails where tags are not nested; keeps what a page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open  # HTML has no such tags
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder, reported; its texts try to be more than text."""
    here = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        study = {
            "name": "small",
            "title": f"Small & {EVIL}",
            "description": f"*Some* words {EVIL}, [a link](javascript:alert), ![a picture](https://a.example/b.png)",
            "base": "base.yaml",
            "nproc": 1,
            "seeds": [1, 2],
            "baseline": ["a", "c"],
            "variants": {"a": {}, "b_2x": {}, "c": {}, "d_2x": {}, "d_10x": {"x": "</pre>" + EVIL}},
            "also": {"c": ["b_2x"]},
            "scaling": {f"wide {EVIL}": "*_2x", "wider": "*_10x"},
            "embeddings": True,
            "paper": {"source": f"A <b>{EVIL}", "numbers": {"b_2x": {"auc": 0.7}}},
        }
        Path("base.yaml").write_text("{}", encoding="utf-8")
        Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
        make_runs(study)
        environment = Path("runs/small/c/seed1/environment.json")
        environment.write_text(
            environment.read_text(encoding="utf-8").replace('"abc"', '"def"'), encoding="utf-8"
        )
        report_study(Path("study.yaml"), console=PlainConsole(file=io.StringIO()))
    return here / "runs/small"


def make_runs(study: dict[str, Any]) -> None:
    from cetnet.benchmarks.study.definition import Study, runs_of

    for run in runs_of(Study.load(Path("study.yaml")), Path("study.yaml")):
        run.write_settings()
        (run.folder / "predictions").mkdir(parents=True)
        (run.folder / "config.yaml").write_text("{}")
        skill = 0.5 + 0.1 * list(study["variants"]).index(run.variant)
        components = ["left", "right"] if run.variant == "b_2x" else ["solo"]
        write_run(run.folder, seed=run.seed, skill=skill, components=components, truth=False, data_seed=0)


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert not page.attributes("src")
    assert not {"link", "img", "iframe", "object", "embed", "base", "image"} & {tag for tag, _ in page.tags}
    styles = " ".join(page.texts["style"] + page.attributes("style"))
    assert not re.search(r"@import|url\((?!#)|https?:", styles)
    (policy,) = (a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy
    assert policy.startswith("default-src 'none'")
    for tag, attributes in page.tags:
        if tag != "a":
            for name in ("href", "xlink:href"):
                assert attributes.get(name, "#").startswith("#")
    # Names of namespaces are not loaded, and the picture is a link.
    others = {value for value in re.findall(r"https?://[\w./]+", str(page.tags)) if "www.w3.org" not in value}
    assert others == {"https://a.example/b.png"}


def test_texts_are_text(page: Page) -> None:
    assert page.texts["h1"] == [f"Small & {EVIL}"]
    assert len(page.texts["script"]) == 1
    assert "alert" not in page.texts["script"][0]
    assert not [value for value in page.attributes("href") if value.startswith("javascript:")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "Some" in page.texts["em"]
    (command,) = (text for text in page.texts["pre"] if "d_10x/seed1" in text)
    assert f"</pre>{EVIL}" in command.replace("'\"'\"'", "'").replace("''", "'")


def test_ids_are_unique_and_links_lead_somewhere(page: Page, folder: Path) -> None:
    ids = page.attributes("id")
    assert len(set(ids)) == len(ids)
    for href in page.attributes("href") + page.attributes("xlink:href"):
        if href.startswith("#"):
            assert href[1:] in ids
        elif not href.startswith("https:"):
            assert (folder / unquote(href)).exists(), href
    references = re.findall(r"url\(#([^)]+)\)", " ".join(str(attributes) for _, attributes in page.tags))
    assert references
    assert set(references) <= set(ids)
    assert "a/seed2/metrics.jsonl" in page.attributes("href")


def test_numbers_are_those_of_the_csv(page: Page, folder: Path) -> None:
    with (folder / "table.csv").open() as file:
        expected = {(row["variant"], row["component"]): row for row in csv.DictReader(file)}
    checked = set()
    headings: list[str] = []
    values: list[str] = []
    texts = iter(page.texts["th"])
    variant = component = ""
    for tag, attributes in page.tags:
        if tag == "table":
            headings = []
        elif tag == "tr":
            values = []
            is_component = attributes.get("class") == "component"
        elif tag == "th":
            text = next(texts)
            if attributes.get("scope") == "col":
                headings.append(text)
            else:
                name = attributes["data-value"] or ""
                variant, component = (variant, name) if is_component else (name, "")
        elif tag == "td":
            values.append(attributes.get("data-value") or "")
            heading = headings[len(values)]
            row = expected.get((variant, component), {})
            if heading == "verdict":
                assert "over" in headings or values[-1] == row.get(heading, values[-1])
            elif heading in row and heading != "seeds" and "over" not in headings:
                assert (values[-1] and float(values[-1])) == (row[heading] and float(row[heading]))
                checked.add((heading, variant, component))
    for heading in ("NE", "AUC", "LogLoss", "NE gain (%)", "AUC gain (pp)"):
        for key in (("b_2x", ""), ("b_2x", "left"), ("d_2x", ""), ("d_10x", "")):
            assert (heading, *key) in checked
    assert {("embedding parameters", "a", ""), ("rows/s", "d_10x", "")} <= checked


@pytest.mark.parametrize(("number", "pair"), [(1, ("d_10x", "d_2x")), (2, ("c", "b_2x"))])
def test_methods_are_compared_at_the_same_size_and_what_the_study_names(
    folder: Path, number: int, pair: tuple[str, str]
) -> None:
    tables = (folder / "report.md").read_text().split("| variant | over |")
    assert len(tables) == 3
    variant, over, gain, *_ = re.split(r" *\| *", tables[number].splitlines()[2].strip("| "))
    assert (variant, over) == pair
    losses = []
    for name in (variant, over):
        of_seeds = [pq.read_table(folder / name / f"seed{seed}/predictions/test.parquet") for seed in (1, 2)]
        losses.append(
            sum(log_loss(table["label"], table["fused"].to_numpy().astype(float)) for table in of_seeds)
        )
    assert float(gain.replace("*", "").split()[0]) == pytest.approx(
        100 * (losses[0] / losses[1] - 1), abs=6e-4
    )


def test_the_head_says_what_was_run_where_and_when(page: Page) -> None:
    facts = page.texts["li"]
    assert "cetnet study study.yaml" in facts
    assert "on here (x86_64, 2 cores)" in facts
    assert "from 2026-01-02 10:00 to 2026-01-03 10:01 UTC" in facts  # the last of 100 seconds
    assert any(re.fullmatch(r"written 20\d\d-\d\d-\d\d \d\d:\d\d UTC", fact) for fact in facts)


def test_components_stay_under_their_ensemble(page: Page) -> None:
    bodies: list[list[str]] = []
    for tag, attributes in page.tags:
        if tag == "tbody":
            bodies.append([])
        elif tag == "th" and attributes.get("scope") == "row":
            bodies[-1].append(attributes["data-value"] or "")
    assert ["b_2x", "left", "right"] in bodies
    assert all(len(body) == 1 for body in bodies if body[0] != "b_2x")


def test_markdown_has_the_same_sections_and_plots(page: Page, folder: Path) -> None:
    report = (folder / "report.md").read_text()
    assert re.findall(r"^##+ (.*)", report, re.MULTILINE) == [
        *["Scaling of embeddings", "Results", "Compared with a", "Compared with c"],
        *["Further comparisons", "Embeddings", "Cost", "How to read it", "Runs"],
    ]
    plots = re.findall(r"!\[.*\]\((\w+\.png)\)", report)
    assert len(plots) == 7
    assert len(page.texts["svg"]) == 7
    assert all((folder / plot).exists() for plot in plots)
    assert "No run has a checkpoint" in report


def test_markdown_has_no_html_of_the_study(folder: Path) -> None:
    assert "# Small & &lt;script>" in (folder / "report.md").read_text()


def test_environments_that_differ_are_told(folder: Path) -> None:
    report = (folder / "report.md").read_text()
    assert "The runs were made in 2 environments, which differ in commit." in report
    assert re.search(r"\| 2 \| x86_64, 2 cores \| 1 \| def \|.*\| 1 \| 2026-01-02 10:00 \|", report)
    assert re.search(r"\| c \| 1 \| 2 \| 2026-01-02 10:00 \|", report)
