"""Untrusted bases and adapters execute no code, and are refused with the reason."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from tests.faults.conftest import Lab


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.sign),)


def archive(path: Path, sign: Path) -> None:
    """Write a pickle in the format of torch.save."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Bomb(sign)))
        file.writestr("archive/version", "3")


@pytest.fixture
def adapter(lab: Lab, output: Path) -> Path:
    """Adapter folder of a finished run."""
    if "adapter" not in lab.folders:
        lab.folders["adapter"] = lab.folder / "finished"
        assert lab.server.run(*lab.words(lab.folders["adapter"])).code == 0
    shutil.copytree(lab.folders["adapter"], output)
    return next(output.glob("tiny/*/adapter"))


def resign(adapter: Path) -> None:
    """Rewrite peftlab.json with the digests of the present files, as an attacker would."""
    card = json.loads((adapter / "peftlab.json").read_text())
    card["files"] = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(adapter.iterdir())
        if path.name != "peftlab.json"
    }
    (adapter / "peftlab.json").write_text(json.dumps(card))


def refused(lab: Lab, adapter: Path) -> str:
    done = lab.server.run("predict", adapter.parent, "Main St")
    assert (done.code, len(done.err.splitlines()), done.out) == (2, 1, ""), done
    return done.err


def test_the_original_adapter_is_accepted(lab: Lab, adapter: Path) -> None:
    done = lab.server.run("predict", adapter.parent, "Main St")
    assert done.code == 0, done.err
    assert json.loads(done.out)["words"] == ["Main", "St"]


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", "adapter_model.pt", "training_args.PKL"])
@pytest.mark.parametrize("extra", [True, False], ids=["next to safetensors", "instead of safetensors"])
def test_a_pickle_in_an_adapter_is_not_read(name: str, extra: bool, lab: Lab, adapter: Path) -> None:
    sign = adapter.parent / "executed"
    archive(adapter / name, sign)
    if not extra:
        (adapter / "adapter_model.safetensors").unlink()
    resign(adapter)
    assert "a pickle can execute code" in refused(lab, adapter)
    assert not sign.exists()


@pytest.mark.parametrize("length", [2**63, 10**8, 2**27])
def test_an_absurd_header_is_refused(length: int, lab: Lab, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    resign(adapter)
    assert f"invalid header length {length} in" in refused(lab, adapter)


@pytest.mark.parametrize("name", ["../../../../etc/hostname", "/etc/hostname", "sub/adapter_model.safetensors"])
def test_a_card_cannot_name_files_outside_its_folder(name: str, lab: Lab, adapter: Path) -> None:
    card = json.loads((adapter / "peftlab.json").read_text())
    card["files"][name] = "0" * 64
    (adapter / "peftlab.json").write_text(json.dumps(card))
    assert "is not the name of a file next to it" in refused(lab, adapter)


@pytest.mark.parametrize("content", [b"[" * 10**6, b" " * (2**24 + 1), b"\x80\x04K\x01.", b"{}"], ids=range(4))
def test_an_absurd_card_is_refused(content: bytes, lab: Lab, adapter: Path) -> None:
    (adapter / "peftlab.json").write_bytes(content)
    assert "peftlab.json: " in refused(lab, adapter)


@pytest.fixture
def base(lab: Lab, output: Path) -> Path:
    return Path(shutil.copytree(lab.folder / "tiny", output / "base"))


def test_a_base_of_pickles_is_not_read(lab: Lab, base: Path) -> None:
    sign = base / "executed"
    (base / "model.safetensors").unlink()
    archive(base / "pytorch_model.bin", sign)
    done = lab.server.run(*lab.words(base.parent / "runs", f"model={base}"))
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert "has no usable weights in safetensors" in done.err
    assert not sign.exists()


@pytest.mark.parametrize(
    ("file", "name"), [("config.json", "AutoModelForTokenClassification"), ("tokenizer_config.json", "AutoTokenizer")]
)
def test_code_of_a_base_is_not_executed(file: str, name: str, lab: Lab, base: Path) -> None:
    sign = base / "executed"
    (base / "strange.py").write_text(f"import os\nos.mkdir({str(sign)!r})\nclass Strange: pass\n")
    config = json.loads((base / file).read_text())
    reference = "strange.Strange"
    config["auto_map"] = {name: [reference, reference] if name == "AutoTokenizer" else reference}
    (base / file).write_text(json.dumps(config))
    done = lab.server.run(*lab.words(base.parent / "runs", f"model={base}"))
    assert "Traceback" not in done.err
    assert done.code in (0, 2)
    assert not sign.exists()


def test_an_architecture_that_needs_remote_code_is_refused(lab: Lab, base: Path) -> None:
    sign = base / "executed"
    (base / "strange.py").write_text(f"import os\nos.mkdir({str(sign)!r})\nclass Strange: pass\n")
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Strange"}}
    (base / "config.json").write_text(json.dumps(config))
    done = lab.server.run(*lab.words(base.parent / "runs", f"model={base}"))
    assert (done.code, len(done.err.splitlines())) == (2, 1), done
    assert not sign.exists()
