"""GGUF, the format of llama.cpp: weights are dequantized to float32, the tokenizer is saved as tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import UserError


def convert(source: Path, target: Path) -> None:
    """Convert the only .gguf file in `source` to config, safetensors and tokenizer of transformers in `target`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise UserError("reading a GGUF file requires the package gguf: pip install 'peftlab[conversion]'")
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"{source}: contains {len(files)} .gguf files, expected one")
    file = files[0].name
    AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False).save_pretrained(target)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32, trust_remote_code=False)
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    del config.quantization_config  # with it, save_pretrained refuses the model
    config.__dict__.pop("_model_name_or_path", None)  # the title in the file
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(target)
