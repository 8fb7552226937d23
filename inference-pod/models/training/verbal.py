"""Relations that are made up as they are asked: any verb, adjective or noun, most of them invented, and all that is said with it.

A relation that was never trained on has to be matched by its words: who does it with by whom it is done, how much of a quality with
the noun of that quality. Invented words leave no other way. `strange` goes further: question and statement share no word but the entity's, and
only what kind of thing is asked tells the sentence.
"""

import entities
import known
import values
from facts import Fact, fill, key, sentence, with_pronoun
from open_relations import ANY_ENTITY, bound
from words import asked_only_in_evaluation

SOMEBODY = ("person", "person", "person", "company", "animal")
SOMETHING = ("thing", "the_thing", "products", "food", "objects", "company", "person", "colour", "material", "pseudo", "exhibit", "sport", "city")
PLACES = ("location", "location", "in_city", "habitat")
TIMES = ("clock_at", "date_on", "year_in", "days", "month_in", "daytime")
SIZES = ("length", "weight", "duration", "money", "degrees", "speed_of", "percent", "count", "memory", "watts")
PREPOSITIONS = ("with", "for", "from", "against", "into", "under", "on", "through", "after", "without", "about", "to")

# ASPECT: (kinds of value, statements, questions). {b} {p} {t} {i}: a verb's base, past, third person and -ing form.
# {er}, {n}: nouns made from the verb; {x}: something more; {w}: a preposition; {c}: a plural noun; {a}, {m}: an adjective and its noun.
ASPECTS = {
    "who": (SOMEBODY, (
        "{e} is {p} by {v}", "{e} was {p} by {v} {x}", "{v} {t} {e}", "{v} {p} {e} {x}", "The one who {t} {e} is {v}", "The {er} of {e} is {v}", "{v} is the {er} of {e}", "{e} has {v} as its {er}",
        "The {i} of {e} was left to {v}", "{v} {t} {e} {x}", "{e} lets {v} {b} it", "In charge of {i} {e} is {v}",
    ), ("Who {t} {e}?", "Who {p} {e}?", "By whom is {e} {p}?", "Who is it that {t} {e}?", "Who is the {er} of {e}?", "Do you know who {t} {e}?", "Which person {t} {e}?", "Who has {p} {e}?", "What {t} {e}?")),
    "what": (SOMETHING, (
        "{e} {t} {v}", "{e} {p} {v} {x}", "{e} is known to {b} {v}", "The {n} of {e} is {v}", "{v} is {p} by {e}", "{e} can {b} {v}", "What {e} {t} is {v}", "{e} has {v} to {b}", "{e} began to {b} {v}",
    ), ("What does {e} {b}?", "What did {e} {b}?", "What is {p} by {e}?", "What has {e} {p}?", "What is the {n} of {e}?", "Which thing does {e} {b}?", "What can {e} {b}?", "Do you know what {e} {t}?")),
    "prep": (SOMETHING, (
        "{e} {t} {w} {v}", "{e} is {p} {w} {v}", "{e} was {p} {w} {v} {x}", "The {n} of {e} is {w} {v}", "{w} {v}, {e} is {p}",
    ), ("What does {e} {b} {w}?", "What is {e} {p} {w}?", "{w} what is {e} {p}?", "What was {e} {p} {w}?", "{w} what does {e} {b}?")),
    "where": (PLACES, (
        "{e} is {p} {v}", "{e} was first {p} {v}", "{e} {t} {v}", "{e} {p} {v}", "They {b} {e} {v}", "The {n} of {e} is {v}", "People {b} {e} {v}",
    ), ("Where is {e} {p}?", "Where was {e} {p}?", "Where does {e} {b}?", "Where did {e} {b}?", "Where do they {b} {e}?", "In which place is {e} {p}?", "Where is the {n} of {e}?")),
    "when": (TIMES, (
        "{e} is {p} {v}", "{e} was {p} {v}", "{e} {t} {v}", "{e} will be {p} {v}", "The {n} of {e} is {v}", "{v}, {e} {t}", "Do not {b} {e} before {v}",
    ), ("When is {e} {p}?", "When was {e} {p}?", "When does {e} {b}?", "When did {e} {b}?", "When is the {n} of {e}?", "On which day is {e} {p}?", "When may I {b} {e}?", "What is the {n} date of {e}?")),
    "long": (("duration",), (
        "{e} {t} for {v}", "{e} is {p} for {v}", "It takes {v} to {b} {e}", "The {n} of {e} takes {v}", "{e} needs {v} to {b}",
    ), ("How long does {e} {b}?", "How long is {e} {p}?", "For how long is {e} {p}?", "How long does it take to {b} {e}?", "How much time does the {n} of {e} take?")),
    "often": (("frequency",), (
        "{e} {t} {v}", "{e} is {p} {v}", "{e} must be {p} {v}", "The {n} of {e} takes place {v}",
    ), ("How often does {e} {b}?", "How often is {e} {p}?", "How often must {e} be {p}?", "How frequently is {e} {p}?")),
    "many": (("count", "number"), (
        "{e} {t} {v} {c}", "{e} {p} {v} {c} {x}", "{v} {c} are {p} by {e}", "Up to {v} {c} {b} {e}", "At most {v} {c} may {b} {e}", "{e} can {b} {v} {c}", "{e} is {p} by {v} {c}",
    ), ("How many {c} does {e} {b}?", "How many {c} did {e} {b}?", "How many {c} are {p} by {e}?", "How many {c} {b} {e}?", "What is the number of {c} that {b} {e}?", "How many {c} can {b} {e}?")),
    "much": (("money", "percent", "weight", "memory"), (
        "{e} {t} {v} {x}", "{e} {p} {v}", "The {n} of {e} was {v}", "{e} could {b} {v}", "{v} were {p} by {e}", "{e} {p} {v} {x}",
    ), ("How much does {e} {b}?", "How much did {e} {b}?", "What was the {n} of {e}?", "How much is {p} by {e}?", "How much has {e} {p}?")),
    "why": (("reason",), (
        "{e} {t} because {v}", "{e} was {p} because {v}", "Because {v}, {e} {p}", "As {v}, {e} must {b}",
    ), ("Why does {e} {b}?", "Why was {e} {p}?", "Why did {e} {b}?", "For what reason is {e} {p}?")),
    "how": (("means",), (
        "{e} {t} others {v}", "{e} is {p} {v}", "One can {b} {e} {v}", "{e} {t} {v}", "You {b} {e} {v}",
    ), ("How does {e} {b} others?", "How is {e} {p}?", "How can one {b} {e}?", "How does {e} {b}?", "How do I {b} {e}?", "In what way is {e} {p}?")),
    "degree": (SIZES, (
        "{e} is {v} {a}", "The {m} of {e} is {v}", "{e} has a {m} of {v}", "{e} reaches a {m} of {v}", "{v} is the {m} of {e}", "{e} gets {v} {a}", "With {v}, {e} is quite {a}", "The {x2} {m} of {e} is {v}",
    ), ("How {a} is {e}?", "What is the {m} of {e}?", "How {a} does {e} get?", "Which {m} does {e} have?", "How great is the {m} of {e}?", "How {a} can {e} be?")),
    "noun": (SOMEBODY + SOMETHING, (
        "The {o} of {e} is {v}", "{v} is the {o} of {e}", "{e} has {v} as {o}", "{e} calls {v} its {o}", "For {e}, the {o} is {v}", "The {o} of {e} is: {v}", "{e} has the {o}: {v}", "{e} comes under the {v} {o}", "As {o}, {e} has {v}",
        "{e} chose {v} as {o}",
    ), ("What is the {o} of {e}?", "Who is the {o} of {e}?", "Which {o} does {e} have?", "What {o} does {e} have?", "Under which {o} does {e} come?", "What does {e} have as {o}?", "Do you know the {o} of {e}?")),
}
NAMES = tuple(ASPECTS)
# Real adjectives and nouns that belong together in ways that no rule tells.
DEGREES = (("wide", "width"), ("long", "length"), ("strong", "strength"), ("hot", "heat"), ("warm", "warmth"), ("heavy", "weight"), ("high", "height"), ("old", "age"), ("thick", "thickness"), ("bright", "brightness"), ("loud", "loudness"), ("hard", "hardness"), ("steep", "steepness"), ("large", "size"), ("far", "distance"))
# The most frequent verbs that do not follow the rule, with nouns of their own.
IRREGULAR = (
    ("grow", "grew", "grows", "growing", "grower", "growth", "grown"), ("sing", "sang", "sings", "singing", "singer", "song", "sung"), ("know", "knew", "knows", "knowing", "knower", "knowledge", "known"),
    ("speak", "spoke", "speaks", "speaking", "speaker", "speech", "spoken"), ("wear", "wore", "wears", "wearing", "wearer", "wear", "worn"), ("break", "broke", "breaks", "breaking", "breaker", "breakage", "broken"),
    ("steal", "stole", "steals", "stealing", "thief", "theft", "stolen"), ("ride", "rode", "rides", "riding", "rider", "ride", "ridden"), ("win", "won", "wins", "winning", "winner", "victory", "won"),
    ("choose", "chose", "chooses", "choosing", "chooser", "choice", "chosen"), ("pay", "paid", "pays", "paying", "payer", "payment", "paid"), ("judge", "judged", "judges", "judging", "judge", "judgement", "judged"),
    ("feed", "fed", "feeds", "feeding", "feeder", "food", "fed"), ("lead", "led", "leads", "leading", "leader", "lead", "led"), ("heal", "healed", "heals", "healing", "healer", "health", "healed"),
    ("advise", "advised", "advises", "advising", "adviser", "advice", "advised"), ("lose", "lost", "loses", "losing", "loser", "loss", "lost"), ("weigh", "weighed", "weighs", "weighing", "weigher", "weight", "weighed"),
)


def value(kind, w):
    r = w.rng
    if kind == "in_city":
        return "in " + values.city(w)
    if kind == "clock_at":
        return "at " + values.clock(w)
    if kind == "date_on":
        return "on " + values.date(w)
    if kind == "year_in":
        return "in " + values.year(w)
    if kind == "month_in":
        return "in " + values.month(w)
    if kind == "speed_of":
        return values.speed(w)
    if kind == "means":
        return r.choice((f"by {w.verb()[3]} {values.the_thing(w)}", f"with a {values.thing(w)}", f"by means of {values.the_thing(w)}", f"with {values.the_thing(w)} and {values.the_thing(w)}"))
    return values.make(kind, w)


def verb(w):
    """Base, past, third person, -ing, who does it, what it comes to, participle. Mostly invented, and regular."""
    r = w.rng
    if r.random() < 0.12:
        return r.choice(IRREGULAR)
    if r.random() < 0.3:
        base, past, third, ing = w.verb()
        return base, past, third, ing, ing.removesuffix("ing") + "er", ing, past if past.endswith("ed") else None
    base = w.pseudo() if r.random() < 0.6 else w.coined()
    stem = base.rstrip("aeiou") or base
    past, noun = stem + "ed", stem + r.choice(("ing", "ment", "ation", "ance", "al", ""))
    return base, past, base + "s", stem + "ing", stem + r.choice(("er", "er", "or")), noun, past


def words_for(w, aspect):
    """The words that make up one relation."""
    r = w.rng
    while True:
        base, past, third, ing, er, noun, participle = verb(w)
        if participle and w.may_say(er) and w.may_say(noun):
            break
    adjective, measure = r.choice(DEGREES)
    if r.random() < 0.65:
        known_one = w.pick("adjective")
        adjective = known_one if r.random() < 0.3 and known_one not in asked_only_in_evaluation() else w.pseudo()
        measure = adjective + r.choice(("ness", "ness", "th", "ity"))
    name = r.choice((w.pseudo, w.coined, lambda: w.pick("attribute"), lambda: w.pick("noun"), lambda: w.pick("technical"), lambda: w.pick("job")))()
    return {
        "b": base, "p": participle, "t": third, "i": ing, "er": er, "n": noun, "a": adjective, "m": measure, "o": name, "w": r.choice(PREPOSITIONS),
        "c": w.pick(r.choice(("thing", "group", "animal"))).removesuffix("s") + "s",
    }


def identity(aspect, said):
    return {"degree": said["m"], "noun": said["o"], "prep": said["b"] + " " + said["w"], "many": said["b"] + " " + said["c"]}.get(aspect, said["b"])


def make(w, how=None, aspect=None, said=None, kind=None, entity=None, asking=None):
    """A fact; `said`: the relation's words; `asking`: other words for the question, of a stranger."""
    r = w.rng
    near = how is not None
    if how == "entity":
        # Of the same entity: another relation, or the same verb with another question to it.
        choice = r.random()
        if asking or choice < 0.3:
            others = known.by_entity("relations.txt").get(kind, ())
            if others:
                return known.fact(w, r.choice(others), entity)
        asking = None
        if choice < 0.55 and aspect not in ("degree", "noun"):
            aspect = r.choice([name for name in NAMES if name not in (aspect, "degree", "noun")])
        else:
            aspect, said = r.choice((aspect, aspect, r.choice(NAMES))), None
    elif how == "relation":
        entity = entities.near(kind, w, entity)
    aspect, kind = aspect or r.choice(NAMES), kind or r.choice(ANY_ENTITY)
    said, entity = said or words_for(w, aspect), entity or entities.make(kind, w)
    kinds, statements, questions = ASPECTS[aspect]
    v = value(r.choice(kinds), w)
    # Something more, which answers no question that is asked here.
    more = r.choice(("", "", f"with {values.the_thing(w)}", f"in {w.pick('noun')}s", f"for {values.the_thing(w)}", f"like {values.the_thing(w)}")) if aspect not in ("prep", "how") else ""
    template = r.choice(statements)
    spoken = {key: text for key, text in said.items()} | {"e": entity, "v": v, "x": more, "x2": r.choice(("top", "average", "usual", "greatest"))}
    said_of_it = with_pronoun(template, "it" if kind != "person" else ("she" if sum(map(ord, entity)) % 2 else "he"))
    asked = key("verbal", aspect, identity(aspect, said), entity)
    question = " ".join(fill(r.choice(questions), **((asking or said) | {"e": entity})).split())
    clean = lambda text: sentence(" ".join(text.split()))
    return Fact(
        clean(fill(template, **spoken)), question[0].upper() + question[1:], v, asked, frozenset([asked]), entity, said_of_it and clean(fill(said_of_it, **spoken)),
        bound(make, aspect=aspect, said=said, kind=kind, entity=entity, asking=asking),
    )


def strange(w):
    """Question and statement have other words for the same relation."""
    aspect = w.rng.choice([name for name in NAMES if name not in ("prep", "noun", "many")])
    said, asking = words_for(w, aspect), words_for(w, aspect)
    return make(w, aspect=aspect, said=said, asking=asking)
