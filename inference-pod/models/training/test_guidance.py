"""Tests of the labels that say where to look. They need the tokenizers package and torch, but no model."""

import random
import unittest

import guidance
import passages
import tokenizer as tokens
from stream import Stream
from words import Words


class Labels(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.encoder = tokens.Encoder(tokens.train(items=300))

    def made(self, seed, absent=False):
        w = Words(random.Random(seed))
        item = passages.item(w, w.rng.choice((1, 2, 3, 4)), absent, 0.7)
        return item, self.encoder.question(item.question, item, "Be brief." if seed % 3 == 0 else None)

    def text(self, ids):
        return self.encoder.tokenizer.decode(ids, skip_special_tokens=False)

    def test_every_token_of_an_answer_is_copied_from_where_its_source_is(self):
        for seed in range(200):
            item, row = self.made(seed)
            told = [(i, source) for i, source in enumerate(row.marks["source"]) if source != guidance.NONE]
            for i, source in told:
                self.assertEqual(row.ids[source], row.ids[i + 1])
            # All but the end of the answer, and perhaps a token that is cut differently at its beginning or end.
            answer = len(self.encoder.ids(item.answer))
            self.assertGreaterEqual(len(told), answer - 2, (item.answer, answer))

    def test_the_sources_are_in_the_sentence_that_answers(self):
        for seed in range(100):
            item, row = self.made(seed)
            end = next(e for e in row.marks["end"] if e != guidance.NONE)
            self.assertEqual(row.marks["verdict"][end], 1)
            self.assertEqual(sum(v == 1 for v in row.marks["verdict"]), 1)
            begin = row.marks["start"][end]
            self.assertIn(item.answer[4:], self.text(row.ids[begin : end + 1]))
            inside = [s for s in row.marks["source"] if s >= begin]
            self.assertTrue(all(s <= end for s in inside))
            self.assertEqual(self.text([row.ids[row.marks["marker"][end]]]), str(item.cited))

    def test_each_sentence_is_judged_once(self):
        for seed in range(100):
            item, row = self.made(seed, absent=seed % 2 == 0)
            self.assertEqual(sum(v != guidance.NONE for v in row.marks["verdict"]), sum(len(said) for said in item.sentences))

    def test_what_is_absent_is_nowhere(self):
        for seed in range(100):
            item, row = self.made(seed, absent=True)
            self.assertNotIn(1, row.marks["verdict"])
            self.assertEqual({s for s in row.marks["source"] if s != guidance.NONE}, {guidance.NOWHERE})
            self.assertEqual({e for e in row.marks["end"] if e != guidance.NONE}, {guidance.NOWHERE})

    def test_words_are_matched_with_the_question(self):
        for seed in range(100):
            _, row = self.made(seed)
            for i, at in enumerate(row.marks["match"]):
                if at > guidance.NOWHERE:
                    self.assertLess(at, i)
                    self.assertEqual(guidance.normal(self.text([row.ids[at]])), guidance.normal(self.text([row.ids[i]])))

    def test_no_head_is_told_to_look_ahead(self):
        for seed in range(100):
            _, row = self.made(seed, absent=seed % 4 == 0)
            for name in guidance.LABELS[:-1]:
                self.assertTrue(all(at <= i for i, at in enumerate(row.marks[name])), name)

    def test_rows_of_every_stage_have_labels_of_their_length(self):
        stream = Stream(self.encoder, 1)
        for step in (0, 50, 120, 500, 1000, 5000):
            rows, length = stream.batch(step)
            for row in rows:
                self.assertLess(len(row.ids), length)
                self.assertEqual(len(row.ids), len(row.weights))
                if row.marks:
                    self.assertEqual({len(values) for values in row.marks.values()}, {len(row.ids)})


if __name__ == "__main__":
    unittest.main()
