#!/usr/bin/env python3
"""Makes tests/reference: tiny random models and what `transformers` computes with them.

    python3 -m venv VENV && VENV/bin/pip install -r requirements.txt
    VENV/bin/python make_reference.py [CASE ...]

Without a name all cases are made, else those named. Each case is a model folder in the Hugging Face layout plus `expected.safetensors`: two prompts (`prompt.N`, int64), the
logits of all their positions (`logits.N`, f32) and the tokens that greedy decoding continues them with (`greedy.N`, int64).
Weights are drawn larger than a real initialisation, so that attention is far from uniform and a mistake in positions,
masks or heads shows in the logits. All logits are computed in f32. The same versions give the same files: a new case goes
to the end, as a case's seed is its number.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

OUT = pathlib.Path(__file__).parent / "reference"
VOCABULARY = 160
GREEDY_TOKENS = 12

BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

LLAMA = (LlamaConfig, LlamaForCausalLM)
MISTRAL = (MistralConfig, MistralForCausalLM)
QWEN2 = (Qwen2Config, Qwen2ForCausalLM)
QWEN3 = (Qwen3Config, Qwen3ForCausalLM)

# Less than the longer prompt, so that the window has closed before the prompt ends, and no multiple of a block.
WINDOW = 11

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}

# name: (changes of BASE, number type of the weights, largest shard), and the architecture where it is not Llama
CASES = {
    "mha_untied": ({"num_key_value_heads": 4}, torch.bfloat16, None),
    "gqa_untied": ({}, torch.float16, None),
    "gqa_tied": ({"tie_word_embeddings": True, "num_hidden_layers": 1}, torch.float32, None),
    "mqa_tied": ({"num_key_value_heads": 1, "tie_word_embeddings": True}, torch.bfloat16, None),
    "biases": ({"attention_bias": True, "mlp_bias": True}, torch.bfloat16, None),
    "rope_llama3": (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        torch.bfloat16,
        None,
    ),
    "rope_linear": ({"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}, torch.bfloat16, None),
    "head_dim": ({"head_dim": 24}, torch.bfloat16, None),
    "sharded": ({}, torch.bfloat16, "40KB"),
    "mistral": ({"sliding_window": None}, torch.bfloat16, None, MISTRAL),
    "mistral_window": ({"sliding_window": WINDOW}, torch.bfloat16, None, MISTRAL),
    "qwen2": ({}, torch.float16, None, QWEN2),
    # The second layer has the window, the first has not.
    "qwen2_window": (
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1, "tie_word_embeddings": True},
        torch.bfloat16,
        None,
        QWEN2,
    ),
    # Beyond the 16 tokens that YaRN takes the model to be trained on; the smaller head leaves pairs on the ramp.
    "qwen2_yarn": ({"max_position_embeddings": 64, "rope_parameters": YARN}, torch.bfloat16, None, QWEN2),
    "qwen3": ({"head_dim": 24}, torch.bfloat16, None, QWEN3),
    # Window and full attention in turn, the other way around than max_window_layers can say.
    "qwen3_layer_types": (
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        torch.float16,
        None,
        QWEN3,
    ),
    "qwen3_yarn": (
        {
            "head_dim": 32,
            "max_position_embeddings": 64,
            "rope_parameters": {
                **YARN, "beta_fast": 4.0, "beta_slow": 0.5, "mscale": 1.2, "mscale_all_dim": 0.7, "truncate": False
            },
        },
        torch.bfloat16,
        None,
        QWEN3,
    ),
    "rope_dynamic": ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, torch.bfloat16, None),
}


def make_case(number, name, changes, dtype, shard, architecture=LLAMA):
    torch.manual_seed(1000 + number)
    config_class, model_class = architecture
    config = config_class(**{**BASE, **changes})
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith(".bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 0.16)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)

    # What was stored, computed in f32: rounding to the stored type is part of the model, not of the comparison.
    model = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = {}
    for index, length in enumerate((29, 9)):
        prompt = torch.randint(2, VOCABULARY, (1, length))
        tokens = prompt
        with torch.no_grad():
            expected[f"logits.{index}"] = model(prompt).logits[0].float().contiguous()
            for _ in range(GREEDY_TOKENS):
                logits = model(tokens).logits[0, -1]
                best = torch.topk(logits, 2).values
                assert best[0] - best[1] > 1e-3, f"{name}: greedy decoding is too close a call; choose another seed"
                tokens = torch.cat([tokens, logits.argmax().view(1, 1)], dim=1)
        expected[f"prompt.{index}"] = prompt[0].contiguous()
        expected[f"greedy.{index}"] = tokens[0, length:].contiguous()
    save_file(expected, folder / "expected.safetensors")
    size = sum(path.stat().st_size for path in folder.iterdir())
    files = ", ".join(sorted(path.name for path in folder.glob("model*")))
    print(f"{name}: {size / 1000:.0f} kB ({files}); logits up to {expected['logits.0'].abs().max():.1f}")


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    asked = sys.argv[1:] or list(CASES)
    for number, (name, case) in enumerate(CASES.items()):
        if name in asked:
            make_case(number, name, *case)
    versions = {"torch": torch.__version__.split("+")[0], "transformers": __import__("transformers").__version__}
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
