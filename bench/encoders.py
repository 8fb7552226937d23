#!/usr/bin/env python3
"""Texts a second of all-MiniLM-L6-v2, ours against sentence-transformers, on this CPU with as many threads for each.

    . scripts/env.sh && cargo build --release -p fairlead-backend-torch --example encode_speed
    scripts/setup.sh minilm
    VENV/bin/python bench/encoders.py [THREADS] [REPEATS]      # VENV as for make_encoders.py

Both sides get the same tokens and start with a warm-up; their turns alternate, and medians are compared. Ours runs the
batches that a pod on a CPU would (1024 tokens); sentence-transformers its default of 32 texts, sorted by length, and
is timed with its tokenizer, whose time is measured apart and printed.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
WORDS = "the harbour crew guides a rope through the fairlead while the ship turns slowly against wind and tide".split()


def texts(count, words):
    """Texts of about so many words, of unequal length and with no two alike."""
    return [" ".join(WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(words // 2 + i * words // count)) for i in range(count)]


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    folder = os.environ["FAIRLEAD_MINILM"]
    example = ROOT / "target/release/examples/encode_speed"

    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(folder, device="cpu")

    def ours(tokens):
        lines = "\n".join(" ".join(map(str, ids)) for ids in tokens) + "\n"
        ran = subprocess.run([example, folder, str(threads), "2"], input=lines, capture_output=True, text=True, check=True)
        return json.loads(ran.stdout.splitlines()[-1])

    rows = []
    for name, batch in {"short": texts(200, 16), "long": texts(50, 240)}.items():
        tokens = [model.tokenizer(text, truncation=True, max_length=256)["input_ids"] for text in batch]
        count = sum(map(len, tokens))
        reference = model.encode(batch[:1])[0]
        assert max(abs(a - b) for a, b in zip(ours(tokens[:1])["first"], reference)) < 1e-4
        model.encode(batch)
        seconds = {"fairlead": [], "sentence-transformers": [], "its tokenizer": []}
        for _ in range(repeats):
            seconds["fairlead"].append(ours(tokens)["seconds"])
            begun = time.perf_counter()
            model.encode(batch)
            seconds["sentence-transformers"].append(time.perf_counter() - begun)
            begun = time.perf_counter()
            model.tokenizer(batch, truncation=True, max_length=256)
            seconds["its tokenizer"].append(time.perf_counter() - begun)
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        row = {"texts": name, "count": len(batch), "tokens": count, "threads": threads, "repeats": repeats}
        row |= {f"{side} texts/s": round(len(batch) / value, 1) for side, value in medians.items() if side != "its tokenizer"}
        row["its tokenizer ms"] = round(medians["its tokenizer"] * 1e3, 1)
        row["ratio"] = round(medians["sentence-transformers"] / medians["fairlead"], 2)
        rows.append(row)
        print(json.dumps(row))
    return rows


if __name__ == "__main__":
    main()
