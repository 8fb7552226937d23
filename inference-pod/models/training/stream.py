"""The endless training data: batches of generated items, easy ones first. The same seed gives the same batches."""

import random
from typing import NamedTuple

import chat
import guidance
import passages
import questions
import technical
import verbal
from tokenizer import Row
from words import Words

# Rows are padded to one of a few lengths, so that few shapes are compiled; each shape is about 4,096 tokens.
LENGTHS = (96, 128, 160, 192, 256, 320, 384, 512, 704)
TOKENS = 4096
# Tokens of a row of short turns.
CONVERSATION = 120
SYSTEMS = ("You are a helpful assistant.", "Answer from the context.", "You are a polite assistant. Answer briefly.", "Answer the question from the numbered passages.", "Be brief.")
REPEATS = ("Say that again.", "Repeat it.", "What does it say?", "Read it to me.")


# How much rarer made-up relations are absent.
UNKNOWN = 0.5
# Part of the verbs that are made up (words.Words).
INVENTED = 0.3


class Stage(NamedTuple):
    since: int  # the first step
    counts: tuple  # how many passages
    absent: float = 0.0  # part of the questions that no passage answers
    hard: float = 0.0  # how likely a distractor resembles what is asked
    talk: float = 0.0  # part of the rows that is short chat
    verbal: float = 0.0  # of the other rows: made-up relations,
    strange: float = 0.0  # ... those whose question has other words,
    technical: float = 0.0  # ... long sentences of rare words,
    repeated: float = 0.0  # ... and sentences to be said again


STAGES = (
    Stage(0, (1,), repeated=0.5),
    Stage(100, (1, 2, 2), 0.2, 0.3, 0.015, verbal=0.15, technical=0.1, repeated=0.05),
    Stage(350, (2, 3), 0.25, 0.5, 0.015, verbal=0.2, technical=0.15, repeated=0.05),
    Stage(900, (1, 2, 3, 3, 4), 0.25, 0.6, 0.015, 0.25, 0.03, 0.15, 0.04),
    Stage(1600, (1, 2, 3, 3, 4, 4, 5, 6), 0.27, 0.65, 0.015, 0.27, 0.05, 0.16, 0.04),
    Stage(3600, (1, 2, 3, 3, 4, 4, 5, 6), 0.44, 0.75, 0.05, 0.17, 0.14, 0.14, 0.03),
)


class Stream:
    def __init__(self, encoder, seed, absent=None, trained=False):
        """`absent` in place of the stages'; `trained`: for a model that has been through the stages, the last one only."""
        self.encoder, self.rng, self.absent = encoder, random.Random(seed), absent
        self.stages = STAGES[-1:] if trained else STAGES
        self.words = Words(self.rng, invented=INVENTED)
        self.rows = {length: [] for length in LENGTHS}

    def state(self):
        return {"rng": self.rng.getstate(), "rows": self.rows}

    def load(self, state):
        self.rng.setstate(state["rng"])
        self.rows = state["rows"]

    def conversation(self):
        """Several short turns in one row, as in a real conversation."""
        ids, weights = [], []
        system = self.rng.choice(SYSTEMS) if self.rng.random() < 0.1 else None
        while True:
            user, answer = chat.turn(self.words)
            if self.rng.random() < 0.3:
                user = questions.vary(self.rng, user)
            more = self.encoder.item(user, answer, system=None if ids else system)
            if ids and len(ids) + len(more.ids) > CONVERSATION:
                return Row(ids, weights)
            ids, weights = ids + more.ids, weights + more.weights

    def repetition(self):
        w, r = self.words, self.rng
        if r.random() < 0.4:
            text = passages.sentence(" ".join(w.word() for _ in range(r.randint(4, 14))))
        else:
            parts = [r.choice((technical.term, technical.learned, lambda x: x.coined(), lambda x: x.word()))(w) for _ in range(r.randint(4, 22))]
            text = passages.sentence(" ".join(part + r.choice(("", "", "", "", ",")) for part in parts).rstrip(",.") + ".")
        asked = self.rng.choice(REPEATS)
        row = self.encoder.question(asked, passages.Item(asked, [text], "[1] " + text, text, 1, sentences=[[text]], answered_by=(0, 0), kin=[[(None, None)]]))
        # Nothing in the question says that this sentence answers it.
        row.marks["verdict"] = [guidance.NONE] * len(row.ids)
        return row

    def item(self, stage, step):
        r, w, form = self.rng, self.words, self.rng.random()
        counts, longest, target = stage.counts, 1 if step < STAGES[1].since and len(self.stages) > 1 else 3, None
        if form < stage.verbal:
            target = verbal.make(w)
        elif form < stage.verbal + stage.strange:
            target = verbal.strange(w)
        elif form < stage.verbal + stage.strange + stage.technical:
            target = technical.make(w)
            # Its sentences are long.
            counts, longest = [min(4, count) for count in counts], longest if r.random() < 0.4 else 1
        absent = stage.absent if self.absent is None or not stage.absent else self.absent
        if form < stage.verbal + stage.strange:
            # Of a relation that it does not know it shall rather say what it finds of the entity: it may be a synonym.
            absent *= UNKNOWN
        return passages.item(w, r.choice(counts), r.random() < absent, stage.hard, target=target, longest=longest)

    def example(self, step):
        r, stage = self.rng, next(s for s in reversed(self.stages) if step >= s.since or s is self.stages[0])
        if r.random() < stage.repeated:
            return self.repetition()
        if r.random() < stage.talk:
            return self.conversation()
        made = self.item(stage, step)
        system = r.choice(SYSTEMS) if r.random() < 0.04 else None
        return self.encoder.question(questions.vary(r, made.question), made, system)

    def batch(self, step):
        """Rows and the length to pad them to."""
        while True:
            row = self.example(step)
            length = next((n for n in LENGTHS if n > len(row.ids)), None)
            if length is None:
                continue
            rows = self.rows[length]
            rows.append(row)
            if len(rows) == TOKENS // length:
                self.rows[length] = []
                return rows, length
