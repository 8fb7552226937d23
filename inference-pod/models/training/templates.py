"""Reads the relation files, and knows every word that templates say themselves."""

import ast
import functools
import pathlib
import re
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
# Modules whose string literals are parts of sentences.
SPEAKING = ("values.py", "entities.py", "open_relations.py", "technical.py", "verbal.py", "passages.py", "questions.py", "chat.py")


class Relation(NamedTuple):
    name: str
    entity: str
    value: str
    statements: tuple
    questions: tuple


@functools.cache
def relations(file="relations.txt"):
    found, head, statements, questions = [], None, [], []

    def finish():
        if head:
            found.append(Relation(*head, tuple(statements), tuple(questions)))

    for line in (HERE / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            finish()
            head, statements, questions = [part.strip() for part in line[2:].split("|")], [], []
        elif line.startswith("S "):
            statements.append(line[2:])
        elif line.startswith("Q "):
            questions.append(line[2:])
    finish()
    return tuple(found)


def all_words():
    """Words of the training templates, and of the string literals of the modules that build sentences."""
    texts = [" ".join(r.statements + r.questions) for r in relations()]
    for file in SPEAKING:
        tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
        texts += [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return set(re.findall(r"[a-z]+", " ".join(texts).lower()))
