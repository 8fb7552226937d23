#!/usr/bin/env python3
"""Trains the model on generated data. See README.md.

    train.py --name v1 --steps 6000                     # or resumes where NAME stopped
    train.py --name v1 --finish-by 5000                 # resumes, and brings the end of the decay forward
    train.py --name v2 --from v1:4500 --data-seed 2 --steps 5200
    train.py --name v3 --from-model ../fairlead-tiny-v1 --steps 3000 --decay 0.85 --matrix-rate 0.01 --other-rate 2e-3

Checkpoints, the tokenizer and the learning curve are kept in $FAIRLEAD_CACHE/small-model/NAME. What is computed depends on the
arguments and the number of threads, never on the clock, and stopping and resuming changes nothing.
"""

import argparse
import json
import os
import pathlib
import random
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tqdm import tqdm

import guidance
import passages
import structure
import technical
import tokenizer as tokens
import verbal
from model import Llama, Shape, weighted_loss
from muon import Optimiser
from stream import Stream
from words import Words

# Steps over which the rate rises.
WARMING = 60


def cache():
    home = os.environ.get("FAIRLEAD_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "fairlead")
    return pathlib.Path(home) / "small-model"


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--name", required=True, help="of the run; the same name resumes it")
    parser.add_argument("--steps", type=int, default=6000, help="steps of about 4,096 tokens (default 6000)")
    parser.add_argument("--finish-by", type=int, help="in place of --steps: bring the end forward on resume")
    parser.add_argument("--decay", type=float, default=0.6, help="last part of the steps over which the rate falls to nothing (default 0.6)")
    parser.add_argument("--from", dest="origin", help="RUN:STEP, a kept checkpoint to begin from")
    parser.add_argument("--from-model", type=pathlib.Path, help="a model folder to begin from: its weights and tokenizer, and the last stage's data")
    parser.add_argument("--more-tokens", type=int, default=0, help="with --from-model: how many tokens to add to its tokenizer")
    parser.add_argument("--last-stage", action="store_true", help="data of the last stage only, as --from-model does by itself")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32", help="what the model computes in; the masters are f32 (default f32)")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the tokenizer")
    parser.add_argument("--data-seed", type=int, default=1, help="of the training data")
    parser.add_argument("--absent", type=float, help="part of the questions without an answer, in place of the curriculum's")
    parser.add_argument("--matrix-rate", type=float, default=0.02)
    parser.add_argument("--other-rate", type=float, default=4e-3)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--keep-every", type=int, default=500)
    parser.add_argument("--measure-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=pathlib.Path, default=cache())
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.more_tokens and not arguments.from_model:
        parser.error("--more-tokens goes with --from-model: a model from nothing gets a tokenizer of its own")
    return arguments


def fading(step, total, decay):
    return min(1.0, max(0.0, (total - step) / (decay * total)))


def factor(step, total, decay):
    """Of the full rate: it rises over the first steps and falls over the last part."""
    return min(1.0, (step + 1) / WARMING) * fading(step, total, decay)


def tensors(rows, length, pad):
    """Inputs, the tokens that follow them, what each of these counts, and the labels."""
    ids = torch.full((len(rows), length), pad)
    weights = torch.zeros(len(rows), length)
    marks = {name: torch.full((len(rows), length), guidance.NONE) for name in guidance.LABELS}
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        weights[i, : len(row.ids)] = torch.tensor(row.weights)
        for name, values in (row.marks or {}).items():
            marks[name][i, : len(values)] = torch.tensor(values)
    targets = torch.full_like(ids, pad)
    targets[:, :-1] = ids[:, 1:]
    shifted = torch.zeros_like(weights)
    shifted[:, :-1] = weights[:, 1:]
    return ids, targets, shifted, marks


def predicted(weights, step, count=1024):
    """The positions whose prediction is scored: of answers all, of contexts a sample, which saves most of the projection."""
    flat = weights.reshape(-1)
    order = torch.rand(flat.shape, generator=torch.Generator().manual_seed(step)) + (flat >= 1.0) * 2 + (flat > 0)
    return order.topk(count).indices


def held_out_items(encoder, name, count=96, length=512):
    """A fixed sample from the held-out words, for the learning curve. evaluate.py draws others."""
    w = Words(random.Random("curve" if name == "words" else f"curve {name}"), held_out=True)
    found = []
    while len(found) < count:
        target = {"technical": technical.make, "verbal": verbal.make}.get(name, lambda w: None)(w)
        file = "relations_held_out.txt" if name == "relations" else None
        made = passages.item(w, w.rng.choice((3, 4, 5)), w.rng.random() < 0.25, 0.6, file=file, target=target)
        row = encoder.item(made.prompt, made.answer, made.cited is not None)
        if len(row.ids) < length:
            found.append((row, made.cited))
    return found


@torch.no_grad()
def measure(model, items, pad, batch=16, length=512):
    """Teacher-forced: whole answers right, citations right among the answered, refusals right among the absent."""
    right, cited, refused = [], [], []
    for start in range(0, len(items), batch):
        part = items[start : start + batch]
        ids, targets, weights, _ = tensors([row for row, _ in part], length, pad)
        guess = model.logits(ids).argmax(-1)
        for row, (_, citation) in enumerate(part):
            answer = weights[row] >= 1.0
            good = (guess[row] == targets[row])[answer]
            right.append(bool(good.all()))
            (refused if citation is None else cited).append(bool(good[0]) if citation is None else bool(good[:2].all()))
    mean = lambda values: round(sum(values) / max(1, len(values)), 3)
    return {"exact": mean(right), "citation": mean(cited), "refusal": mean(refused)}


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    total = arguments.finish_by or arguments.steps
    home = arguments.cache / arguments.name
    home.mkdir(parents=True, exist_ok=True)
    origin = None
    if arguments.origin:
        run, _, step = arguments.origin.partition(":")
        origin = arguments.cache / run / f"step-{int(step):06}.pt"

    vocabulary = home / "tokenizer.json"
    if not vocabulary.exists():
        if origin or arguments.from_model:
            inherited = (arguments.from_model or origin.parent) / "tokenizer.json"
            vocabulary.write_bytes(inherited.read_bytes())
            if arguments.more_tokens:
                tokens.extend(Tokenizer.from_file(str(inherited)), arguments.more_tokens, arguments.seed).save(str(vocabulary))
        else:
            tokens.train(arguments.seed).save(str(vocabulary))
    tokenizer = Tokenizer.from_file(str(vocabulary))
    encoder = tokens.Encoder(tokenizer)
    model = Llama(Shape(vocabulary=tokenizer.get_vocab_size()))
    structure.initialise(model, encoder.texts, arguments.seed)
    if arguments.from_model:
        old = Tokenizer.from_file(str(arguments.from_model / "tokenizer.json"))
        pieces = [old.encode(text, add_special_tokens=False).ids for text in encoder.texts[old.get_vocab_size() :]]
        structure.adopt(model, load_file(arguments.from_model / "model.safetensors"), pieces)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
    compiled = (lambda f: f) if arguments.no_compile else lambda f: torch.compile(f, dynamic=False)
    torch.manual_seed(arguments.seed)
    guide = guidance.Guide(model.shape.hidden, compiled, dtype)
    before = home / "before.jsonl"
    if arguments.from_model and not before.exists() and (arguments.from_model / "curve.jsonl").exists():
        before.write_bytes((arguments.from_model / "curve.jsonl").read_bytes())
    model = model.to(dtype)
    optimiser = Optimiser([*model.named_parameters(), *guide.named_parameters()], arguments.matrix_rate, arguments.other_rate)
    stream = Stream(encoder, arguments.data_seed, arguments.absent, trained=bool(arguments.from_model) or arguments.last_stage)

    last, step, consumed = home / "last.pt", 0, 0
    saved = last if last.exists() else origin
    if saved:
        state = torch.load(saved, weights_only=False)
        optimiser.load(state["optimiser"])
        step, consumed = state["step"], state["tokens"]
        if saved is last:
            stream.load(state["stream"])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, step {step} of {total}", flush=True)

    layers, head = [compiled(layer) for layer in model.model.layers], compiled(weighted_loss)
    torch._dynamo.config.recompile_limit = 64
    cos, sin = model.cos.to(dtype), model.sin.to(dtype)

    def loss_of(ids, targets, weights, marks, chosen):
        """The loss of the next tokens, and that of where the guided heads look."""
        x = model.model.embed_tokens(ids)
        turn = cos[: ids.shape[1]], sin[: ids.shape[1]]
        looking = {}
        for index, layer in enumerate(layers):
            looking |= guide.before(index, model.model.layers[index], x, *turn, marks)
            x = layer(x, *turn)
            # A trained model's first steps teach the new probes only, which would otherwise undo what it knows.
            looking |= guide.after(index, x.detach() if arguments.from_model and step < WARMING else x, marks)
        x = model.model.norm(x).reshape(-1, x.shape[-1])
        return head(x[chosen], model.model.embed_tokens.weight, targets.reshape(-1)[chosen], weights.reshape(-1)[chosen]), looking

    samples = {name: held_out_items(encoder, name, count) for name, count in (("words", 96), ("relations", 96), ("verbal", 48), ("technical", 32))}
    curve = (home / "curve.jsonl").open("a", encoding="utf-8")
    began, losses, lookings = time.monotonic(), [], {name: [] for name in guidance.LABELS}

    def mean(values):
        return round(sum(values[-100:]) / max(1, len(values[-100:])), 3)

    def save(path):
        partial = path.with_suffix(".partial")
        torch.save({"optimiser": optimiser.state(), "stream": stream.state(), "step": step, "tokens": consumed, "total": total, "shape": model.shape.as_dict()}, partial)
        partial.replace(path)

    with tqdm(total=total, initial=step, unit="step", mininterval=5, dynamic_ncols=True) as bar:
        while step < total:
            rows, length = stream.batch(step)
            ids, targets, weights, marks = tensors(rows, length, encoder.pad)
            rate = factor(step, total, arguments.decay)
            loss, looking = loss_of(ids, targets, weights, marks, predicted(weights, step))
            # Guidance fades with the rate: in the end only answers count.
            guided = sum(guidance.WEIGHTS[name] * lost for name, lost in looking.items() if name != "topic" or arguments.from_model or step >= guidance.TOPIC_SINCE)
            (loss + fading(step, total, arguments.decay) * guided).backward()
            optimiser.step(rate)
            step += 1
            consumed += sum(len(row.ids) for row in rows)
            losses.append(float(loss.detach()))
            for name, lost in looking.items():
                lookings[name].append(float(lost.detach()))
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(loss=f"{sum(losses[-50:]) / len(losses[-50:]):.3f}", tokens=f"{consumed / 1e6:.2f}M", refresh=False)
            if step % arguments.measure_every == 0 or step == total:
                line = {"step": step, "tokens": consumed, "seconds": round(time.monotonic() - began), "loss": mean(losses)}
                line |= measure(model, samples["words"], encoder.pad) | {name: mean(values) for name, values in lookings.items()}
                line |= {name: measure(model, items, encoder.pad) for name, items in samples.items() if name != "words"}
                print(json.dumps(line), file=curve, flush=True)
                tqdm.write(json.dumps(line))
            if step % arguments.save_every == 0 or step == total:
                save(last)
            if step % arguments.keep_every == 0 or step == total:
                save(home / f"step-{step:06}.pt")


if __name__ == "__main__":
    main()
