"""The document of a suite: all three formats show its sections, tables and figures in the same order."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from peftlab.reports import html, latex, markdown
from peftlab.reports.analysis import read_analysis
from peftlab.reports.document import Section
from peftlab.reports.sections import build_document
from tests.reports.example_suite import SUITE


class Headings(HTMLParser):
    """Texts of all h2 and h3."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.titles: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.inside = tag in ("h2", "h3")

    def handle_data(self, text: str) -> None:
        if self.inside:
            self.titles.append(text)

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def titles(sections: tuple[Section, ...]) -> list[str]:
    return [title for section in sections for title in (section.title, *titles(section.sections))]


@pytest.mark.parametrize("suite", ["suite_folder", "profiled_folder", "without runs"])
def test_every_format_has_the_same_sections_in_the_same_order(
    suite: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if suite == "without runs":
        (tmp_path / "suite.yaml").write_text(SUITE + "name: mine\n")
        folder = tmp_path
    else:
        folder = request.getfixturevalue(suite)
    document = build_document(read_analysis(folder))
    expected = titles(document.sections)
    assert "Runs" in expected
    assert re.findall(r"^##+ (.*)", markdown.render(document, root=".."), flags=re.M) == expected
    assert re.findall(r"^\\(?:sub)?section\{(.*)\}", latex.render(document), flags=re.M) == expected
    assert Headings(html.render(document, root="..")).titles == expected


def test_a_suite_with_results_has_the_usual_sections(profiled_folder: Path) -> None:
    document = build_document(read_analysis(profiled_folder))
    assert titles(document.sections) == [
        "addresses", "Published results", "Cost", "Memory", "FLOPs and times", "Learning rates", "Figures",
        "Notes", "Experimental setup", "Runs", "References",
    ]  # fmt: skip


def test_table_names_are_unique(profiled_folder: Path) -> None:
    text = latex.render(build_document(read_analysis(profiled_folder)))
    labels = re.findall(r"\\label\{(.*?)\}", text)
    assert len(labels) == len(set(labels)) == 6
