#!/usr/bin/env python3
"""Makes tests/reference: tiny random Llama models and what `transformers` computes with them.

    python3 -m venv VENV && VENV/bin/pip install -r requirements.txt
    VENV/bin/python make_reference.py

Each case is a model folder in the Hugging Face layout plus `expected.safetensors`: two prompts (`prompt.N`, int64), the
logits of all their positions (`logits.N`, f32) and the tokens that greedy decoding continues them with (`greedy.N`, int64).
Weights are drawn larger than a real initialisation, so that attention is far from uniform and a mistake in positions,
masks or heads shows in the logits. All logits are computed in f32. The same versions give the same files.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

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

# name: (changes of BASE, number type of the weights, largest shard)
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
}


def make_case(number, name, changes, dtype, shard):
    torch.manual_seed(1000 + number)
    config = LlamaConfig(**{**BASE, **changes})
    model = LlamaForCausalLM(config).eval()
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
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
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
    for number, (name, (changes, dtype, shard)) in enumerate(CASES.items()):
        make_case(number, name, changes, dtype, shard)
    versions = {"torch": torch.__version__.split("+")[0], "transformers": __import__("transformers").__version__}
    (OUT / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
