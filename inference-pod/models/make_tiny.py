#!/usr/bin/env python3
"""Makes a small Llama-architecture model in the Hugging Face layout, with no training and no torch.

    make_tiny.py --out DIR [--seed N] [--preset recite|10m|100m] [--layers N] [--shards N]

`recite` (the default; a few megabytes) is the quickstart's model. Its weights are constructed so that an ordinary Llama
forward pass is an n-gram table over the texts in replies.py: it answers in whole sentences, mixes them when sampled above
temperature 0, and always ends. `10m` and `100m` have random weights: they speak gibberish and exist for load tests.

The same arguments give the same files. Nothing is written outside DIR.
"""

import argparse
import collections
import json
import os
import pathlib
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the import; threads would only add noise to a tiny training run

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from replies import ANSWERS, GREETINGS, STORIES, VOCABULARY_TEXT
from recite import build_recite_weights
from safetensors_bf16 import write_safetensors

BOS, END, SYSTEM, USER, ASSISTANT = "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = [BOS, END, SYSTEM, USER, ASSISTANT]
VOCABULARY = 768

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('The role of a message must be system, user or assistant.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# hidden, layers, heads, key-value heads, head size, feed-forward. `recite` sizes its feed-forward to what it must hold.
PRESETS = {
    "recite": (256, 4, 4, 2, 64, None),
    "10m": (320, 8, 5, 1, 64, 896),
    "100m": (768, 12, 12, 4, 64, 3072),
}


def train_tokenizer():
    """A byte-level BPE tokenizer whose words are the words of the replies."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Replies are written with a leading space too: a word inside a sentence and at its start are different tokens.
    tokenizer.train_from_iterator(GREETINGS + ANSWERS + STORIES + VOCABULARY_TEXT, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def contexts(tokenizer):
    """Successor counts: of (second-last, last-but-one, last) tokens, and of the last token alone."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    end, assistant = tokenizer.token_to_id(END), tokenizer.token_to_id(ASSISTANT)
    trigrams, unigrams = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    groups = [(GREETINGS, encode("!")), (ANSWERS, encode("?")), (STORIES, [])]
    for replies, endings in groups:
        for rank, reply in enumerate(replies):
            ids = encode(reply) + [end]
            # The first reply of a group is the likeliest, so that greedy decoding does not hang on a tie.
            weight = 9 if rank == 0 else 1
            for ending in endings:
                trigrams[(ending, end, assistant)][ids[0]] += weight
            if not endings:
                unigrams[assistant][ids[0]] += weight
            full = [end, assistant] + ids
            for a, b, c, following in zip(full, full[1:], full[2:], full[3:]):
                trigrams[(a, b, c)][following] += weight
            for last, following in zip(ids, ids[1:]):
                unigrams[last][following] += weight
    # A token that no reply holds leads to the opening of a story or to the end.
    opening = unigrams[assistant].copy()
    opening[end] += 1
    for token in range(VOCABULARY):
        if token not in unigrams:
            unigrams[token] = opening
    return trigrams, unigrams


def random_weights(rng, shape, layers):
    """Plain random initialisation, as `transformers` does it."""
    hidden, heads, kv_heads, head_dim, feed_forward = shape
    normal = lambda rows, columns: rng.standard_normal((rows, columns), dtype=np.float32) * 0.02
    ones = np.ones(hidden, dtype=np.float32)
    yield "model.embed_tokens.weight", normal(VOCABULARY, hidden)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", ones
        yield prefix + "self_attn.q_proj.weight", normal(heads * head_dim, hidden)
        yield prefix + "self_attn.k_proj.weight", normal(kv_heads * head_dim, hidden)
        yield prefix + "self_attn.v_proj.weight", normal(kv_heads * head_dim, hidden)
        yield prefix + "self_attn.o_proj.weight", normal(hidden, heads * head_dim)
        yield prefix + "post_attention_layernorm.weight", ones
        yield prefix + "mlp.gate_proj.weight", normal(feed_forward, hidden)
        yield prefix + "mlp.up_proj.weight", normal(feed_forward, hidden)
        yield prefix + "mlp.down_proj.weight", normal(hidden, feed_forward)
    yield "model.norm.weight", ones
    yield "lm_head.weight", normal(VOCABULARY, hidden)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write the model into")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random numbers (default 1)")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="recite", help="which model (default recite)")
    parser.add_argument("--layers", type=int, help="number of layers, in place of the preset's")
    parser.add_argument("--shards", type=int, default=1, help="number of safetensors files (default 1)")
    arguments = parser.parse_args()
    hidden, layers, heads, kv_heads, head_dim, feed_forward = PRESETS[arguments.preset]
    layers = layers if arguments.layers is None else arguments.layers
    if layers < 1 or arguments.shards < 1:
        sys.exit("--layers and --shards must be at least 1")

    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(arguments.seed)
    tokenizer = train_tokenizer()
    if tokenizer.get_vocab_size() != VOCABULARY:
        sys.exit(f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}: add text to replies.py")
    bos, end = tokenizer.token_to_id(BOS), tokenizer.token_to_id(END)

    if arguments.preset == "recite":
        trigrams, unigrams = contexts(tokenizer)
        feed_forward, tensors = build_recite_weights(
            rng, trigrams, unigrams, VOCABULARY, hidden, layers, heads, kv_heads, head_dim
        )
    else:
        tensors = random_weights(rng, (hidden, heads, kv_heads, head_dim, feed_forward), layers)
    size = write_safetensors(out, tensors, arguments.shards)

    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": end,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": feed_forward,
        "max_position_embeddings": 2048,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", {"bos_token_id": bos, "eos_token_id": end, "do_sample": True, "temperature": 1.0})
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"bos_token": BOS, "eos_token": END}
    write_json(out / "special_tokens_map.json", special)
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
            **special,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                    "special": True,
                }
                for token in SPECIAL
            },
            "chat_template": CHAT_TEMPLATE,
        },
    )
    print(f"{arguments.preset}: {layers} layers, {size / 1e6:.1f} MB of weights in {out}")


if __name__ == "__main__":
    main()
