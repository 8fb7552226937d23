"""The byte-level BPE tokenizer, the chat template, and an item as weighted tokens."""

import collections
import json
import os
import random
from typing import NamedTuple

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the import; the training has the cores

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import chat
import guidance
import passages
import questions
import technical
import verbal
from words import Words

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [PAD, START, END]
VOCABULARY = 3072

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sample_text(seed, items):
    w = Words(random.Random(seed))
    for _ in range(items):
        form = w.rng.random()
        target = verbal.make(w) if form < 0.15 else technical.make(w) if form < 0.4 else None
        made = passages.item(w, w.rng.randint(1, 3), False, 0.3, target=target)
        yield made.prompt
        yield questions.vary(w.rng, made.question)
        if w.rng.random() < 0.2:
            yield "\n".join(chat.turn(w))


def train(seed=1, items=30000):
    """Digits stand alone, so that a number is copied digit by digit and a citation is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(sample_text(seed, items), trainer)
    return tokenizer


def extend(tokenizer, more, seed=1, items=30000):
    """`tokenizer` with `more` tokens, the merges that shorten today's texts most; every token that it had keeps its id.

    For a trained model whose texts have changed. A merge that occurs less often than once in 300 items is not made, as its token
    would hardly be trained.
    """
    counts = collections.Counter()
    for text in sample_text(seed, items):
        counts.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    words = [([token.value for token in tokenizer.model.tokenize(piece)], count) for piece, count in counts.items()]
    pairs, holders = collections.Counter(), collections.defaultdict(set)

    def account(index, sign):
        symbols, count = words[index]
        for pair in zip(symbols, symbols[1:]):
            pairs[pair] += sign * count
            holders[pair].add(index)

    for index in range(len(words)):
        account(index, 1)
    state = json.loads(tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    while more and pairs:
        # Of equals the first in the alphabet, so that the result does not depend on the order of a set.
        pair, count = min(pairs.items(), key=lambda found: (-found[1], found[0]))
        if count < items // 300:
            break
        whole = "".join(pair)
        if whole not in vocabulary:
            vocabulary[whole] = len(vocabulary)
            more -= 1
        merges.append(list(pair))
        for index in holders.pop(pair):
            account(index, -1)
            symbols, merged, at = words[index][0], [], 0
            while at < len(symbols):
                both = tuple(symbols[at : at + 2]) == pair
                merged.append(whole if both else symbols[at])
                at += 2 if both else 1
            words[index] = (merged, words[index][1])
            account(index, 1)
        del pairs[pair]
    return Tokenizer.from_str(json.dumps(state))


def render(messages, generate=False):
    """What the chat template renders, without a template engine."""
    text = "".join(f"{START}{role}\n{content.strip()}{END}\n" for role, content in messages)
    return text + (f"{START}assistant\n" if generate else "")


# How much a token's prediction counts.
# Of context only a part is scored (train.predicted).
CONTEXT, ANSWER, OPENING, DECISION, DIGIT = 0.1, 1.0, 2.0, 4.0, 8.0


class Row(NamedTuple):
    ids: list
    weights: list  # what predicting each token counts
    marks: dict | None = None  # guidance.LABELS, one list each


class Encoder:
    """Turns conversations into rows."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.pad, self.end = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END)
        self.break_ids = self.ids("\n")
        self.texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(tokenizer.get_vocab_size())]

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def item(self, user, answer, cited=False, system=None):
        """A turn without labels."""
        before = render(([("system", system)] if system else []) + [("user", user)], generate=True)
        return self.row(self.ids(before), self.ids(answer), cited)

    def question(self, question, item, system=None):
        """An item of passages, asked with `question`, with its labels."""
        lead = render([("system", system)] if system else [])
        user = passages.prompt(question, item.passages)
        head = self.tokenizer.encode(lead + render([("user", user)], generate=True), add_special_tokens=False)
        tail = self.tokenizer.encode(item.answer, add_special_tokens=False)
        texts = [self.texts[i] for i in head.ids]
        row = self.row(head.ids, tail.ids, item.cited is not None)
        place = guidance.locate(user, question, item.sentences, item.answered_by, item.kin, item.topic, item.topics)
        marks = guidance.label(place, len(lead) + len(START + "user\n"), head.offsets, texts, tail.offsets, tail.ids + [self.end], head.ids, item.cited)
        pad = [guidance.NONE] * (len(row.ids) - len(head.ids) - len(tail.ids) - 1)
        return row._replace(marks={name: values + pad for name, values in marks.items()})

    def row(self, head, tail, cited):
        tail = tail + [self.end]
        weights = [ANSWER] * len(tail)
        weights[0] = DECISION
        if cited:  # "[", digit, "]", and then where the sentence begins
            weights[1] = DIGIT
            for i in range(2, min(6, len(weights))):
                weights[i] = OPENING
        return Row(head + tail + self.break_ids, [CONTEXT] * len(head) + weights + [CONTEXT] * len(self.break_ids))
