"""A fact: one sentence, a question that it answers, and how to make facts that resemble it."""

import re
from dataclasses import dataclass, field
from typing import Callable


@dataclass
class Fact:
    sentence: str  # the whole sentence, with its full stop
    question: str
    gold: str  # the words of the sentence that answer the question
    key: tuple  # what the question asks
    keys: frozenset  # everything asked by some question that this sentence answers
    entity: str = ""
    short: str | None = None  # the sentence as said of "it", after one that names the entity
    # near(w, how): a similar fact that does not answer the question. how is "entity" or "relation": what stays the same.
    near: Callable = field(default=None, repr=False)


def sentence(text):
    text = text.strip()
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else text + "."


def key(*parts):
    return tuple(part.lower() for part in parts)


def with_pronoun(template, pronoun):
    """A statement's template with a pronoun for {e}, or None where the entity does not come first."""
    if template.startswith("{e} "):
        return pronoun + template[3:]
    return None


def fill(template, **values):
    # Not str.format: a value may hold braces.
    return re.sub(r"\{(\w+)\}", lambda m: values[m[1]], template)
