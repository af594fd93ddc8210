"""GGUF, llama.cpp's format: quantised weights are dequantised to float32, the tokenizer becomes tokenizer.json."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import UserError


def convert(source: Path, target: Path) -> None:
    """Write the one .gguf file in `source` as a folder that transformers loads: config, safetensors, tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise UserError("a GGUF file needs the package gguf to be read: pip install 'peftlab[conversion]'")
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"{source}: holds {len(files)} .gguf files, wanted one")
    file = files[0].name
    AutoTokenizer.from_pretrained(source, gguf_file=file, trust_remote_code=False).save_pretrained(target)
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32, trust_remote_code=False)
    config = type(loaded.config).from_dict(loaded.config.to_dict())
    del config.quantization_config  # it marks the model as one that cannot be saved
    config.__dict__.pop("_model_name_or_path", None)  # the file's own title
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(target)
