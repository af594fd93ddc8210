"""HTML page of a suite, also in a browser."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

from peftlab.reports import html
from peftlab.reports.analysis import read_analysis
from peftlab.reports.files import FOLDER, ROOT
from peftlab.reports.sections import build_document


def page(folder: Path) -> str:
    """The page of a suite, to be written into the suite's report folder."""
    return html.render(build_document(read_analysis(folder)), root=ROOT)


class Links(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag not in ("meta", "img", "link", "br", "input"):
            self.open.append(tag)
        self.ids += [values["id"]] if values.get("id") else []  # type: ignore[list-item]
        self.targets += [str(values[key]) for key in ("href", "src") if key in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("suite", ["suite_folder", "profiled_folder"])
def test_the_page_is_valid_and_every_number_leads_to_its_runs(suite: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(suite)
    text = page(folder)
    links = Links(text)
    assert links.open == []
    assert len(set(links.ids)) == len(links.ids)
    for target in links.targets:
        if target.startswith("#"):
            assert target[1:] in links.ids
        elif not target.startswith("data:image/svg+xml;base64,"):
            assert Path(os.path.normpath(folder / FOLDER / target)).is_file()
    linked = {target.removeprefix("../") for target in links.targets if target.startswith("../")}
    assert {name for name in linked if name.endswith(".json")} == {
        f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.json")
    }
    results = text.split("<h2>Notes</h2>")[0].replace("\n", "")
    without_published = re.sub(r'<table id="table-addresses-published">.*?</table>', "", results)
    numbers = re.findall(r'<td class="number[^>]*data-value="[^"]+">(.*?)</td>', without_published)
    assert len(numbers) > 30
    assert all("<a href=" in cell for cell in numbers if re.match(r"[\d.<+-]", cell))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_sorts_numbers_by_value_and_puts_missing_values_last(suite_folder: Path) -> None:
    script = page(suite_folder).split("<script>")[1].split("</script>")[0]
    code = script + 'for (const v of [["10", "", "9", "-0.5", "1e3"], ["b", "a"]]) console.log(v.sort(order).join("|"))'
    done = subprocess.run(["node", "-e", code], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.strip() == "-0.5|9|10|1e3|\na|b"


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync"):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1280,900")
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as opened:
        yield opened


@pytest.fixture
def shown(browser: webdriver.Chrome, profiled_folder: Path) -> webdriver.Chrome:
    """The page in the report folder of a suite."""
    path = profiled_folder / FOLDER / "report.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(profiled_folder), encoding="utf-8")
    browser.get("about:blank")
    browser.get(path.as_uri())
    return browser


def column(browser: webdriver.Chrome, title: str) -> list[str]:
    """Visible cells of a column of the first table."""
    table = browser.find_element(By.CSS_SELECTOR, "table")
    heads = [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "th")]
    number = next(i for i, head in enumerate(heads, 1) if head.split(" ▲")[0].split(" ▼")[0] == title)
    return [c.text for c in table.find_elements(By.CSS_SELECTOR, f"td:nth-child({number})") if c.is_displayed()]


def test_a_browser_shows_the_page_without_errors_and_without_fetching_anything(shown: webdriver.Chrome) -> None:
    assert shown.get_log("browser") == []
    assert shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    drawn = shown.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 100)")
    assert len(drawn) >= 4
    assert all(drawn)
    for width in (1280, 420):  # wide tables scroll in their own box
        shown.set_window_size(width, 900)
        assert shown.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_a_click_on_a_header_sorts_ascending_and_the_next_one_descending(shown: webdriver.Chrome) -> None:
    title = "test entity_f1"
    head = next(b for b in shown.find_elements(By.CSS_SELECTOR, "th button") if b.text == title)
    before = column(shown, title)
    ascending = sorted((cell for cell in before if cell != "–"), key=lambda text: float(text.split()[0]))
    head.click()
    assert column(shown, title) == [*ascending, "–"]
    assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    head.click()
    assert column(shown, title) == [*reversed(ascending), "–"]
    assert before != column(shown, title)


def test_filters_leave_the_rows_of_one_method_and_precision(shown: webdriver.Chrome) -> None:
    method, precision = (Select(shown.find_element(By.NAME, name)) for name in ("method", "precision"))
    all_rows = column(shown, "method")
    method.select_by_visible_text("LoRA")
    assert column(shown, "precision") == ["none (fp32)", "NF4"]
    precision.select_by_visible_text("NF4")
    assert column(shown, "precision") == ["NF4"]
    method.select_by_visible_text("all")
    precision.select_by_visible_text("all")
    assert column(shown, "method") == all_rows


def test_a_click_on_a_number_opens_its_runs_whose_files_exist(shown: webdriver.Chrome) -> None:
    cell = shown.find_element(By.CSS_SELECTOR, """tr[data-filters='["LoRA", "NF4"]'] td.best a""")
    target = str(cell.get_attribute("href")).split("#")[1]
    runs = shown.find_element(By.ID, target)
    assert runs.get_attribute("open") is None
    cell.click()
    assert runs.get_attribute("open") is not None
    links = [str(link.get_attribute("href")) for link in runs.find_elements(By.TAG_NAME, "a")]
    seeds = {re.search(r"seed(\d)", link).group(1) for link in links if link.endswith(".predictions.json.gz")}  # type: ignore[union-attr]
    assert seeds == {"0", "1", "2", "3", "4"}  # 0: the trials
    assert all(Path(unquote(urlsplit(link).path)).is_file() for link in links)
    shown.execute_script("arguments[0].open = false", runs)
    cell.click()  # the address stays what it was
    assert runs.get_attribute("open") is not None
