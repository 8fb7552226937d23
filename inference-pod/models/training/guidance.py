"""Where to look: the extra labels that training has, because it made the text itself and knows what every answer copies.

From answers alone a model of this size needs tens of millions of tokens to find out how to compare sentences with the
question and to copy the right one. So some attention heads are also told where to look, and a probe that is thrown away
afterwards asks the residual stream at each sentence's end whether the sentence answers. The model itself stays a plain Llama.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from model import rotate
from questions import SMALL
from templates import relations

# No label; and the first token, which stands for "nowhere".
NONE, NOWHERE = -1, 0

# What a head is told: (layer, head, label, how much it counts).
#   inside: the bracket before the passage that a token is in; marker: the passage's number; start: the sentence's first token;
#   match: the same word in the question; end: from the answer's start to the end of the sentence that answers;
#   source: from each token of the answer to the place in the passages that the next one is copied from.
HEADS = ((0, 2, "inside", 0.1), (1, 2, "match", 0.2), (1, 3, "marker", 0.1), (2, 0, "start", 0.1), (4, 0, "end", 0.4), (5, 0, "source", 0.4))
# What the probe is asked at the end of each sentence: does it answer, is it about the question's entity, does it say what is asked.
PROBES = {"verdict": 0.4, "entity": 0.2, "relation": 0.2}
PROBED_LAYER = 3
# And earlier, at the end of the question and of each sentence: which relation or family is this? From this step on.
TOPICS = sorted({relation.name for relation in relations()} | {"attribute", "deed", "definition", "instruction", "trouble", "rule", "cause", "whereabouts", "count", "technical", "setting", "verbal"})
TOPIC_LAYER, TOPIC_SINCE = 2, 700
WEIGHTS = {label: weight for _, _, label, weight in HEADS} | PROBES | {"topic": 0.2}
LABELS = tuple(WEIGHTS)


@dataclass
class Place:
    """Where the passages' sentences lie in a prompt: characters, first and one past the last."""

    question: tuple
    passages: list  # for each passage: the character of its number, and its sentences' borders
    gold: tuple | None  # the sentence that answers
    kin: list  # passages.Item.kin
    topic: str | None
    topics: list | None


def locate(prompt, question, sentences, gold, kin, topic=None, topics=None):
    """`sentences`: those of each passage; `gold`: (passage, sentence), counted from zero, or None."""
    at = prompt.index("\n") + 1 if "\n" in prompt else len(prompt)
    begin = at - 1 - len(question)
    passages = []
    for said in sentences:
        number, at, borders = at + 1, prompt.index("] ", at) + 2, []
        for text in said:
            assert prompt[at : at + len(text)] == text
            borders.append((at, at + len(text)))
            at += len(text) + 1
        passages.append((number, borders))
    return Place((begin, begin + len(question)), passages, None if gold is None else passages[gold[0]][1][gold[1]], kin, topic, topics)


def normal(token):
    return token.strip().lower()


def label(place, offset, spans, texts, tail_spans, tail_ids, head_ids, cited):
    """The labels of one row, each a list as long as prompt and answer together.

    `offset`: where the user's text begins in the prompt; `spans`, `texts`: each prompt token's characters; `tail_spans`: the
    answer's, without its end token.
    """
    count, tail = len(head_ids), len(tail_ids)
    marks = {name: [NONE] * (count + tail) for name in LABELS}
    token_at = {}
    for i, (begin, end) in enumerate(spans):
        for character in range(begin, end):
            token_at.setdefault(character, i)  # the first of those that share a character of several bytes
    where = lambda character: token_at[offset + character]

    first, last = where(place.question[0]), where(place.question[1] - 1)
    asked = {normal(texts[i]): i for i in range(first, last + 1)}
    for i in range(where(place.passages[0][0]) if place.passages else count):
        marks["marker"][i] = marks["inside"][i] = NOWHERE
    if place.topic in TOPICS:
        marks["topic"][last] = TOPICS.index(place.topic)
    for (number, borders), kin, topics in zip(place.passages, place.kin, place.topics or [[None] * len(kin) for kin in place.kin]):
        digit = where(number)
        for i in range(digit, where(borders[-1][1] - 1) + 1):
            marks["marker"][i], marks["inside"][i] = digit, digit - 1
        for border, (about, says), topic in zip(borders, kin, topics):
            begin, end = where(border[0]), where(border[1] - 1)
            marks["verdict"][end] = int(border == place.gold)
            if topic in TOPICS:
                marks["topic"][end] = TOPICS.index(topic)
            if about is not None:
                marks["entity"][end], marks["relation"][end] = int(about), int(says)
            for i in range(begin, end + 1):
                marks["start"][i] = begin
                word = normal(texts[i])
                if word.isalnum() and word not in SMALL:
                    marks["match"][i] = asked.get(word, NOWHERE)

    answer = count - 1  # the position that predicts the answer's first token
    if place.gold is None:
        for i in range(answer, answer + tail):
            marks["source"][i] = NOWHERE
        marks["end"][answer] = NOWHERE
        return marks
    for i in range(answer, answer + 4):
        marks["end"][i] = where(place.gold[1] - 1)
    digit = where(place.passages[cited - 1][0])
    opening = 4  # characters of "[1] "
    for i in range(1, tail):
        marks["marker"][count + i], marks["inside"][count + i] = count + 1, count
    for j, (begin, end) in enumerate(tail_spans):
        if j and (begin, end) == tail_spans[j - 1]:
            source += 1
        elif end <= opening - 1:
            source = digit - 1 + j
        else:
            # A token of the sentence may hold the blank before it.
            source = where(place.gold[0] + max(begin, opening) - opening)
            marks["start"][count + j] = count + 3
        if tail_ids[j] == head_ids[source]:
            marks["source"][answer + j] = source
    return marks


class Guide:
    """The losses of the guided heads and of the probe."""

    def __init__(self, hidden, compile=lambda f: f, dtype=torch.float32):
        self.probe = torch.nn.Linear(hidden, len(PROBES), dtype=dtype)
        torch.nn.init.zeros_(self.probe.weight)
        torch.nn.init.zeros_(self.probe.bias)
        self.topic = torch.nn.Linear(hidden, len(TOPICS), dtype=dtype)
        self.looking, self.judging = compile(looking), compile(judging)

    def named_parameters(self):
        parts = {"probe": self.probe, "topic": self.topic}
        return [(f"{part}.{name}", parameter) for part, module in parts.items() for name, parameter in module.named_parameters()]

    def before(self, index, layer, x, cos, sin, marks):
        """What the guided heads of layer `index` lose, by label; `x` [batch, tokens, hidden] is what goes into it."""
        return {
            name: self.looking(layer.input_layernorm(x), *rows(layer.self_attn, head), marks[name], cos, sin)
            for place, head, name, _ in HEADS if place == index
        }

    def after(self, index, x, marks):
        """What the probes lose on what comes out of layer `index`."""
        if index == TOPIC_LAYER:
            told = marks["topic"] != NONE
            return {"topic": F.cross_entropy(self.topic(x[told]).float(), marks["topic"][told])} if told.any() else {}
        if index != PROBED_LAYER:
            return {}
        truths = torch.stack([marks[name] for name in PROBES], -1)
        return dict(zip(PROBES, self.judging(x, self.probe.weight, self.probe.bias, truths)))


def rows(attention, head):
    size = attention.head_dim
    return attention.q_proj.weight[head * size : (head + 1) * size], attention.k_proj.weight[head * size : (head + 1) * size]


def looking(x, query, key, targets, cos, sin):
    """Mean cross entropy of one head's attention against `targets` [batch, tokens], where they are not NONE."""
    q, k = rotate(F.linear(x, query), cos, sin), rotate(F.linear(x, key), cos, sin)
    scores = (q @ k.mT).float() / query.shape[0] ** 0.5
    length = x.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(later, float("-inf"))
    losses = scores.logsumexp(-1) - scores.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    told = targets != NONE
    return (losses * told).sum() / told.sum().clamp_min(1)


def judging(x, weight, bias, truths):
    """Binary cross entropy of each probe where `truths` [batch, tokens, probes] is not NONE; what is true counts three times."""
    truth = (truths == 1).float()
    losses = F.binary_cross_entropy_with_logits(F.linear(x, weight, bias).float(), truth, reduction="none") * (1 + 2 * truth)
    told = truths != NONE
    return (losses * told).sum((0, 1)) / told.sum((0, 1)).clamp_min(1)
