#!/usr/bin/env python3
"""Measures a model folder with transformers and writes evaluation.json beside its weights.

    evaluate.py ../fairlead-tiny-v1 [--items 400] [--quick] [--seed 3]

The generated sets are filled with words that training never draws; `unseen_relations` also asks relations that training never
states. `made_up_relations` are those of verbal.py, `long_sentences` those of technical.py, with unseen words too. Every rate comes
with its n and a 95 % Wilson interval.
"""

import argparse
import json
import math
import os
import pathlib
import random
import re

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import passages
import technical
import verbal
from words import Words

HERE = pathlib.Path(__file__).parent
CITATION = re.compile(r"^\[(\d)\] ")


def wilson(hits, n, z=1.96):
    if not n:
        return [0.0, 1.0]
    p, d = hits / n, 1 + z * z / n
    middle, width = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / d
    return [round(max(0.0, middle - width), 3), round(min(1.0, middle + width), 3)]


def rate(values):
    values = [bool(v) for v in values]
    return {"rate": round(sum(values) / max(1, len(values)), 4), "n": len(values), "interval": wilson(sum(values), len(values))}


def generated(seed, count, absent, file=None, family=None, counts=(3, 4, 5)):
    w = Words(random.Random(f"evaluation {seed}"), held_out=True)
    return [passages.item(w, w.rng.choice(counts), absent, 0.6, file=file, target=family and family(w)) for _ in range(count)]


class Answerer:
    def __init__(self, folder, dtype=torch.float32):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()

    def render(self, user):
        return self.tokenizer.apply_chat_template([{"role": "user", "content": user}], tokenize=False, add_generation_prompt=True)

    @torch.no_grad()
    def answers(self, users, batch=32, tokens=72, what="answers"):
        """Greedy answers. Prompts of like length go together, so that little is padded."""
        texts = [self.render(user) for user in users]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = [""] * len(texts)
        for start in tqdm(range(0, len(order), batch), desc=what, mininterval=5):
            part = order[start : start + batch]
            inputs = self.tokenizer([texts[i] for i in part], return_tensors="pt", padding=True, add_special_tokens=False)
            inputs.pop("token_type_ids", None)
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            for i, ids in zip(part, out[:, inputs["input_ids"].shape[1] :]):
                found[i] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return found


def plain(text):
    return re.sub(r"\s+", " ", text.lower()).strip(" .")


def says(answer, gold):
    return plain(gold) in plain(answer)


def cites(answer, cited):
    match = CITATION.match(answer)
    return bool(match) and int(match[1]) == cited


def refused(answer):
    return plain(answer) == plain(passages.ABSENT)


def measure(answerer, name, present, absent, lower=False, tokens=72):
    ask = lambda item: passages.prompt(item.question.lower() if lower else item.question, item.passages)
    told = answerer.answers([ask(item) for item in present], what=name, tokens=tokens)
    result = {
        "gold": rate(says(a, i.gold) for a, i in zip(told, present)),
        "citation": rate(cites(a, i.cited) for a, i in zip(told, present)),
        "exact": rate(a == i.answer for a, i in zip(told, present)),
        "false_refusal": rate(refused(a) for a in told),
    }
    if absent:
        result["refusal"] = rate(refused(a) for a in answerer.answers([ask(item) for item in absent], what=name + ", absent", tokens=tokens))
    wrong = [{"prompt": ask(i), "expected": i.answer, "answer": a} for a, i in zip(told, present) if not says(a, i.gold)]
    return result, wrong


def natural(answerer, file="natural.json"):
    """Passages and questions written by hand; `gold` null where the passages do not answer."""
    cases = json.loads((HERE / file).read_text(encoding="utf-8"))
    asked = [(case, q) for case in cases for q in case["questions"]]
    told = answerer.answers([passages.prompt(q["question"], case["passages"]) for case, q in asked], what="natural")
    rows = [{"topic": case["topic"], **q, "answer": a} for (case, q), a in zip(asked, told)]
    present, absent = [r for r in rows if r["gold"]], [r for r in rows if not r["gold"]]
    return {
        "text": rate(says(r["answer"], r["gold"]) for r in present),
        "citation": rate(cites(r["answer"], r["cited"]) for r in present),
        "text_or_refusal": rate(says(r["answer"], r["gold"]) if r["gold"] else refused(r["answer"]) for r in rows),
        "false_refusal": rate(refused(r["answer"]) for r in present),
        "refusal": rate(refused(r["answer"]) for r in absent),
    }, rows


def example(answerer):
    """The documents and questions of the end-to-end example: all documents, and the three that its retrieval would find."""
    case = json.loads((HERE / "example.json").read_text(encoding="utf-8"))
    users = []
    for q in case["questions"]:
        users.append(passages.prompt(q["question"], [case["documents"][i - 1] for i in q["retrieved"]]))
        users.append(passages.prompt(q["question"], case["documents"]))
    told = answerer.answers(users, what="example", tokens=96)
    return [{"question": q["question"], "retrieved": told[2 * i], "all_seven": told[2 * i + 1]} for i, q in enumerate(case["questions"])]


def small_talk(answerer):
    users = ["Hello!", "hi", "Who are you?", "What can you do?", "Thank you!", "Goodbye", "Write a poem about the sea.", "What is the capital of France?", "you are wrong", "How are you?"]
    return [{"user": u, "answer": a} for u, a in zip(users, answerer.answers(users, what="chat"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--items", type=int, default=400, help="of each generated set (default 400); at most 100 of made-up relations and of long sentences")
    parser.add_argument("--seed", type=int, default=3, help="of the generated questions. One that a training was steered by is used up: 1 and 2 are")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wrong", type=pathlib.Path, help="write the wrong answers there")
    parser.add_argument("--quick", action="store_true", help="only the generated sets; writes nothing beside the model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    answerer = Answerer(arguments.model)
    n, report, wrong = arguments.items, {"seed": arguments.seed}, {}
    draw = lambda name, *rest, **more: generated(f"{arguments.seed} {name}", *rest, **more)
    words_present, words_absent = draw("words", n, False), draw("words absent", n, True)
    report["unseen_words"], wrong["words"] = measure(answerer, "unseen words", words_present, words_absent)
    report["unseen_words_lower_case"], wrong["lower"] = measure(answerer, "lower case", words_present, words_absent, lower=True)
    held = "relations_held_out.txt"
    report["unseen_relations"], wrong["relations"] = measure(answerer, "unseen relations", draw("relations", n, False, held), draw("relations absent", n, True, held))
    for name, family, counts in (("made_up_relations", verbal.make, (3, 4, 5)), ("long_sentences", technical.make, (2, 3))):
        made = [draw(f"{name} {absent}", min(n, 100), absent, family=family, counts=counts) for absent in (False, True)]
        report[name], wrong[name] = measure(answerer, name.replace("_", " "), *made, tokens=128)
    if not arguments.quick:
        report["natural"], report["natural_answers"] = natural(answerer)
        report["natural_later"], report["natural_later_answers"] = natural(answerer, "natural_later.json")
        report["example"], report["small_talk"] = example(answerer), small_talk(answerer)
        (arguments.model / "evaluation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if arguments.wrong:
        arguments.wrong.write_text(json.dumps(wrong, indent=1, ensure_ascii=False), encoding="utf-8")
    for name, figures in report.items():
        if isinstance(figures, dict):
            for figure, value in figures.items():
                print(f"{name:26} {figure:18} {value['rate']:.3f}  n={value['n']}  {value['interval']}")
    for row in report.get("example", ()):
        print(json.dumps(row, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
