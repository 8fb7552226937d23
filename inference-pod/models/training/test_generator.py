"""Unit tests of the data generator: `python -m unittest` in this folder. They need neither torch nor a model."""

import random
import re
import unittest

import passages
import questions
import technical
import templates
import verbal
import words

FAMILIES = (verbal.make, verbal.strange, technical.make)

def items(seed, count, held_out=False, absent=False, file=None, family=None):
    w = words.Words(random.Random(seed), held_out=held_out)
    return [passages.item(w, w.rng.choice((2, 3, 4, 5)), absent, 0.7, file=file, target=family and family(w)) for _ in range(count)]


def of_every_kind(seed, count, **more):
    return [item for family in (None, *FAMILIES) for item in items(seed, count, family=family, **more)]


class Answered(unittest.TestCase):
    def test_the_cited_passage_holds_the_gold_phrase_and_the_answer(self):
        for held_out, file in ((False, None), (True, None), (True, "relations_held_out.txt")):
            for item in items(1, 600, held_out, file=file) if file else of_every_kind(1, 150, held_out=held_out):
                text = item.passages[item.cited - 1]
                self.assertIn(item.gold.lower(), text.lower())
                self.assertTrue(item.answer.startswith(f"[{item.cited}] "))
                self.assertIn(item.answer[4:], text)

    def test_only_one_sentence_answers(self):
        for item in of_every_kind(2, 200):
            answering = [fact for group in item.facts for fact in group if item.key in fact.keys]
            self.assertEqual(len(answering), 1)

    def test_numbers_follow_the_question(self):
        item = items(3, 1)[0]
        lines = item.prompt.split("\n")
        self.assertTrue(lines[0].startswith("Question: "))
        self.assertEqual([line[:4] for line in lines[1:]], [f"[{i}] " for i in range(1, len(lines))])


class Absent(unittest.TestCase):
    def test_no_fact_answers(self):
        for made in (of_every_kind(4, 150, held_out=True, absent=True), items(4, 600, True, absent=True, file="relations_held_out.txt")):
            for item in made:
                self.assertEqual(item.answer, passages.ABSENT)
                self.assertFalse(any(item.key in fact.keys for group in item.facts for fact in group))


class Split(unittest.TestCase):
    def test_no_held_out_word_is_trained_on(self):
        fixed = words.template_words()
        trained = set()
        w = words.Words(random.Random(16), invented=0.6)
        invented = [passages.item(w, 3, i % 3 == 0, 0.7) for i in range(800)]
        for item in of_every_kind(5, 400) + items(6, 800, absent=True) + invented:
            trained.update(words.words_of(item.prompt))
        lists = {part for name in words.LISTS for word in words.LISTS[name] for part in words.words_of(word)}
        leaked = {word for word in lists if words.is_held_out(word) and word not in fixed} & trained
        self.assertFalse(leaked)

    def test_pseudo_words_fall_on_one_side(self):
        for held_out in (False, True):
            w = words.Words(random.Random(7), held_out=held_out)
            self.assertTrue(all(words.is_held_out(word()) == held_out for word in (w.pseudo, w.coined) for _ in range(1000)))

    def test_training_draws_no_word_that_only_the_evaluation_asks(self):
        asked = words.asked_only_in_evaluation() - words.template_words()
        self.assertIn("motto", asked)
        drawn = {word.lower() for listed in words.Words(random.Random(1)).lists.values() for word in listed}
        self.assertFalse(asked & drawn)

    def test_no_held_out_relation_is_trained_on(self):
        held = templates.relations("relations_held_out.txt")
        known = templates.relations()
        self.assertFalse({r.name for r in held} & {r.name for r in known})
        mine = {t for r in known for t in r.statements + r.questions}
        self.assertFalse({t for r in held for t in r.statements + r.questions} & mine)
        # The fixed words of a held-out statement, in a row, occur in no training item.
        spoken = [re.sub(r"\{\w\}", ".+", re.escape(s).replace(r"\{", "{").replace(r"\}", "}")) for r in held for s in r.statements]
        patterns = [re.compile(p, re.I) for p in spoken if len(re.sub(r"\.\+", "", p)) > 12]
        sentences = [fact.sentence for item in of_every_kind(8, 200) for group in item.facts for fact in group]
        for pattern in patterns:
            for sentence in sentences:
                self.assertIsNone(pattern.fullmatch(sentence.rstrip(".")), sentence)

    def test_every_family_has_words_to_draw_on_both_sides(self):
        for held_out in (False, True):
            w = words.Words(random.Random(9), held_out=held_out)
            self.assertGreater(len(w.verbs), 5)
            self.assertGreater(len(w.lists["any"]), 80)


class Families(unittest.TestCase):
    def test_long_sentences_have_words_of_every_kind(self):
        said = [item.answer for item in items(11, 400, family=technical.subject)]
        lengths = sorted(len(text.split()) for text in said)
        self.assertGreater(lengths[len(lengths) // 2], 14)
        whole = " ".join(said)
        for kind in (r"\w-\w", r"\w_\w", r"\b[A-Z]{2,4}\b", r"\d+\.\d", r"\(", r", \w+ing "):
            self.assertGreater(len(re.findall(kind, whole)), 20, kind)

    def test_a_question_about_a_subject_names_it(self):
        for item in items(12, 300, family=technical.subject):
            names = item.key[1].replace("(", "").replace(")", "").split()
            self.assertTrue(any(name in item.question.lower() for name in names), (item.question, item.key))

    def test_another_question_about_the_same_entity_is_not_answered(self):
        w = words.Words(random.Random(13))
        for _ in range(400):
            fact = verbal.make(w)
            for how in ("entity", "relation"):
                # Now and then the other relation comes out the same; passages.item passes over that.
                other = fact.near(w, how)
                same = fact.entity == other.entity
                self.assertTrue(other.key != fact.key or same)
                self.assertEqual(same, how == "entity")

    def test_a_strange_question_shares_only_the_entity_with_its_sentence(self):
        w, shared = words.Words(random.Random(14)), 0
        for _ in range(300):
            fact = verbal.strange(w)
            spoken = set(words.words_of(fact.sentence)) - set(words.words_of(fact.entity))
            asked = set(words.words_of(fact.question)) - set(words.words_of(fact.entity)) - words.template_words()
            shared += bool(asked & spoken)
        self.assertLess(shared, 15)

    def test_every_aspect_can_be_said_and_asked(self):
        w = words.Words(random.Random(15))
        for aspect in verbal.NAMES:
            for _ in range(60):
                fact = verbal.make(w, aspect=aspect)
                self.assertNotIn("{", fact.sentence + fact.question)
                self.assertIn(fact.gold.lower(), fact.sentence.lower())


class Questions(unittest.TestCase):
    def test_variants_are_seeded_and_some_are_lower_case(self):
        asked = "When is the Tarvix museum open?"
        first = [questions.vary(random.Random(i), asked) for i in range(400)]
        self.assertEqual(first, [questions.vary(random.Random(i), asked) for i in range(400)])
        lower = sum(q == q.lower() for q in first) / 400
        self.assertTrue(0.18 < lower < 0.36, lower)

    def test_the_same_seed_gives_the_same_items(self):
        self.assertEqual([i.prompt for i in items(10, 50)], [i.prompt for i in items(10, 50)])


if __name__ == "__main__":
    unittest.main()
