"""Long sentences as manuals and reports have them: rare words in many pieces, hyphens, abbreviations, code, units and lists.

What they teach is to copy exactly, to the end, whatever the words are, and to find the passage that is about a subject among
passages that only mention it.
"""

import values
from facts import Fact, fill, key, sentence
from open_relations import DEFINITION_QUESTIONS, KINDS, bound

LETTERS = "ABCDEFGHIKLMNOPQRSTUVWXZ"


def abbreviation(w):
    while True:
        letters = "".join(w.rng.choice(LETTERS) for _ in range(w.rng.choice((2, 3, 3, 4))))
        if w.may_say(letters):
            return letters


def learned(w):
    """One lower-case word."""
    form = w.rng.random()
    if form < 0.5:
        return w.pick("technical")
    if form < 0.8:
        return w.coined()
    return w.pick("noun") if form < 0.92 else w.pseudo()


def code(w):
    r = w.rng
    a, b = learned(w), learned(w)
    return r.choice((
        lambda: f"{a}_{b}", lambda: f"{a}_{b}()", lambda: f"--{a}-{b}", lambda: f"--{a}", lambda: f"{a.upper()}_{b.upper()}", lambda: f"{a}.{b}", lambda: f"{a}::{b}",
        lambda: f"{w.pseudo()}.{r.choice(('toml', 'yaml', 'json', 'conf', 'rs', 'md'))}", lambda: f"`{a} {b}`", lambda: f"{a}.{b}.{r.choice(('io', 'dev', 'org'))}/v{r.randint(1, 3)}",
        lambda: values.path(w), lambda: f"0x{r.randrange(16 ** 4):04X}", lambda: f"{a[:1].upper()}{a[1:]}{b[:1].upper()}{b[1:]}",
    ))()


def measure(w):
    r = w.rng
    n = r.choice((str(r.randint(2, 999)), f"{r.randint(0, 99)}.{r.randint(1, 9)}", f"{r.randint(1, 99)},{r.randint(100, 999)}"))
    return r.choice((
        f"{n} {r.choice(('ms', 'GB/s', 'kHz', 'MiB', 'mm', 'kPa', 'Mbit/s', 'µm', 'mg/l', 'rpm', 'dB', 'kWh', 'tokens', 'requests a second', 'm²', '°C'))}",
        f"{n}%", f"{n}x", f"v{values.version(w)}", f"version {values.version(w)}", f"{r.choice('ABCXY')}/{r.choice('ABCXY')}", f"{n}-{r.choice(('bit', 'hour', 'layer', 'point', 'way', 'step'))}",
    ))


def term(w):
    """What a sentence speaks of: a word, a compound, an abbreviation."""
    r, form = w.rng, w.rng.random()
    if form < 0.42:
        return learned(w)
    if form < 0.56:
        return f"{learned(w)} {learned(w)}"
    if form < 0.68:
        return r.choice((f"{learned(w)}-{learned(w)}", f"{r.choice(('multi', 'low', 'high', 'non', 'cross', 'self', 'per', 'long', 'real', 'end'))}-{learned(w)}", f"{learned(w)}-{r.choice(('aware', 'based', 'free', 'specific', 'safe', 'driven', 'level'))} {learned(w)}"))
    if form < 0.8:
        return abbreviation(w) + r.choice(("", "", "", "s", " " + learned(w)))
    if form < 0.86:
        return w.coined().capitalize() + r.choice(("", " " + learned(w)))
    return r.choice((code, measure))(w)


def quality(w):
    r = w.rng
    return r.choice((lambda: w.pick("quality"), lambda: w.pick("quality"), lambda: w.pick("adjective"), lambda: w.coined(), lambda: f"{w.pick('quality').removesuffix('ly')}ly {w.pick('quality')}", lambda: f"{w.pick('quality')}, {w.pick('quality')}"))()


def phrase(w):
    form = w.rng.random()
    if form < 0.35:
        return f"{quality(w)} {term(w)}"
    if form < 0.85:
        return term(w)
    return w.rng.choice((f"{term(w)} {w.rng.choice(('of', 'for', 'in', 'from', 'with'))} {term(w)}", f"the {quality(w)} {term(w)}", f"{w.pick('quality')} {w.pick('noun')}s"))


def listing(w):
    r = w.rng
    parts = [phrase(w) for _ in range(r.choice((2, 3, 3, 4)))]
    return ", ".join(parts[:-1]) + r.choice((" and ", ", and ", " or ", ", or ")) + parts[-1] if len(parts) > 2 else r.choice((" and ", " or ")).join(parts)


def doing(w):
    """A verb with -ing and what it is done to."""
    first = w.verb()[3] if w.rng.random() < 0.7 else w.coined().rstrip("e") + "ing"
    return f"{first} {phrase(w)}"


def clause(w):
    r = w.rng
    return r.choice((
        lambda: f" for {doing(w)}", lambda: f" that {w.verb()[2]} {listing(w)}", lambda: f", which {w.verb()[2]} {phrase(w)}", lambda: f" used to {w.verb()[0]} {phrase(w)} and {w.verb()[0]} {phrase(w)}",
        lambda: f", such as {listing(w)}", lambda: f", including {listing(w)}", lambda: f" when {phrase(w)} {w.verb()[2]} {phrase(w)}", lambda: f", {doing(w)} and {doing(w)}",
        lambda: f" based on {listing(w)}", lambda: f" like {listing(w)}", lambda: f" with up to {measure(w)}", lambda: f" in {phrase(w)}", lambda: f" without {doing(w)}", lambda: f", {doing(w)}",
        lambda: f" ({code(w)})", lambda: f" rather than {phrase(w)}", lambda: f" across {phrase(w)}", lambda: f", so that {phrase(w)} {w.verb()[2]} {phrase(w)}", lambda: f" between {phrase(w)} and {phrase(w)}",
        lambda: f"; {phrase(w)} {w.verb()[2]} {phrase(w)}", lambda: f", and for {term(w)}, also {listing(w)}", lambda: f" to {w.verb()[0]} {listing(w)}",
    ))()


def concept(w):
    """A subject, and the names that a question may call it by."""
    r, form = w.rng, w.rng.random()
    if form < 0.15:
        name = w.coined().capitalize() if r.random() < 0.6 else w.name()
        return name, (name,)
    if form < 0.27:
        name = r.choice((abbreviation(w), abbreviation(w) + r.choice(("Ops", "Net", "DB", "OS")), w.pseudo().capitalize() + r.choice(("DB", "Kit", "Ops", "Flow"))))
        return name, (name, name, name + " systems")
    if form < 0.42:
        words = [w.coined() if r.random() < 0.4 else learned(w) for _ in range(r.choice((2, 3)))]
        long, short = " ".join(word.capitalize() for word in words), "".join(word[0].upper() for word in words)
        return f"{long} ({short})", (long, short, f"{long} ({short})", long.lower())
    if form < 0.55:
        name = f"{w.rng.choice(('multi', 'low', 'high', 'cross', 'self', 'non'))}-{learned(w)} {learned(w)}"
    elif form < 0.8:
        name = f"{quality(w)} {learned(w)}" + r.choice(("", "", f" {w.verb()[3]}"))
    elif form < 0.9:
        name = f"{learned(w)} {w.verb()[3]}"
    else:
        name = f"{term(w)} {learned(w)}"
    return name, (name, name, f"{name} {r.choice(('strategies', 'systems', 'methods', 'techniques'))}")


MORE_QUESTIONS = (
    "Give a detailed account of {c}.", "I would like to understand {c}.", "What should I know about {c}?", "Summarise {c}.", "How is {c} used in {n}?", "What is the role of {c} in {n}?",
    "Explain how {c} works.", "Tell me more about {c} for {n}.", "What does {c} mean for {n}?", "Describe {c} for {n} in detail.", "{c}?", "Why do we need {c}?", "What makes {c} useful for {n}?",
)


def statement(w, c):
    """A sentence about `c`, without the full stop, and the part of it that answers what `c` is."""
    r, form = w.rng, w.rng.random()
    article = r.choice(KINDS)
    article = ("an " if article[0] in "aeiou" else "a ") + article if r.random() < 0.5 else f"the {r.choice(('practice', 'art', 'process', 'task', 'theory'))} of {doing(w)}"
    if form < 0.3:
        gold = f"is {article}"
    elif form < 0.5:
        gold = f"{w.verb()[2]} {phrase(w)} {r.choice(('with', 'to', 'in', 'from', 'by'))} {phrase(w)}"
    elif form < 0.6:
        gold = f"allows {phrase(w)} to {w.verb()[0]} {phrase(w)}"
    elif form < 0.7:
        gold = f"{r.choice(('requires', 'involves', 'means', 'includes', 'needs'))} {r.choice((doing, listing))(w)}"
    elif form < 0.8:
        gold = f"{r.choice(('is', 'are'))} {r.choice(('crucial', 'needed', 'useful', 'common', w.pick('quality')))} for {doing(w)}"
    elif form < 0.9:
        gold = f"can {w.verb()[0]} {listing(w)}"
    else:
        gold = f"was {w.verb()[1]} by {values.company(w)} for {phrase(w)}"
    middle = f", including {listing(w)}," if r.random() < 0.12 else ""
    rest = "".join(clause(w) for _ in range(r.choice((0, 1, 1, 1, 2, 2))))
    opening = f"In {phrase(w)}, " if r.random() < 0.06 else ""
    return f"{opening}{c}{middle} {gold}{rest}", gold


def subject(w, how=None, about=None):
    r = w.rng
    if how == "entity":
        # Another subject, which shares a word with this one or mentions it in passing.
        other, names = concept(w)
        if r.random() < 0.5:
            words, mine = other.split(), about[0].split()
            other = " ".join(words[:-1] + mine[-1:]) if len(words) > 1 else f"{other} {mine[-1]}"
            names = (other,)
        about, mention = (other, names), about[0]
    else:
        about, mention = about if about and not how else concept(w), None
    c, names = about
    text, gold = statement(w, c)
    if mention and r.random() < 0.6 and mention not in c:
        text += r.choice((f", as does {mention}", f", together with {mention}", f" in {mention}", f", unlike {mention}", f" for {mention} and {phrase(w)}"))
    asked = key("technical", c)
    question = fill(r.choice(DEFINITION_QUESTIONS + MORE_QUESTIONS), c=r.choice(names), n=r.choice((term, phrase))(w), o=concept(w)[0])
    return Fact(sentence(text), sentence_case(question), gold, asked, frozenset([asked]), c, None, bound(subject, about=about))


def sentence_case(question):
    return question[0].upper() + question[1:]


SETTING_STATEMENTS = ("The default of {s} is {v}", "{s} defaults to {v}", "Set {s} to {v} {x}", "{s} is {v} {x}", "With {s} the limit is {v} {x}", "If {s} is not given, {v} is taken {x}", "{s} takes {v}, {x}")
SETTING_QUESTIONS = ("What is the default of {s}?", "What does {s} default to?", "Which value does {s} have?", "What should {s} be set to?", "What is {s}?", "What happens if {s} is not given?")


def setting(w, how=None, name=None):
    """An option and its value."""
    r = w.rng
    if how and name:
        # The same words in another order or form, or half of them.
        part = name.strip("-`()").replace("_", "-").split("-")[0].split(".")[0].lower()
        name = r.choice((f"--{part}-{learned(w)}", f"{part}.{learned(w)}", f"{part}_{learned(w)}"))
    s, v = name or code(w), r.choice((measure, measure, values.number, values.duration, code))(w)
    extra = r.choice((f"for {phrase(w)}", f"when {phrase(w)} {w.verb()[2]} {phrase(w)}", f"to {w.verb()[0]} {phrase(w)}", f"in {phrase(w)}"))
    asked = key("setting", s)
    return Fact(sentence(fill(r.choice(SETTING_STATEMENTS), s=s, v=v, x=extra)), fill(r.choice(SETTING_QUESTIONS), s=s), v, asked, frozenset([asked]), s, None, bound(setting, name=s))


def make(w):
    return setting(w) if w.rng.random() < 0.15 else subject(w)
