"""Names for the kinds of entity that relations speak about: partly invented names, partly everyday things."""

from values import city, company as company_name, person as person_name, thing


def _article(w, noun, proper=0.45):
    """`the Tarvix museum`, `Tarvix Museum`, `the old museum` or `the museum`."""
    form = w.rng.random()
    if form < proper / 2:
        return f"{w.name()} {noun.title()}"
    if form < proper:
        return f"the {w.name()} {noun}"
    if form < 0.75:
        return f"the {w.pick('adjective')} {noun}"
    return f"the {noun}"


def place(w):
    return _article(w, w.pick("place") if w.rng.random() < 0.8 else w.pick("room"))


def device(w):
    form = w.rng.random()
    if form < 0.15:
        return f"the {w.name()} {w.rng.choice((str(w.rng.randint(2, 9000)), w.rng.choice('XZTRM') + str(w.rng.randint(1, 99))))}"
    if form < 0.5:
        return "the " + thing(w)
    return _article(w, w.pick("thing"), 0.35)


def goods(w):
    return w.rng.choice((device, lambda x: f"{x.pick('adjective')} {x.pick('thing')}s", lambda x: f"the {x.pick('material')} {x.pick('thing')}"))(w)


def person(w):
    return person_name(w)


def animal(w):
    form = w.rng.random()
    if form < 0.35:
        return f"the {w.pseudo()}"
    if form < 0.7:
        return f"the {w.pick('adjective')} {w.pick('animal')}"
    if form < 0.85:
        return f"the {w.name()} {w.pick('animal')}"
    return f"the {w.pick('animal')}"


def plant(w):
    form = w.rng.random()
    if form < 0.35:
        return f"the {w.pseudo()}"
    if form < 0.7:
        return f"the {w.pick('adjective')} {w.pick('plant')}"
    return f"the {w.pick('plant')}"


def event(w):
    form = w.rng.random()
    if form < 0.3:
        return f"the {w.pick('noun')} {w.pick('event')}"
    return _article(w, w.pick("event"))


def route(w):
    r, form = w.rng, w.rng.random()
    kind = r.choice(("bus", "train", "ferry", "tram", "boat", "shuttle", "coach"))
    if form < 0.35:
        return f"{kind} {r.randint(1, 990)}" if form < 0.2 else f"the {kind} {r.choice('ABCDEFGHKLM')}{r.randint(1, 99)}"
    if form < 0.65:
        return f"the {kind} to {city(w)}"
    if form < 0.85:
        return f"the {w.name()} {kind}"
    return f"the {w.pick('adjective')} {kind}"


def company(w):
    return company_name(w)


def medicine(w):
    return w.name() if w.rng.random() < 0.7 else f"{w.pseudo()} {w.rng.choice(('drops', 'syrup', 'cream', 'tablets', 'spray'))}"


def tool(w):
    form = w.rng.random()
    if form < 0.5:
        return w.name()
    if form < 0.8:
        return f"the {w.pick('noun')} {w.rng.choice(('service', 'server', 'gateway', 'operator', 'cache', 'client', 'queue', 'database', 'engine', 'scheduler', 'plugin', 'worker'))}"
    return f"{w.name()} {w.rng.choice(('Server', 'Desk', 'Cloud', 'Studio', 'Mail', 'Engine'))}"


def dish(w):
    form = w.rng.random()
    if form < 0.4:
        return f"{w.rng.choice(('', 'the '))}{w.pseudo()} {w.rng.choice(('soup', 'stew', 'cake', 'pie', 'salad', 'bread', 'pudding'))}"
    return f"the {w.pick(w.rng.choice(('food', 'adjective')))} {w.rng.choice(('soup', 'stew', 'cake', 'pie', 'salad', 'bread', 'pudding', 'curry'))}"


def account(w):
    r = w.rng
    return r.choice((f"the {w.name()} account", f"the {w.pick('adjective')} plan", f"{w.name()} {r.choice(('Basic', 'Plus', 'Premium', 'Pro', 'Start'))}", f"the {w.pick('noun')} account", f"the {w.pick('adjective')} {r.choice(('membership', 'subscription', 'tariff', 'contract'))}"))


def make(kind, w):
    return globals()[kind](w)


def near(kind, w, name):
    """Another entity of the kind, sharing a word with `name` where that can be."""
    words = name.split()
    for _ in range(4):
        other = make(kind, w).split()
        if len(words) > 1 and len(other) > 1:
            other = other[:-1] + words[-1:] if w.rng.random() < 0.7 else words[:-1] + other[-1:]
        if other != words:
            return " ".join(other)
    return make(kind, w)
