#!/usr/bin/env python3
"""Makes tests/quantized: tiny random models packed as GPTQ and AWQ do, and what `transformers` computes with what the packed
weights stand for.

    VENV/bin/python make_quantized.py

Each case is a folder as make_reference.py makes it, but that the projections are packed. The packing is written out here
from the formats' definitions and shares nothing with the engine. The reference has the unpacked weights, in f32: so rounding
to 4 or 8 bits is part of the model and the comparison is as strict as that of unquantised ones. Weights are rounded to the
nearest step; no calibration is needed to test a format.
"""

import json
import pathlib
import shutil

import torch
from make_reference import BASE, GREEDY_TOKENS, LLAMA, QWEN2, VOCABULARY
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "quantized"

# Every width a multiple of 32, the least that libtorch's products take; but in the case that has to be unpacked.
SHAPE = {**BASE, "intermediate_size": 96}

# name: (method, bits, group size, symmetric, act-order, format, architecture, changes of SHAPE)
CASES = {
    "gptq4": ("gptq", 4, 32, False, False, "gptq", LLAMA, {}),
    "gptq4_symmetric_whole": ("gptq", 4, -1, True, False, "gptq", LLAMA, {}),
    "gptq4_act_order": ("gptq", 4, 32, False, True, "gptq", QWEN2, {}),
    "gptq4_v2": ("gptq", 4, 32, False, False, "gptq_v2", LLAMA, {}),
    "gptq8": ("gptq", 8, 32, True, False, "gptq", LLAMA, {}),
    "gptq8_act_order": ("gptq", 8, -1, False, True, "gptq", LLAMA, {}),
    "gptq4_unpacked": ("gptq", 4, 16, False, True, "gptq", LLAMA, {"intermediate_size": 48}),
    "awq4": ("awq", 4, 32, False, False, "gemm", QWEN2, {}),
}

# Output of an eight that each place of a 32-bit number holds, lowest bits first.
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def quantise(weight, bits, group, symmetric, group_of):
    """Whole numbers [in, out], zero points and scales [groups, out] (f16), and the weights [out, in] they stand for."""
    inputs, most = weight.shape[1], 2**bits - 1
    groups = inputs // group
    columns = weight.t()
    scales = torch.empty(groups, weight.shape[0])
    zeros = torch.empty(groups, weight.shape[0], dtype=torch.int64)
    for number in range(groups):
        rows = columns[group_of == number]
        low, high = rows.amin(0).clamp(max=0), rows.amax(0).clamp(min=0)
        if symmetric:
            high = torch.maximum(high, -low)
            scales[number], zeros[number] = 2 * high / most, 2 ** (bits - 1)
        else:
            scales[number] = (high - low) / most
            zeros[number] = (-low / scales[number]).round().clamp(0, most).long()
    scales = scales.half()
    own_scales, own_zeros = scales.float()[group_of], zeros[group_of]
    values = ((columns / own_scales).round().long() + own_zeros).clamp(0, most)
    stands_for = ((values - own_zeros).float() * own_scales).t().contiguous()
    return values, zeros, scales, stands_for


def to_int32(numbers):
    """Numbers of 32 bits without a sign, as i32 of the same bits."""
    return torch.where(numbers >= 2**31, numbers - 2**32, numbers).to(torch.int32)


def pack(numbers, bits, dimension):
    """Packs numbers along a dimension, lowest bits first."""
    each = 32 // bits
    parts = numbers.unflatten(dimension, (-1, each)).unbind(dimension + 1)
    return to_int32(sum(part << (bits * place) for place, part in enumerate(parts)))


def packed_gptq(values, zeros, scales, bits, group_of, version):
    most = 2**bits - 1
    stored = zeros if version == "gptq_v2" else (zeros - 1) & most
    return {
        "qweight": pack(values, bits, 0),
        "qzeros": pack(stored, bits, 1),
        "scales": scales,
        "g_idx": group_of.to(torch.int32),
    }


def packed_awq(values, zeros, scales, bits):
    def in_order(numbers):
        return numbers.unflatten(1, (-1, 8))[:, :, AWQ_ORDER].flatten(1)

    return {"qweight": pack(in_order(values), bits, 1), "qzeros": pack(in_order(zeros), bits, 1), "scales": scales}


def make_case(number, name, method, bits, group_size, symmetric, act_order, version, architecture, changes):
    torch.manual_seed(3000 + number)
    config_class, model_class = architecture
    config = config_class(**{**SHAPE, **changes})
    model = model_class(config).eval()
    tensors = {}
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith(".bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 0.16)
            parameter.copy_(parameter.half().float())
            if "proj.weight" not in parameter_name:
                tensors[parameter_name] = parameter.half().clone()
                continue
            inputs = parameter.shape[1]
            group = inputs if group_size == -1 else group_size
            # Queries, keys and values have the same inputs; with a seed of their own gate and up differ in order.
            order = torch.randperm(inputs) if act_order else torch.arange(inputs)
            group_of = torch.empty(inputs, dtype=torch.int64)
            group_of[order] = torch.arange(inputs) // group
            values, zeros, scales, stands_for = quantise(parameter, bits, group, symmetric, group_of)
            parameter.copy_(stands_for)
            parts = (
                packed_awq(values, zeros, scales, bits)
                if method == "awq"
                else packed_gptq(values, zeros, scales, bits, group_of, version)
            )
            for part, tensor in parts.items():
                tensors[parameter_name.removesuffix("weight") + part] = tensor.contiguous()

    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": method, "bits": bits, "group_size": group_size}
    if method == "awq":
        settings |= {"version": version, "zero_point": True, "modules_to_not_convert": None}
    else:
        settings |= {"sym": symmetric, "desc_act": act_order, "lm_head": False, "checkpoint_format": version}
    config.dtype = torch.float16
    config.architectures = [model_class.__name__]
    written = {**config.to_diff_dict(), "quantization_config": settings}
    (folder / "config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

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
    print(f"{name}: {size / 1000:.0f} kB; logits up to {expected['logits.0'].abs().max():.1f}")


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for number, (name, case) in enumerate(CASES.items()):
        make_case(number, name, *case)


if __name__ == "__main__":
    main()
