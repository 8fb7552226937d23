"""Puts facts together into passages and asks one of them: the items that the model is trained and tested on.

An item's question is answered by exactly one sentence of one passage, or by none. The answer is the passage's number and
that sentence as it stands, or ABSENT.
"""

from dataclasses import dataclass

import entities
import known
import open_relations
import values
from facts import sentence

ABSENT = "The context does not contain the answer."
LEADS = ("In general, ", "As a rule, ", "At present, ", "Please note: ", "This year, ", "According to our records, ", "Since last year, ", "By the way, ")


@dataclass
class Item:
    question: str
    passages: list
    answer: str
    gold: str | None
    cited: int | None
    key: tuple = ()
    facts: list = None  # for each passage its facts
    sentences: list = None  # for each passage its sentences as they stand
    answered_by: tuple | None = None  # which passage and which of its sentences, from zero
    kin: list | None = None  # for each sentence: is it about the question's entity, does it say what is asked
    topic: str | None = None  # what the question asks
    topics: list | None = None  # what each sentence says
    family: str = ""

    @property
    def prompt(self):
        return prompt(self.question, self.passages)


def prompt(question, passages):
    """The one user message that holds all."""
    return "\n".join([f"Question: {question}"] + [f"[{i}] {text}" for i, text in enumerate(passages, 1)])


def make_fact(w, file=None):
    """A fact of any family; with `file`, of that relation file."""
    if file:
        return known.make(w, file)
    return known.make(w) if w.rng.random() < 0.5 else open_relations.make(w)


def kinship(target, fact):
    """Whether `fact` is about the entity of `target`, and whether it says that kind of thing; (None, None) where the question
    names no entity."""
    bare = lambda part: part.lower().removeprefix("the ")
    entity = bare(target.entity)
    if entity not in map(bare, target.key):
        return None, None
    rest = {part for part in target.key if bare(part) != entity}
    about = bare(fact.entity) == entity or any(entity in map(bare, key) for key in fact.keys)
    return about, any(rest <= set(key) for key in fact.keys)


def topic(fact):
    """The fact's relation or family."""
    first = fact.key[0]
    if first in ("who", "what", "where", "when"):
        return "deed"
    return fact.key[1] if hasattr(entities, first) else first


def lead(w, text):
    """Sometimes an opening before the sentence."""
    if w.rng.random() > 0.06:
        return text
    first = text.split(" ")[0].strip(".,")
    # A name keeps its capital.
    rest = text[0].lower() + text[1:] if first in ("The", "You", "It", "He", "She", "A", "There", "If", "When", "To", "For") else text
    return w.rng.choice(LEADS) + rest


def tail(w, text):
    """Sometimes a clause after the sentence, so that the answer is only a part of it."""
    r = w.rng
    if r.random() > 0.12 or not text.endswith("."):
        return text
    clause = r.choice((
        lambda: f", but not {values.days(w)}", lambda: f", except {values.location(w)}", lambda: f", so {w.pick('group')} {w.verb()[0]} {values.the_thing(w)}",
        lambda: f", which {values.person(w)} {w.verb()[1]}", lambda: f", and {w.pick('group')} can {w.verb()[0]} {values.the_thing(w)}", lambda: f", as {values.the_thing(w)} shows",
        lambda: f" if {values.the_thing(w)} is {w.pick('adjective')}", lambda: f", with {values.objects(w)}", lambda: f" ({values.thing(w)})", lambda: f"; {values.the_thing(w)} is {w.pick('adjective')}",
        lambda: f", unless {values.the_thing(w)} is {values.state(w)}", lambda: f" and {w.verb()[2]} {values.the_thing(w)}", lambda: f", although {values.reason(w)}",
    ))()
    return text[:-1] + clause + "."


def passage(w, facts):
    """The facts as sentences. Returns the text and each fact's sentence in it."""
    said, named = [], set()
    for fact in facts:
        use_short = fact.short and fact.entity in named and w.rng.random() < 0.6
        said.append(tail(w, lead(w, fact.short if use_short else fact.sentence)))
        # A pronoun means whatever was named last.
        named = {fact.entity}
    return " ".join(said), said


def loosely(question, target, others):
    """Asks for "the museum" where only one museum is spoken of."""
    words = target.entity.split()
    last = words[-1].lower()
    if len(words) < 2 or not last.isalpha() or any(last in other.lower() for other in others):
        return question
    return question.replace(target.entity, "the " + last)


def item(w, count, absent, hard, file=None, target=None, longest=3):
    """`count` passages; `absent`: no passage answers; `hard`: how likely a distractor resembles the target."""
    r = w.rng
    target = target or make_fact(w, file)
    groups = []
    similar = lambda how: target.near(w, how)

    def free(fact):
        return target.key not in fact.keys and not (fact.keys & taken)

    taken = set(target.keys)

    def add(group, fact):
        if free(fact):
            group.append(fact)
            taken.update(fact.keys)

    home = []
    # Facts that keep the target company, mostly about the same entity.
    for _ in range(r.choice((0, 0, 1, 1, 2)) if longest > 1 else 0):
        add(home, similar("entity") if r.random() < 0.75 else make_fact(w))
    if not absent:
        home.insert(r.randint(0, len(home)), target)
    elif not home:
        add(home, similar(r.choice(("entity", "relation"))) if r.random() < 0.8 else make_fact(w))
    if home:
        groups.append(home)
    while len(groups) < count:
        group = []
        if r.random() < hard:
            other = similar("relation" if r.random() < 0.65 else "entity")
        else:
            other = make_fact(w)
        add(group, other)
        for _ in range(r.choice((0, 0, 0, 1, 1, 2)) if longest > 1 else 0):
            if group and r.random() < 0.7:
                add(group, group[0].near(w, "entity"))
            else:
                add(group, make_fact(w))
        if group:
            r.shuffle(group)
            groups.append(group)
    r.shuffle(groups)
    texts, sentences, answer, cited, answered_by = [], [], ABSENT, None, None
    for i, group in enumerate(groups, 1):
        text, said = passage(w, group)
        texts.append(text)
        sentences.append(said)
        place = next((at for at, fact in enumerate(group) if fact is target), None)
        if not absent and place is not None:
            cited, answered_by = i, (i - 1, place)
            answer = f"[{i}] {said[place]}"
    question = target.question
    if not absent and r.random() < 0.12:
        question = loosely(question, target, [fact.entity for group in groups for fact in group if fact is not target])
    return Item(question, texts, answer, None if absent else target.gold, cited, target.key, groups, sentences=sentences, answered_by=answered_by, kin=[[kinship(target, fact) for fact in group] for group in groups],
                topic=topic(target), topics=[[topic(fact) for fact in group] for group in groups])
