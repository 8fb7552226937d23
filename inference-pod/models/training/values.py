"""What a relation can have as its value: one function for each kind that the relation files name. Each takes Words."""

from words import COLOURS, MONTHS, WEEKDAYS

NUMBER_WORDS = "two three four five six seven eight nine ten eleven twelve".split()


def chance(w, p):
    return w.rng.random() < p


def number(w):
    r = w.rng
    return str(r.choice((r.randint(2, 30), r.randint(10, 99), r.randint(100, 999), r.randint(1000, 9999))))


def count(w):
    return w.rng.choice(NUMBER_WORDS) if chance(w, 0.4) else str(w.rng.randint(2, 90))


def clock(w):
    r = w.rng
    hour, minute = r.randint(0, 23), r.choice((0, 0, 15, 30, 45, r.randint(0, 59)))
    form = r.random()
    if form < 0.45:
        return f"{hour}:{minute:02}"
    if form < 0.65:
        return f"{r.randint(1, 12)} {r.choice(('am', 'pm', 'a.m.', 'p.m.', 'o’clock'))}".replace("’", "'").rstrip(".")
    if form < 0.8:
        return f"{r.randint(1, 12)}:{minute:02} {r.choice(('am', 'pm'))}"
    if form < 0.9:
        return r.choice(("noon", "midnight", "half past " + r.choice(NUMBER_WORDS), "a quarter to " + r.choice(NUMBER_WORDS)))
    return f"{hour:02}:{minute:02}"


def hours(w):
    text = f"{clock(w)} to {clock(w)}"
    return text + " " + days(w) if chance(w, 0.4) else text


def days(w):
    r, day = w.rng, w.rng.choice(WEEKDAYS)
    other = r.choice(WEEKDAYS)
    return r.choice((f"on {day}s", f"every {day}", f"on {day}s and {other}s", f"on {day}", "at the weekend", f"in {r.choice(MONTHS)}",
                     f"from {day} to {other}", "on public holidays", f"on the first {day} of the month", "on weekdays"))


def day(w):
    r = w.rng
    return r.choice((r.choice(WEEKDAYS), date(w), f"{r.choice(WEEKDAYS)} {date(w)}", f"the {r.choice(('first', 'second', 'third', 'last'))} {r.choice(WEEKDAYS)} of {r.choice(MONTHS)}"))


def date(w):
    r = w.rng
    month, d = r.choice(MONTHS), r.randint(1, 28)
    return r.choice((f"{d} {month}", f"{month} {d}", f"{d} {month} {year(w)}", f"the {d}th of {month}" if 3 < d < 21 else f"{d} {month}"))


def year(w):
    return str(w.rng.choice((w.rng.randint(1700, 2030), w.rng.randint(1950, 2030))))


def month(w):
    r = w.rng
    return r.choice((r.choice(MONTHS), f"{r.choice(MONTHS)} and {r.choice(MONTHS)}", "early " + r.choice(MONTHS), r.choice(("spring", "summer", "autumn", "late winter"))))


def duration(w):
    r = w.rng
    n = r.choice(NUMBER_WORDS) if chance(w, 0.35) else str(r.randint(2, 90))
    return r.choice(("about ", "at least ", "up to ", "", "", "", "")) + n + " " + r.choice(("minutes", "hours", "days", "weeks", "months", "years", "working days", "seconds"))


def money(w):
    r = w.rng
    n = r.choice((str(r.randint(1, 99)), f"{r.randint(1, 99)}.{r.choice((50, 90, 95, 99, 20))}", str(r.randint(100, 9999))))
    unit = r.choice(("euros", "euros", "dollars", "pounds", "crowns", "francs"))
    return r.choice((f"{n} {unit}", f"{n} {unit}", f"${n}", f"€{n}", f"{n} {unit} a person", f"{n} {unit} for adults"))


def percent(w):
    return w.rng.choice((f"{w.rng.randint(1, 95)} percent", f"{w.rng.randint(1, 95)}%", f"{w.rng.randint(1, 95)} per cent"))


def floor(w):
    r = w.rng
    return r.choice((f"the {r.choice(('first', 'second', 'third', 'fourth', 'fifth', 'top', 'ground'))} floor", f"level {r.randint(1, 12)}", f"floor {r.randint(1, 40)}"))


def people(w):
    return f"{number(w)} {w.rng.choice(('people', 'persons', 'guests', 'visitors', 'people'))}" if chance(w, 0.9) else f"{w.rng.choice(NUMBER_WORDS)} people"


def phone(w):
    r = w.rng
    return r.choice((f"0{r.randint(10, 99)} {r.randint(1000, 9999)}", f"extension {r.randint(100, 9999)}", f"555-{r.randint(1000, 9999)}", str(r.randint(10000, 999999))))


def thing(w):
    """A noun phrase without an article."""
    r, form = w.rng, w.rng.random()
    noun = w.pick(r.choice(("thing", "thing", "noun")))
    if form < 0.35:
        return noun
    if form < 0.7:
        return f"{w.pick('adjective')} {noun}"
    if form < 0.85:
        return f"{w.pick('noun')} {noun}"
    return f"{w.pseudo()} {noun}" if chance(w, 0.5) else w.pseudo()


def the_thing(w):
    return "the " + thing(w)


def place_name(w):
    r, form = w.rng, w.rng.random()
    if form < 0.5:
        return "the " + w.pick(r.choice(("room", "place")))
    if form < 0.75:
        return f"the {w.pick('adjective')} {w.pick(r.choice(('room', 'place', 'noun')))}"
    return f"{w.name()} {r.choice(('Street', 'Road', 'Square', 'Hall', 'House', 'Park', 'Bridge', 'Lane'))}"


def location(w):
    prep = w.rng.choice(("in", "next to", "behind", "in front of", "near", "under", "opposite", "between", "beside", "above", "to the left of", "at the end of", "inside"))
    if prep == "between":
        return f"between {place_name(w)} and {place_name(w)}"
    return f"{prep} {w.rng.choice((place_name, place_name, the_thing))(w)}"


def habitat(w):
    r = w.rng
    return f"{r.choice(('in', 'near', 'under', 'on', 'among'))} {r.choice(('', 'deep ', 'dry ', 'cold ', 'quiet ', 'old '))}{r.choice(('forests', 'rivers', 'deserts', 'lakes', 'rocks', 'meadows', 'swamps', 'caves', 'hedges', 'mountains', 'the hills of ' + w.name(), 'the ' + w.pick('noun') + 's of ' + w.name()))}"


def city(w):
    return w.name() if chance(w, 0.8) else f"{w.name()} {w.rng.choice(('on Sea', 'Bay', 'Hill', 'Valley', 'Falls'))}"


def person(w):
    r, form = w.rng, w.rng.random()
    surname = w.name()
    if form < 0.6:
        return f"{w.pick('first_name')} {surname}"
    if form < 0.75:
        return f"{r.choice(('Dr', 'Mr', 'Ms', 'Professor'))} {surname}"
    if form < 0.9:
        return f"{w.name()} {surname}"
    return w.pick("first_name")


def job(w):
    text = w.pick("job")
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def food(w):
    r, form = w.rng, w.rng.random()
    if form < 0.4:
        return w.pick("food")
    if form < 0.75:
        return f"{w.pick('food')} and {w.pick('food')}"
    return f"{r.choice(('fried', 'small', 'raw', 'fresh', 'dried', 'warm', 'cold', 'roasted', 'wild'))} {w.pick('food')}"


def ingredients(w):
    return f"{w.pick('food')}, {w.pick('food')} and {w.pick('food')}" if chance(w, 0.7) else food(w)


def sport(w):
    return w.pick("sport")


def room(w):
    r = w.rng
    return r.choice((f"room {r.randint(1, 499)}", f"room {r.choice('ABCDEFGH')}{r.randint(1, 40)}", place_name(w)))


def email(w):
    return f"{w.pseudo()}@{w.pseudo()}.{w.rng.choice(('org', 'com', 'net', 'example'))}"


def animal(w):
    return w.pick("animal") + "s" if chance(w, 0.6) else f"the {w.pseudo() if chance(w, 0.5) else w.pick('adjective')} {w.pick('animal')}"


def daytime(w):
    r = w.rng
    return r.choice(("at night", "at dawn", "by day", "in the early morning", "in the evening", "at dusk", f"from {r.choice(MONTHS)} to {r.choice(MONTHS)}", "after rain", f"in {r.choice(MONTHS)}"))


def length(w):
    r = w.rng
    return f"{r.choice(('', '', 'about ', 'up to '))}{r.choice((str(r.randint(2, 300)), f'{r.randint(1, 9)}.{r.randint(1, 9)}'))} {r.choice(('metres', 'centimetres', 'millimetres', 'feet', 'inches', 'cm'))}"


def weight(w):
    r = w.rng
    return f"{r.choice(('', '', 'about ', 'nearly '))}{r.choice((str(r.randint(2, 900)), f'{r.randint(1, 9)}.{r.randint(1, 9)}'))} {r.choice(('kilograms', 'grams', 'kg', 'tons', 'pounds'))}"


def watts(w):
    return f"{w.rng.randint(5, 3000)} {w.rng.choice(('watts', 'W', 'kilowatts', 'volts'))}"


def degrees(w):
    r = w.rng
    return r.choice((f"{r.randint(-30, 240)} degrees", f"{r.randint(2, 90)} to {r.randint(2, 90)} degrees", f"no more than {r.randint(10, 90)} degrees", "room temperature"))


def speed(w):
    return f"{w.rng.randint(3, 400)} {w.rng.choice(('kilometres an hour', 'miles an hour', 'metres a second'))}"


def frequency(w):
    r, n = w.rng, w.rng.choice(NUMBER_WORDS)
    return r.choice((f"every {n} {r.choice(('minutes', 'hours', 'days', 'weeks', 'months'))}", f"every {r.randint(2, 60)} {r.choice(('minutes', 'hours', 'days'))}", f"once a {r.choice(('day', 'week', 'month', 'year'))}",
                     f"twice a {r.choice(('day', 'week', 'month', 'year'))}", f"{n} times a {r.choice(('day', 'week', 'month', 'year'))}", f"every {r.choice(WEEKDAYS)}", "each morning", "every other day"))


def soil(w):
    r = w.rng
    return f"{r.choice(('dry', 'wet', 'sandy', 'heavy', 'poor', 'rich', 'chalky', 'sour'))} {r.choice(('soil', 'ground', 'clay', 'sand', 'earth'))}"


def material(w):
    r, m = w.rng, w.pick("material")
    return r.choice((m, m, f"{m} and {w.pick('material')}", f"{r.choice(('recycled', 'solid', 'thin', 'brushed'))} {m}"))


def colour(w):
    r = w.rng
    return r.choice((r.choice(COLOURS), f"{r.choice(('dark', 'light', 'bright'))} {r.choice(COLOURS)}", f"{r.choice(COLOURS)} and {r.choice(COLOURS)}"))


def action(w):
    """What somebody does, in the base form."""
    r = w.rng
    base = w.verb()[0]
    text = f"{base} {the_thing(w)}"
    if chance(w, 0.3):
        text += f" {r.choice(('for ' + duration(w), 'twice', 'carefully', 'with ' + the_thing(w), location(w)))}"
    if chance(w, 0.3):
        text += f" and {w.verb()[0]} {the_thing(w)}"
    return text


def meaning(w):
    r = w.rng
    return r.choice((f"the {thing(w)} is {state(w)}", f"the {thing(w)} must be {w.verb()[1]}", f"there is no {w.pick('noun')}", f"{the_thing(w)} needs {thing(w)}"))


def state(w):
    return w.rng.choice(("empty", "full", "too hot", "too cold", "blocked", "missing", "worn out", "not connected", "broken", "out of order", "open", "locked", "wet", w.pick("adjective")))


def reason(w):
    r = w.rng
    return r.choice((f"{the_thing(w)} was {state(w)}", f"{person(w)} {w.verb()[1]} {the_thing(w)}", f"the {thing(w)} had been {w.verb()[1]}", f"there was no {thing(w)}", f"{the_thing(w)} could not be {w.verb()[1]}", f"{w.pick('group')} {w.verb()[1]} {the_thing(w)}"))


def objects(w):
    form = w.rng.random()
    a, b, c = thing(w), thing(w), thing(w)
    if form < 0.4:
        return f"a {a} and a {b}"
    if form < 0.7:
        return f"a {a}, a {b} and a {c}"
    return f"{w.rng.choice(NUMBER_WORDS)} {w.pick('thing')}s"


def products(w):
    return f"{w.pick('thing')}s" if chance(w, 0.4) else f"{w.pick('adjective')} {w.pick('thing')}s and {w.pick('thing')}s"


def exhibit(w):
    r = w.rng
    return r.choice((f"{w.pick('adjective')} {w.pick('thing')}s", f"a {thing(w)} from {w.name()}", f"{w.pick('noun')}s and {w.pick('thing')}s", f"the {thing(w)} of {person(w)}"))


def purpose(w):
    r = w.rng
    return r.choice((f"{w.verb()[0]} {w.pick('noun')}s", f"{w.verb()[0]} {w.pick('adjective')} {w.pick('noun')}s", f"{w.verb()[0]} {thing(w)}s and {w.verb()[0]} {w.pick('noun')}s", action(w)))


def platform(w):
    r = w.rng
    return r.choice((f"platform {r.randint(1, 24)}", f"gate {r.choice('ABCDE')}{r.randint(1, 30)}", f"stop {r.choice('ABCDEFGH')}", place_name(w), f"bay {r.randint(1, 20)}"))


def dose(w):
    r = w.rng
    return f"{r.choice(('one', 'two', 'three', 'half a', str(r.randint(5, 500))))} {r.choice(('tablets', 'drops', 'spoons', 'milligrams', 'capsules'))} {r.choice((frequency(w), 'before meals', 'after breakfast', 'before sleep', 'with water'))}"


def illness(w):
    return w.pick("illness") if chance(w, 0.5) else f"{w.pick('illness')} and {w.pick('illness')}"


def language(w):
    return w.pick("language") if w.lists["language"] and chance(w, 0.6) else w.name()


def memory(w):
    return f"{w.rng.choice((2, 4, 8, 12, 16, 24, 32, 64, 128, 256, 512))} {w.rng.choice(('GB', 'MB', 'gigabytes', 'megabytes', 'GiB'))}"


def path(w):
    return "/" + "/".join(w.word().replace("-", "") for _ in range(w.rng.randint(1, 3))) + w.rng.choice((".log", ".txt", ""))


def version(w):
    r = w.rng
    return ".".join(str(r.randint(0, 20)) for _ in range(r.randint(2, 3)))


def company(w):
    r = w.rng
    return f"{w.name()} {r.choice(('Ltd', 'and Sons', 'Works', 'Systems', 'Foods', 'Tools', 'Group', 'Motors', 'Bank', 'Labs'))}" if chance(w, 0.7) else f"{w.name()} and {w.name()}"


def pseudo(w):
    return w.name()


def subject(w):
    return w.pick("subject") if w.lists["subject"] else w.pseudo()


def area(w):
    return f"{w.rng.randint(8, 9000)} {w.rng.choice(('square metres', 'square feet', 'acres', 'hectares', 'm²'))}"


def decibels(w):
    return f"{w.rng.randint(10, 130)} {w.rng.choice(('decibels', 'dB'))}"


def fuel(w):
    return w.rng.choice(("petrol", "diesel", "wood", "gas", "coal", "steam", "sunlight", "hot water", "batteries", "alcohol", w.pseudo() + " oil", w.pick("food")))


def clothes(w):
    r = w.rng
    one = lambda: f"a {r.choice((colour(w), w.pick('adjective'), w.pick('material')))} {r.choice(('hat', 'shirt', 'coat', 'scarf', 'dress', 'jacket', 'apron', 'pair of boots', 'suit', 'cap', 'tie'))}"
    return one() if chance(w, 0.6) else f"{one()} and {one()}"


def vehicle(w):
    return w.rng.choice(("train", "bus", "bicycle", "car", "tram", "boat", "scooter", "taxi", "ferry", "night train", "bus number " + number(w), w.pseudo()))


def award(w):
    r = w.rng
    return r.choice((f"the {w.name()} Prize", f"a {r.choice(('gold', 'silver', 'bronze'))} medal", f"the {w.pick('adjective')} {w.pick('noun')} award", f"a {thing(w)}", f"the {w.name()} Medal", f"the {w.pick('noun')} prize"))


def tongue(w):
    return w.rng.choice(("French", "German", "Latin", "Spanish", "Greek", "Dutch", "Welsh", w.name() + "ish", w.name() + "ese", w.name(), f"{w.name()} and {w.name()}"))


def spot(w):
    return w.rng.choice(("in full sun", "in the shade", "in half shade", "in bright light", "on a window sill", "by a south wall", "in a dark corner", location(w)))


def deed(w):
    r = w.rng
    return r.choice((f"{w.verb()[0]} {w.pick('noun')}s", f"{w.verb()[0]} {thing(w)}s", f"{w.verb()[0]} {the_thing(w)}", f"{w.pseudo()} {the_thing(w)}", f"{w.verb()[0]} it {r.choice(('twice', 'carefully', 'with ' + w.pick('noun'), location(w)))}"))


def subject_matter(w):
    return w.rng.choice((lambda: f"{w.pick('noun')} {w.pick('technical')}", lambda: f"{w.pick('adjective')} {w.pick('thing')}s", lambda: f"the {w.pick('technical')} of {w.pick('noun')}s", lambda: f"{w.pseudo()} {w.pick('noun')}", lambda: w.pick("technical"), lambda: f"{w.verb()[3]} {thing(w)}s"))()


def group(w):
    return w.pick("group") if chance(w, 0.6) else w.rng.choice((f"{w.pick('adjective')} {w.pick('group')}", f"{w.pick('group')} and {w.pick('group')}"))


def site(w):
    r = w.rng
    return f"{r.choice(('', 'www.', 'shop.'))}{w.pseudo()}{r.choice(('', '-' + w.pick('noun')))}.{r.choice(('org', 'com', 'net', 'example', 'co.uk'))}"


def system(w):
    return w.rng.choice((w.name(), f"{w.name()} {version(w)}", f"{w.name()} OS", f"{w.name()} and {w.name()}", "Linux", "Windows", f"any {w.pick('thing')}"))


def pseudo_name(w):
    return w.name() if chance(w, 0.6) else f"the {w.pick('noun')} {w.pick('thing')}"


def noise(w):
    return f"a {w.pick('adjective')} {w.pseudo()}"


def make(kind, w):
    return globals()[kind](w)
