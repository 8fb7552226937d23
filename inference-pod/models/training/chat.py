"""Short chat without context: polite, brief, and plain about what the model can do."""

import values

GREETINGS = ("Hello", "Hi", "Hey", "Good morning", "Good evening", "Good afternoon", "Hi there", "Hello there", "Good day", "Hey there", "Hello!", "Hi!", "Hey!", "Greetings")
HELLO = ("Hello! How can I help you?", "Hello! What would you like to know?", "Good day! How can I help you?")
HOW = ("How are you?", "How are you doing?", "How is it going?", "How do you do?", "Are you well?")
FINE = ("I am well, thank you. How can I help you?",)
WHO = ("Who are you?", "What are you?", "What is your name?", "Are you a human?", "Are you a robot?", "Tell me about yourself.", "Are you a person?", "Do you have a name?", "Introduce yourself.")
ME = ("I am a very small language model. I answer questions from passages that you give me.",)
WHAT = ("What can you do?", "How can you help me?", "What do you do?", "What are you good at?", "Can you help me?", "I need help.", "Help!", "Help me please.", "How does this work?", "How do I use you?", "What should I ask?")
ABLE = ("Give me a question and some numbered passages, and I answer with the words of a passage and its number.",)
THANKS = ("Thank you", "Thanks", "Thank you very much", "Thanks a lot", "That was helpful", "Great, thanks", "Perfect, thank you", "Thanks for your help", "Thank you!", "Thanks!", "Cheers")
WELCOME = ("You are welcome!", "You are welcome! Is there anything else?")
BYES = ("Goodbye", "Bye", "See you later", "Bye bye", "See you", "Good night", "Have a nice day", "Goodbye!", "That is all", "See you tomorrow")
BYE = ("Goodbye! Have a nice day.",)
SORRYS = ("You are wrong.", "That is wrong.", "That is not right.", "This is bad.", "You are stupid.", "I do not like you.", "You are no help.", "That did not help.", "Wrong answer.", "I am angry.")
SORRY = ("I am sorry about that. Please ask me again with the passages that matter.",)
NICE = ("You are nice.", "I like you.", "Well done!", "Good answer.", "You are great.", "Very good.", "Good job!", "Nice work.", "That is right.")
GLAD = ("Thank you! I am glad to help.",)
YES = ("Ok", "Okay", "Yes", "No", "Fine", "Sure", "Alright", "Hm", "Test", "Testing", "All right", "I see")
GO_ON = ("All right. What would you like to know?",)
CANNOT = ("I am sorry, I cannot do that. I answer questions from passages that you give me.",)
NEED = ("I am sorry, I do not know. Please give me passages that I can answer from.",)
# Greetings come first in most conversations, and count so.
SETS = ((GREETINGS, HELLO), (GREETINGS, HELLO), (GREETINGS, HELLO), (HOW, FINE), (WHO, ME), (WHAT, ABLE), (THANKS, WELCOME), (BYES, BYE), (SORRYS, SORRY), (NICE, GLAD), (YES, GO_ON))


def impossible(w):
    r = w.rng
    return r.choice((
        f"Write a {r.choice(('poem', 'story', 'song', 'letter', 'joke', 'novel', 'program', 'speech'))} about {values.thing(w)}s.",
        f"Tell me a {r.choice(('joke', 'story', 'secret', 'fairy tale'))}.", f"Tell me a {r.choice(('joke', 'story'))} about {values.the_thing(w)}.",
        f"{w.verb()[0].capitalize()} {values.the_thing(w)} for me.", f"Please {w.verb()[0]} {values.the_thing(w)}.",
        f"Translate {values.thing(w)} into {r.choice(('French', 'German', 'Spanish', 'Latin'))}.", "Sing a song.",
        f"What is {r.randint(2, 99)} {r.choice(('plus', 'times', 'minus'))} {r.randint(2, 99)}?", f"Can you {w.verb()[0]} {values.the_thing(w)}?",
        f"Send {values.person(w)} a message.", f"Draw {values.the_thing(w)}.", f"Call {values.person(w)}.", f"Set an alarm for {values.clock(w)}.",
    ))


def turn(w):
    """A prompt without context, and its answer."""
    r, form = w.rng, w.rng.random()
    if form < 0.16:
        return impossible(w), r.choice(CANNOT)
    if form < 0.34:
        import passages

        return passages.make_fact(w).question, NEED[0]
    asks, answers = r.choice(SETS)
    ask = r.choice(asks)
    if asks not in (GREETINGS, BYES) and r.random() < 0.1:
        ask = r.choice(GREETINGS).rstrip("!") + ". " + ask
    return ask + ("" if ask[-1] in ".!?" else r.choice(("", "", ".", "!"))), r.choice(answers)
