"""Families of relations with an open vocabulary: any attribute, any deed, any definition, instruction, rule or reason.

What the fixed relations cannot teach is learned here: to match a question with a sentence by the words that they share,
whatever these words are.
"""

import entities
import values
from facts import Fact, fill, key, sentence

ANY_ENTITY = ("place", "device", "person", "animal", "plant", "event", "route", "company", "goods", "tool", "dish", "account", "medicine")
ANY_VALUE = ("number", "clock", "date", "year", "duration", "money", "percent", "person", "city", "length", "weight", "material", "colour", "pseudo", "room", "thing", "the_thing", "company", "food", "version")


def bound(maker, **fixed):
    """A near-fact maker that remembers what its fact was made of."""
    return lambda w, how: maker(w, how, **fixed)


# The {attribute} of {entity} is {value}.
ATTRIBUTE_STATEMENTS = ("The {a} of {e} is {v}", "The {a} of {e} is {v}", "{e} has the {a} {v}", "For {e}, the {a} is {v}", "{e} has a {a} of {v}", "As {a} of {e}, {v} was chosen", "{v} is the {a} of {e}", "{e}: {a} {v}")
ATTRIBUTE_QUESTIONS = ("What is the {a} of {e}?", "What is the {a} of {e}?", "What {a} does {e} have?", "Which {a} does {e} have?", "Tell me the {a} of {e}.", "{a} of {e}?", "What is {e}'s {a}?", "Do you know the {a} of {e}?", "I need the {a} of {e}.", "Can you give me the {a} of {e}?")


def attribute_name(w):
    form = w.rng.random()
    if form < 0.5:
        return w.pick("attribute")
    if form < 0.65:
        return f"{w.pick('adjective')} {w.pick('attribute')}"
    if form < 0.8:
        return f"{w.pick('noun')} {w.pick('attribute')}"
    if form < 0.9:
        return w.pick("noun")
    return w.pseudo()


def attribute(w, how=None, entity=None, kind=None, name=None, value=None):
    if how == "entity":
        name, value = None, None
    elif how == "relation":
        entity = entities.near(kind, w, entity)
    kind = kind or w.rng.choice(ANY_ENTITY)
    entity, name = entity or entities.make(kind, w), name or attribute_name(w)
    value = value or w.rng.choice(ANY_VALUE)
    v = values.make(value, w)
    template = w.rng.choice(ATTRIBUTE_STATEMENTS)
    asked = key("attribute", entity, name)
    short = fill("Its {a} is {v}", a=name, v=v) if template.startswith("The") and kind != "person" else None
    return Fact(
        sentence(fill(template, a=name, e=entity, v=v)), fill(w.rng.choice(ATTRIBUTE_QUESTIONS), a=name, e=entity), v, asked,
        frozenset([asked]), entity, short and sentence(short), bound(attribute, entity=entity, kind=kind, name=name, value=value),
    )


# {who} {did} {what} {where} {when}.
def deed(w, how=None, **parts):
    r = w.rng
    ask = parts.pop("ask", None) or r.choice(("who", "who", "what", "what", "where", "when"))
    if how:
        # What the question names is changed in one place, so that the rest still matches.
        named = {"who": ("verb", "what"), "what": ("who", "verb"), "where": ("who", "what"), "when": ("who", "what")}[ask]
        for part in (r.choice(named), ask):
            parts.pop(part, None)
    who = parts.get("who") or r.choice((values.person, values.person, values.the_thing, values.company, lambda x: "the " + x.pick("job")))(w)
    verb = parts.get("verb") or w.verb()
    what = parts.get("what") or values.the_thing(w)
    where = parts.get("where") or values.location(w)
    when = parts.get("when") or r.choice((lambda x: "in " + values.year(x), lambda x: "on " + values.date(x), lambda x: "at " + values.clock(x), values.days, lambda x: "in " + values.month(x)))(w)
    base, past = verb[:2]
    more = {"who": r.choice(("", " " + when, " " + where)), "what": r.choice(("", " " + when, " " + where)), "where": r.choice((" " + where, f" {where} {when}")), "when": r.choice((" " + when, f" {where} {when}"))}[ask]
    if ask == "who":
        text, question, gold = r.choice((f"{who} {past} {what}{more}", f"{what} was {past} by {who}{more}" if not past.endswith(("ew", "ook", "ave")) else f"{who} {past} {what}{more}")), r.choice((f"Who {past} {what}?", f"Who was it that {past} {what}?", f"By whom was {what} {past}?")), who
    elif ask == "what":
        text, question, gold = f"{who} {past} {what}{more}", r.choice((f"What did {who} {base}?", f"What has {who} {past}?", f"Which thing did {who} {base}?")), what
    elif ask == "where":
        text, question, gold = f"{who} {past} {what}{more}", r.choice((f"Where did {who} {base} {what}?", f"Where was it that {who} {past} {what}?")), where
    else:
        text, question, gold = r.choice((f"{who} {past} {what}{more}", f"{when[0].upper() + when[1:]}, {who} {past} {what}")), r.choice((f"When did {who} {base} {what}?", f"When was {what} {past} by {who}?", f"When was it that {who} {past} {what}?")), when
    keys = {key("who", base, what), key("what", who, base)} | {key("where", who, base, what), key("when", who, base, what)}
    asked = {"who": key("who", base, what), "what": key("what", who, base), "where": key("where", who, base, what), "when": key("when", who, base, what)}[ask]
    return Fact(sentence(text), question, gold, asked, frozenset(keys), who, None, bound(deed, ask=ask, who=who, verb=verb, what=what, where=where, when=when))


# Definitions and explanations of a concept.
KINDS = "tool method device practice technique service process system plant disease unit game dance tradition machine format protocol program material instrument custom dish festival language policy component".split()
DEFINITION_QUESTIONS = ("What is {c}?", "What is {c}?", "Tell me about {c}.", "Explain {c}.", "Explain in detail how {c} works.", "How does {c} work?", "What does {c} do?", "What do you know about {c}?", "Provide a complex explanation of {c} in detail.", "What is meant by {c}?", "Can you explain {c}?", "How does {c} help with {n}?", "What is {c} and {o}?", "Tell me about {c} and {o}.", "Explain in detail how {c} works in {n}.", "Describe {c}.", "Why is {c} useful?", "What can {c} do?", "Define {c}.", "Provide an explanation of {c} for {n}.", "How does {c} help with {n}?")


def concept_name(w):
    r, form = w.rng, w.rng.random()
    if form < 0.3:
        return w.name()
    if form < 0.4:
        return "".join(r.choice("ABCDEFGHIKLMNOPRSTV") for _ in range(r.randint(2, 4)))
    if form < 0.5:
        return r.choice((f"{''.join(r.choice('ABCDGKLMNPRSTV') for _ in range(3))}{r.choice(('s', 'Ops', 'Net', 'x'))}", w.name() + r.choice(("Ops", "DB", "Net", "Kit"))))
    if form < 0.8:
        return f"{w.pick('adjective')} {w.pick('noun')} {w.verb()[3]}" if r.random() < 0.5 else f"{w.pick('noun')} {w.verb()[3]}"
    return f"{w.pick('adjective')} {w.pick('noun')}"


def noun_list(w):
    r = w.rng
    one = lambda: r.choice((w.pick("noun"), f"{w.pick('adjective')} {w.pick('noun')}s", f"{w.pick('noun')} {w.pick('attribute')}"))
    return f"{one()} and {one()}" if r.random() < 0.4 else f"{one()}, {one()} and {one()}" if r.random() < 0.5 else f"{one()}, {one()}, and {one()}"


def definition(w, how=None, concept=None):
    r = w.rng
    if how:
        other = concept_name(w).split()
        words = concept.split()
        concept = " ".join(other[:-1] + words[-1:]) if len(words) > 1 and len(other) > 1 and r.random() < 0.6 else " ".join(other)
    c = concept or concept_name(w)
    v, v2 = w.verb(), w.verb()
    n, article = w.pick("noun"), r.choice(KINDS)
    article = ("an " if article[0] in "aeiou" else "a ") + (r.choice(("", "", "simple ", "leading ", "large ", "small ", "common ")) if article[0] not in "aeiou" else "") + article
    tail = r.choice((f" for {v[3]} {values.thing(w)}s", f" that {v[2]} {noun_list(w)}", f" that is used to {v[0]} {values.thing(w)}s and {v2[0]} {n}s", f", including {noun_list(w)}", f" in {n}s", f" to {v[0]} {noun_list(w)}"))
    form = r.random()
    if form < 0.35:
        text, gold = f"{c} is {article}{tail}", f"{article}{tail}"
    elif form < 0.45:
        gold = f"the practice of {v[3]} {values.thing(w)}s in {w.pick('noun')}s, ensuring {noun_list(w)}"
        text = f"{c} is {gold}"
    elif form < 0.6:
        gold = r.choice((f"allows a {w.pick('job')} to {v[0]} {values.thing(w)}s based on {noun_list(w)}", f"lets {w.pick('group')} {v[0]} {values.thing(w)}s and {v2[0]} {n}s", f"combines {w.pick('noun')} {w.verb()[3]} with {w.pick('noun')} {w.verb()[3]} to {v[0]} {n}s in {values.thing(w)}s, which {r.choice(('reduces', 'improves', 'protects'))} {n}"))
        text = f"{c} {gold}"
    elif form < 0.75:
        gold = r.choice((f"involves {noun_list(w)}", f"requires {v[3]} {values.thing(w)}s like {noun_list(w)}", f"means {v[3]} {values.thing(w)}s and {v2[3]} {n}s", f"is done by {v[3]} {values.thing(w)}s", f"is crucial for {v[3]} {noun_list(w)} in {values.thing(w)}s"))
        text = f"{c} {gold}"
    elif form < 0.87:
        gold = f"{r.choice(('are crucial for', 'are used for', 'help with', 'are needed for'))} {v[3]} {noun_list(w)}"
        text = f"{c} {r.choice(('strategies', 'methods', 'systems', 'tools'))}, including {noun_list(w)}, {gold}"
    else:
        gold = f"{v[2]} {values.thing(w)}s {r.choice(('when', 'before', 'after', 'while'))} {w.pick('group')} {v2[0]} {noun_list(w)}"
        text = f"{c} {gold}"
    asked = key("definition", c)
    question = fill(r.choice(DEFINITION_QUESTIONS), c=c, n=r.choice((n, w.pick("noun"), f"{w.pick('noun')} {w.pick('noun')}")), o=concept_name(w))
    return Fact(sentence(text), question, gold, asked, frozenset([asked]), c, None, bound(definition, concept=c))


# To {do this}, {do that}.
def instruction(w, how=None, verb=None, what=None):
    r = w.rng
    if how:
        verb, what = (None, what) if how == "entity" else (verb, None)
    verb, what = verb or w.verb(), what or r.choice((values.the_thing, values.the_thing, lambda x: "a " + values.thing(x), lambda x: "my " + values.thing(x), lambda x: values.thing(x) + "s"))(w)
    said = what.replace("my ", r.choice(("your ", "a ", "the ")))
    gold = values.action(w)
    text = r.choice((f"To {verb[0]} {said}, {gold}", f"{gold} to {verb[0]} {said}", f"If you want to {verb[0]} {said}, {gold}", f"{verb[3]} {said} is simple: {gold}", f"You can {verb[0]} {said} if you {gold}", f"Before you {verb[0]} {said}, {gold}"))
    question = r.choice((f"How do I {verb[0]} {what}?", f"How can I {verb[0]} {what}?", f"How do you {verb[0]} {what}?", f"What is the way to {verb[0]} {what}?", f"I want to {verb[0]} {what}. What should I do?", f"What must I do to {verb[0]} {what}?", f"How is {what} {verb[1]}?" if not what.startswith("my") else f"How do I {verb[0]} {what}?"))
    asked = key("instruction", verb[0], what)
    return Fact(sentence(text), question, gold, asked, frozenset([asked]), what, None, bound(instruction, verb=verb, what=what))


# If {the thing} {fails}, {do that}.
SYMPTOMS = ("does not start", "makes a noise", "is too hot", "smells of smoke", "leaks", "is stuck", "shows an error", "will not open", "is lost", "is slow", "does not answer", "falls down", "gets wet", "breaks", "is blocked", "shakes", "stops suddenly", "is missing", "will not close", "runs out")


def trouble(w, how=None, what=None, symptom=None):
    r = w.rng
    if how:
        what, symptom = (what, None) if how == "entity" else (None, symptom)
    what, symptom = what or values.thing(w), symptom or r.choice(SYMPTOMS)
    gold = values.action(w)
    text = r.choice((f"If the {what} {symptom}, {gold}", f"When the {what} {symptom}, {gold}", f"{gold} if the {what} {symptom}", f"If your {what} {symptom}, {gold}", f"{gold} when your {what} {symptom}"))
    question = r.choice((f"What should I do if the {what} {symptom}?", f"The {what} {symptom}. What can I do?", f"My {what} {symptom}, what now?", f"What do I do when the {what} {symptom}?", f"What can I do when my {what} {symptom}?", f"Help, my {what} {symptom}!", f"What helps if the {what} {symptom}?"))
    asked = key("trouble", what, symptom)
    return Fact(sentence(text), question, gold, asked, frozenset([asked]), "the " + what, None, bound(trouble, what=what, symptom=symptom))


# {Group} may {do this}.
def rule(w, how=None, group=None, verb=None, what=None):
    r = w.rng
    if how:
        group, verb, what = r.choice(((None, verb, what), (group, None, None), (group, None, what), (group, verb, None)))
    group, verb, what = group or w.pick("group"), verb or w.verb(), what or values.the_thing(w)
    condition = r.choice(("", "", " " + values.location(w), " " + values.days(w), " without " + values.thing(w), f" if they {w.verb()[0]} {values.the_thing(w)}", f" for {values.duration(w)}", " before " + values.clock(w)))
    can = r.choice(("may", "can", "must", "are allowed to", "are not allowed to", "must not", "cannot", "have to", "do not have to"))
    gold = f"{can} {verb[0]} {what}{condition}"
    asked = key("rule", group, verb[0], what)
    one = r.choice((f"Can {group} {verb[0]} {what}?", f"May {group} {verb[0]} {what}?", f"Are {group} allowed to {verb[0]} {what}?", f"Do {group} have to {verb[0]} {what}?", f"What are the rules if {group} {verb[0]} {what}?", f"Is it all right if {group} {verb[0]} {what}?"))
    return Fact(sentence(f"{group} {gold}"), one, gold, asked, frozenset([asked]), group, None, bound(rule, group=group, verb=verb, what=what))


# {Something} was {done} because {reason}.
def cause(w, how=None, what=None, verb=None):
    r = w.rng
    if how:
        what, verb = (what, None) if how == "entity" else (None, verb)
    what, verb = what or values.the_thing(w), verb or w.verb()
    gold = values.reason(w)
    text = r.choice((f"{what} was {verb[1]} because {gold}", f"Because {gold}, {what} was {verb[1]}", f"{what} was {verb[1]}, as {gold}", f"Since {gold}, {what} was {verb[1]}"))
    question = r.choice((f"Why was {what} {verb[1]}?", f"Why was {what} {verb[1]}?", f"For what reason was {what} {verb[1]}?", f"What is the reason that {what} was {verb[1]}?"))
    asked = key("cause", what, verb[0])
    return Fact(sentence(text), question, gold, asked, frozenset([asked]), what, None, bound(cause, what=what, verb=verb))


# {The thing} is {somewhere}.
def whereabouts(w, how=None, what=None):
    r = w.rng
    if how:
        words, other = what.split(), values.thing(w).split()
        what = " ".join(other[:-1] + words[-1:]) if len(words) > 1 and len(other) > 1 and r.random() < 0.6 else " ".join(other)
    what = what or values.thing(w)
    gold = values.location(w)
    plural = r.random() < 0.25
    name, be = (what + "s", "are") if plural else (what, "is")
    text = r.choice((f"The {name} {be} {gold}", f"The {name} {be} {gold}", f"You find the {name} {gold}", f"There {be} {'' if plural else 'a '}{name} {gold}", f"The {name} stand{'' if plural else 's'} {gold}", f"{gold[0].upper() + gold[1:]} {be} the {name}"))
    question = r.choice((f"Where {be} the {name}?", f"Where can I find the {name}?", f"Where do I find the {name}?", f"How do I get to the {name}?", f"Is there a {what} here?" if not plural else f"Where are the {name}?", f"I am looking for the {name}."))
    asked = key("whereabouts", what)
    return Fact(sentence(text), question, gold, asked, frozenset([asked]), "the " + name, None, bound(whereabouts, what=what))


# {The thing} is {adjective}: which one, what is it like.
def count_of(w, how=None, container=None, item=None):
    r = w.rng
    if how:
        container, item = (container, None) if how == "entity" else (None, item)
    container, item = container or entities.make(r.choice(("place", "device", "tool", "company", "account")), w), item or (w.pick("adjective") + " " if r.random() < 0.3 else "") + w.pick(r.choice(("thing", "noun", "animal"))) + "s"
    gold = values.count(w)
    text = r.choice((f"{container} has {gold} {item}", f"There are {gold} {item} in {container}", f"{gold} {item} belong to {container}", f"{container} holds {gold} {item}", f"The number of {item} in {container} is {gold}"))
    question = r.choice((f"How many {item} does {container} have?", f"How many {item} are there in {container}?", f"How many {item} are in {container}?", f"What is the number of {item} in {container}?", f"How many {item} belong to {container}?"))
    asked = key("count", container, item)
    return Fact(sentence(text), question, gold, asked, frozenset([asked]), container, None, bound(count_of, container=container, item=item))


FAMILIES = (attribute, attribute, attribute, deed, deed, deed, definition, definition, instruction, instruction, trouble, rule, cause, whereabouts, count_of)


def make(w):
    return w.rng.choice(FAMILIES)(w)
