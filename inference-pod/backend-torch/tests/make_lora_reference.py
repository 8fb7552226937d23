#!/usr/bin/env python3
"""Makes tests/lora_reference: LoRA adapters by PEFT for models of tests/reference, and what they compute.

    VENV/bin/pip install -r requirements.txt peft==0.21.2
    VENV/bin/python make_lora_reference.py

Each adapter is a folder as PEFT saves it (adapter_config.json, adapter_model.safetensors) plus `expected.safetensors`: for
the two prompts of its base model's case, the prompt (`prompt.N`, int64), the logits of all positions (`logits.N`, f32) and
the tokens of greedy decoding (`greedy.N`, int64).
adapter_config.json names the base. Both matrices are drawn at random, so that
an adapter changes the logits a great deal. The same versions give the same files.
"""

import json
import pathlib
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

TESTS = pathlib.Path(__file__).parent
OUT = TESTS / "lora_reference"
GREEDY_TOKENS = 12

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# name: (base, what PEFT is told, number type of the stored matrices)
ADAPTERS = {
    "every_projection": ("gqa_untied", {"r": 8, "lora_alpha": 16, "target_modules": ALL}, torch.float32),
    "rank_stabilised": (
        "gqa_untied",
        {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        torch.float32,
    ),
    "patterns": (
        "gqa_untied",
        {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": r".*\.(k_proj|o_proj|down_proj|up_proj)",
            "rank_pattern": {"down_proj": 6, r"layers\.1\.self_attn\.o_proj": 3},
            "alpha_pattern": {"k_proj": 1},
        },
        torch.bfloat16,
    ),
    "first_layer": (
        "biases",
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "gate_proj"], "layers_to_transform": [0]},
        torch.float32,
    ),
    "tied": ("gqa_tied", {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}, torch.float32),
}


def base_model(base):
    folder = TESTS / "reference" / base
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def make_adapter(number, name, base, settings, dtype):
    torch.manual_seed(2000 + number)
    model = get_peft_model(base_model(base), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.05, **settings))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_" in parameter_name:
                parameter.normal_(0.0, 0.2)
                parameter.copy_(parameter.to(dtype))
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    # Instead of a path of the machine at hand, and of an order that sets give by chance.
    config["base_model_name_or_path"] = base
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {key: tensor.to(dtype) for key, tensor in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    # What was stored, as PEFT itself loads it.
    model = PeftModel.from_pretrained(base_model(base), folder).eval()
    known = load_file(TESTS / "reference" / base / "expected.safetensors")
    expected = {}
    for index in range(2):
        prompt = known[f"prompt.{index}"].view(1, -1)
        tokens = prompt
        with torch.no_grad():
            expected[f"logits.{index}"] = model(prompt).logits[0].float().contiguous()
            for _ in range(GREEDY_TOKENS):
                logits = model(tokens).logits[0, -1]
                best = torch.topk(logits, 2).values
                assert best[0] - best[1] > 1e-3, f"{name}: greedy decoding is too close a call; choose another seed"
                tokens = torch.cat([tokens, logits.argmax().view(1, 1)], dim=1)
        changed = (expected[f"logits.{index}"] - known[f"logits.{index}"]).abs().max()
        assert changed > 0.5, f"{name}: the adapter hardly matters ({changed})"
        expected[f"prompt.{index}"] = prompt[0].contiguous()
        expected[f"greedy.{index}"] = tokens[0, prompt.shape[1] :].contiguous()
    save_file(expected, folder / "expected.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: {size / 1000:.0f} kB, {len(weights)} tensors")


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for number, (name, (base, settings, dtype)) in enumerate(ADAPTERS.items()):
        make_adapter(number, name, base, settings, dtype)


if __name__ == "__main__":
    main()
