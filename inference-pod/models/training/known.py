"""Facts of the fixed relations, those of relations.txt and, for the evaluation, those of relations_held_out.txt."""

import collections
import functools

import entities
import values
from facts import Fact, fill, key, sentence, with_pronoun
from templates import relations


@functools.cache
def by_entity(file):
    table = collections.defaultdict(list)
    for relation in relations(file):
        table[relation.entity].append(relation)
    return dict(table)


def fact(w, relation, entity=None):
    """A fact of `relation` about `entity`, or about an entity that is made up."""
    r = w.rng
    e = entity or entities.make(relation.entity, w)
    v = values.make(relation.value, w)
    template = r.choice(relation.statements)
    pronoun = "it" if relation.entity != "person" else ("she" if sum(map(ord, e)) % 2 else "he")
    short = with_pronoun(template, pronoun)
    asked = key(relation.entity, relation.name, e)

    def near(w2, how):
        if how == "relation":
            return fact(w2, relation, entities.near(relation.entity, w2, e))
        others = [x for x in by_entity("relations.txt").get(relation.entity, ()) if x.name != relation.name]
        return fact(w2, w2.rng.choice(others), e)

    return Fact(
        sentence(fill(template, e=e, v=v)), fill(r.choice(relation.questions), e=e, v=v), v, asked, frozenset([asked]), e,
        short and sentence(fill(short, v=v)), near,
    )


def make(w, file="relations.txt"):
    return fact(w, w.rng.choice(relations(file)))
