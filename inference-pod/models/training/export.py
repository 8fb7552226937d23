#!/usr/bin/env python3
"""Writes a checkpoint as a model folder in the Hugging Face layout.

    export.py --run v1 --out ../fairlead-tiny-v1 [--step 4500]
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

import tokenizer as tokens
from model import Shape
from train import cache


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def curve(home, step):
    """The lines of the learning curve that led to `step`, after those of the model that the run began from. A step that the run
    repeated, having been stopped between two checkpoints, counts once."""
    lines = [json.loads(line) for line in (home / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["step"] <= step]
    lines = [line for i, line in enumerate(lines) if all(later["step"] > line["step"] for later in lines[i + 1 :])]
    before = home / "before.jsonl"
    earlier = before.read_text(encoding="utf-8") if before.exists() else ""
    return earlier + "".join(json.dumps(line) + "\n" for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True)
    parser.add_argument("--step", type=int, help="a kept checkpoint; otherwise the last one")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path, default=cache())
    arguments = parser.parse_args()
    home, out = arguments.cache / arguments.run, arguments.out
    state = torch.load(home / (f"step-{arguments.step:06}.pt" if arguments.step else "last.pt"), weights_only=False)
    out.mkdir(parents=True, exist_ok=True)
    shape = Shape(**state["shape"])
    weights = {name: value.bfloat16().contiguous() for name, value in sorted(state["optimiser"]["masters"].items()) if name.startswith("model.")}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner reads
    (out / "tokenizer.json").write_bytes((home / "tokenizer.json").read_bytes())
    vocabulary = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    end, pad = vocabulary[tokens.END], vocabulary[tokens.PAD]
    write_json(out / "config.json", shape.config() | {"bos_token_id": None, "eos_token_id": end, "pad_token_id": pad})
    write_json(out / "generation_config.json", {"do_sample": False, "eos_token_id": end, "pad_token_id": pad, "max_new_tokens": 128})
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.positions, "bos_token": None, "eos_token": tokens.END,
        "pad_token": tokens.PAD, "additional_special_tokens": [tokens.START], "clean_up_tokenization_spaces": False,
        "add_bos_token": False, "add_eos_token": False, "chat_template": tokens.CHAT_TEMPLATE,
    })
    write_json(out / "special_tokens_map.json", {"eos_token": tokens.END, "pad_token": tokens.PAD, "additional_special_tokens": [tokens.START]})
    (out / "curve.jsonl").write_text(curve(home, state["step"]), encoding="utf-8")
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    print(f"step {state['step']}, {state['tokens']:,} tokens: {sizes}")


if __name__ == "__main__":
    main()
