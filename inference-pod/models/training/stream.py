"""The endless training data: batches of generated items, easy ones first. The same seed gives the same batches."""

import random

import chat
import guidance
import passages
import questions
from tokenizer import Row
from words import Words

# Rows are padded to one of a few lengths, so that few shapes are compiled; each shape is about 4,096 tokens.
LENGTHS = (96, 128, 160, 192, 256, 320, 384, 512, 704)
TOKENS = 4096
# Tokens of a row of short turns.
CONVERSATION = 120
SYSTEMS = ("You are a helpful assistant.", "Answer from the context.", "You are a polite assistant. Answer briefly.", "Answer the question from the numbered passages.", "Be brief.")
REPEATS = ("Say that again.", "Repeat it.", "What does it say?", "Read it to me.")

# From which step: how many passages, how many are absent, how likely a distractor resembles the target, how many rows are chat.
STAGES = (
    (0, (1,), 0.0, 0.0, 0.0),
    (100, (1, 2, 2), 0.2, 0.3, 0.015),
    (350, (2, 3), 0.25, 0.5, 0.015),
    (900, (1, 2, 3, 3, 4), 0.25, 0.6, 0.015),
    (1600, (1, 2, 3, 3, 4, 4, 5, 6), 0.25, 0.65, 0.015),
    (3600, (1, 2, 3, 3, 4, 4, 5, 6), 0.27, 0.65, 0.1),
)


class Stream:
    def __init__(self, encoder, seed, absent=None):
        self.encoder, self.rng, self.absent = encoder, random.Random(seed), absent
        self.words = Words(self.rng)
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
        text = passages.sentence(" ".join(self.words.word() for _ in range(self.rng.randint(4, 14))))
        asked = self.rng.choice(REPEATS)
        row = self.encoder.question(asked, passages.Item(asked, [text], "[1] " + text, text, 1, sentences=[[text]], answered_by=(0, 0), kin=[[(None, None)]]))
        # Nothing in the question says that this sentence answers it.
        row.marks["verdict"] = [guidance.NONE] * len(row.ids)
        return row

    def example(self, step):
        r = self.rng
        _, counts, absent, hard, talk = next(s for s in reversed(STAGES) if step >= s[0])
        if step < STAGES[1][0] and r.random() < 0.5:
            return self.repetition()
        if r.random() < talk:
            return self.conversation()
        if self.absent is not None and absent:
            absent = self.absent
        made = passages.item(self.words, r.choice(counts), r.random() < absent, hard, longest=1 if step < STAGES[1][0] else 3)
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
