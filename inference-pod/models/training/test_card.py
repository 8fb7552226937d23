"""Tests of what the model's card says: `python -m unittest` in this folder. They need neither torch nor a model."""

import unittest

import card


def line(step, tokens, **more):
    return {"step": step, "tokens": tokens, "loss": 0.5, "exact": 0.25, "citation": 0.5, "refusal": 0.75, **more}


class Curve(unittest.TestCase):
    def test_a_run_begins_where_the_steps_begin_anew(self):
        runs = card.runs_of([line(100, 1), line(200, 2), line(50, 1), line(150, 3)])
        self.assertEqual([[l["step"] for l in run] for run in runs], [[100, 200], [50, 150]])

    def test_it_ends_with_the_last_line(self):
        self.assertIn("| 100 | 2.00 |", card.curve([line(step, step * 20_000) for step in range(1, 101)]).splitlines()[-1])

    def test_sets_that_an_earlier_run_did_not_measure_have_no_column_there(self):
        newer = line(1, 1_000_000, relations={"exact": 0.1, "citation": 0.2, "refusal": 0.3})
        text = card.curves([[line(1, 1)], [newer]])
        self.assertEqual(text.count("Unseen relations"), 1)
        self.assertIn("| 0.10, 0.20, 0.30 |", text)


class Table(unittest.TestCase):
    def figure(self, value):
        return {"rate": value, "n": 400, "interval": [value - 0.03, value + 0.03]}

    def test_goals_are_compared(self):
        group = {name: self.figure(0.87) for name in ("gold", "citation", "refusal")} | {"false_refusal": self.figure(0.02)}
        text = card.table({"unseen_words": group, "unseen_words_lower_case": {"gold": self.figure(0.8)}})
        self.assertIn(">= 0.85, met", text)
        self.assertIn(">= 0.93, **missed**", text)
        self.assertIn("<= 0.03, met", text)
        self.assertIn("costs 7.0 points of gold phrases (goal: within 3, **missed**)", text)


if __name__ == "__main__":
    unittest.main()
