"""How people really type: in lower case, without the question mark, with a slip, with a word of greeting before."""

OPENINGS = ("Hello, ", "Hi, ", "Please tell me: ", "Excuse me, ", "I have a question: ", "Sorry, ", "Quick question: ", "Good morning. ")


def slip(rng, text):
    """Drops, doubles or swaps letters inside one longer word."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long:
        return text
    i = rng.choice(long)
    word, at = words[i], rng.randint(1, len(words[i]) - 2)
    words[i] = rng.choice((word[:at] + word[at + 1:], word[:at] + word[at] + word[at:], word[:at] + word[at + 1] + word[at] + word[at + 2:]))
    return " ".join(words)


SMALL = frozenset("a an the is are was were do does did can may i you we of for to in on at it that there what who where when why how which me tell my".split())


def keywords(question):
    """As typed into a search box."""
    words = [word for word in question.rstrip("?.").split(" ") if word.lower() not in SMALL]
    return " ".join(words) if len(words) > 2 else question


def vary(rng, question):
    if rng.random() < 0.04:
        question = keywords(question)
    if rng.random() < 0.06:
        opening = rng.choice(OPENINGS)
        question = opening + (question[0].lower() + question[1:] if opening[-2] in ",:" else question)
    if rng.random() < 0.05:
        question = slip(rng, question)
    if rng.random() < 0.25:
        question = question.lower()
    elif rng.random() < 0.03:
        question = question.upper()
    if rng.random() < 0.12:
        question = question.rstrip("?.")
    return tidy(question)


def tidy(question):
    return question[0].upper() + question[1:] if question[:1].islower() and question != question.lower() else question
