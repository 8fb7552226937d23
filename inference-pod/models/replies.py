"""What the tiny model knows: short replies, grouped by how the user's message ends.

make_tiny.py trains the tokenizer on these texts and builds weights that recite and mix them. Every reply ends, so every
generation does. A group opens with four different words at most: a code of 64 numbers tells few successors well apart.
"""

# The message ends with "!".
GREETINGS = [
    "Hello! I am a tiny model, and Fairlead leads your words to me. Ask me a question and see what comes back.",
    "Hello there! I am small, but I run on a real cluster, and every token you read was streamed to you.",
    "Ahoy! The rope runs free, the pod is ready, and the gateway knows the way.",
    "Hello! I hold only a few sentences, so I answer fast and I never know much.",
    "Welcome aboard! I was built in a few seconds from a small script, so please be kind to me.",
]

# The message ends with "?".
ANSWERS = [
    "A fairlead is a ring that guides a rope, so that it runs where it should and does not chafe. Fairlead guides requests"
    " to models in the same way.",
    "I am only a tiny model, so I cannot know. A larger model would answer you well, and you can apply one in the same way.",
    "The gateway reads the name of the model in your request, picks a backend by its weight, and streams the answer"
    " through.",
    "The operator reads the shape of the weights, works out what fits, and only then makes a pod.",
    "The keys and values live in blocks of a fixed size. A table says which blocks belong to which request, so no memory is"
    " wasted.",
    "The requests share one step. As soon as one ends, another takes its place, and nobody waits for the slowest.",
    "I was made of counted words and not of knowledge, so ask a larger model and I will carry"
    " the rope.",
    "The start is one command. The cluster comes up, the charts are installed, the model is loaded, and you ask it a"
    " question.",
    "I can tell you a story about a ship if you end your message with a full stop.",
]

# Any other ending.
STORIES = [
    "Once there was a small ship that carried letters from port to port. It was not the fastest ship, but every letter"
    " came to the right door.",
    "The wind turned in the night, and the ropes began to sing. In the morning the crew found that each rope had run"
    " through its ring, and not one was torn.",
    "A young sailor asked why the rope runs through a ring. The old sailor said that a rope without a guide cuts the"
    " ship, and a rope with a guide moves the world.",
    "Once there was a harbour where many ships arrived at once. A pilot stood on the wall and gave each ship a place, and as"
    " soon as one left, another came in.",
    "The lamp on the hill turned all night. Nobody thanked the lamp, but every ship came home.",
    "The sea was calm, the tables were in order, and every block was where it should be. The captain slept well.",
]

# Text that only the tokenizer sees, so that words people type are not cut into letters.
VOCABULARY_TEXT = [
    "Fairlead serves large language models on Kubernetes: an operator, a gateway and an inference engine, written in"
    " Rust. You are a helpful assistant. Please write a short story about the sea. What is the capital of France? How"
    " does it work? Who are you? Tell me more about this. Can you explain the difference between these two? Thank you"
    " very much. Hi, how are you today? Give me a list of three things. Translate this sentence into German. Why is the"
    " sky blue? Write a poem. What can you do for me? Explain it in simple words. I would like to know what time it is.",
]
