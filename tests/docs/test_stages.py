"""docs/stages.md: its two recipes, run as they are written, one after the other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from peftlab.results.result_file import read_result
from tests.commands import serving
from tests.docs.test_pages import ROOT

PAGE = (ROOT / "docs" / "stages.md").read_text(encoding="utf-8")
FILE = re.compile(r"^```yaml (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_second_stage_starts_from_the_first_as_the_page_says(tmp_path: Path) -> None:
    for name, text in FILE.findall(PAGE):
        (tmp_path / name).write_text(text, encoding="utf-8")
    [console] = CONSOLE.findall(PAGE)
    with serving(tmp_path) as server:
        for block in console.split("$ peftlab ")[1:]:
            command, *expected = block.splitlines()
            done = server.run(*command.split())
            assert done.code == 0, done.err
            for line in expected:
                assert line.removesuffix("...") in done.out, line
    [first], [second] = ([*(tmp_path / "runs" / name).glob("*/result.json")] for name in ("addresses", "reviews"))
    lineage = read_result(second.parent).init_from
    assert lineage is not None
    assert (lineage.name, lineage.recipe_digest, lineage.head) == ("addresses", read_result(first.parent).digest, False)
    assert json.loads((second.parent / "adapter" / "peftlab.json").read_text())["init_from"]["name"] == "addresses"
