"""The models of the benchmark: random weights in the Llama shape, made once and kept in a cache folder.

The same numbers for every engine: safetensors for ours and transformers, GGUF for llama.cpp. They are rounded to bf16 when they are
made, so f32 and bf16 files hold the same model.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

VOCABULARY = 32000
CONTEXT = 2048


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool

    @property
    def head_dim(self):
        return self.hidden // self.heads


SMALL = Shape("llama-100m", 768, 12, 12, 4, 2048, True)
LARGE = Shape("llama-1b", 2048, 22, 32, 4, 5632, False)


def tensors(shape):
    """Names and bf16 tensors of a Hugging Face checkpoint. The spread is that of a trained model, so logits are not all alike."""
    generator = torch.Generator().manual_seed(17)

    def matrix(rows, columns):
        return (torch.randn(rows, columns, generator=generator) * columns**-0.5).to(torch.bfloat16)

    ones = torch.ones(shape.hidden, dtype=torch.bfloat16)
    kv = shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", matrix(VOCABULARY, shape.hidden)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", ones.clone()
        yield name + "self_attn.q_proj.weight", matrix(shape.hidden, shape.hidden)
        yield name + "self_attn.k_proj.weight", matrix(kv, shape.hidden)
        yield name + "self_attn.v_proj.weight", matrix(kv, shape.hidden)
        yield name + "self_attn.o_proj.weight", matrix(shape.hidden, shape.hidden)
        yield name + "post_attention_layernorm.weight", ones.clone()
        yield name + "mlp.gate_proj.weight", matrix(shape.mlp, shape.hidden)
        yield name + "mlp.up_proj.weight", matrix(shape.mlp, shape.hidden)
        yield name + "mlp.down_proj.weight", matrix(shape.hidden, shape.mlp)
    yield "model.norm.weight", ones.clone()
    if not shape.tied:
        yield "lm_head.weight", matrix(VOCABULARY, shape.hidden)


def config(shape):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
    }


def tokenizer():
    """One word for each token; prompts are sent as token ids, so nothing is ever cut into words."""
    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    words |= {f"w{token}": token for token in range(3, VOCABULARY)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }


def permuted(weight, heads):
    """llama.cpp pairs neighbours where transformers pairs halves, so rows of queries and keys change places."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(path, shape, dtype, weights):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    bf16 = dtype == "bf16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
    for name, tensor in weights.items():
        numbers = tensor.to(torch.float32).numpy()
        if name.endswith("q_proj.weight"):
            numbers = permuted(numbers, shape.heads)
        if name.endswith("k_proj.weight"):
            numbers = permuted(numbers, shape.kv_heads)
        if bf16 and numbers.ndim == 2:
            numbers = (np.ascontiguousarray(numbers).view(np.uint32) >> 16).astype(np.uint16)
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(gguf_name(name), numbers.view(np.uint8), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(numbers, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare(shape, dtypes, cache):
    """The model's folder, with `<dtype>.gguf` in it; made if it is not there."""
    folder = Path(cache) / f"{shape.name}-v1"
    if (folder / ".complete").is_file():
        missing = [dtype for dtype in dtypes if not (folder / f"{dtype}.gguf").is_file()]
    else:
        shutil.rmtree(folder, ignore_errors=True)
        missing = list(dtypes)
    if not missing:
        return folder
    os.makedirs(folder, exist_ok=True)
    print(f"making {shape.name} in {folder}", flush=True)
    weights = dict(tensors(shape))
    if not (folder / ".complete").is_file():
        (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / ".complete").touch()
    for dtype in missing:
        write_gguf(folder / f"{dtype}.partial", shape, dtype, weights)
        os.replace(folder / f"{dtype}.partial", folder / f"{dtype}.gguf")
    return folder
