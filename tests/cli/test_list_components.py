"""`peftlab list`."""

from pathlib import Path

from tests.cli.processes import peftlab


def test_list_shows_every_component_and_what_is_cached(tmp_path: Path) -> None:
    shown = peftlab("list").stdout
    for word in ("lora-ner", "qlora-ner", "full", "nf4", "token_classification", "entity_f1", "eriktks/conll2003"):
        assert word in shown
    assert "83.5 MB to fetch" in peftlab("list", PEFTLAB_CACHE=str(tmp_path)).stdout
