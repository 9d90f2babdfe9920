"""Requests that need no tool: greetings, notes, questions about words and names, requests that name no file, thanks.

An answer takes its names from the request. `AGAIN` and `DID` put a call that was made into words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Talk:
    """Ways to say something to the agent, and ways to answer."""

    asks: tuple[str, ...]
    says: tuple[str, ...]


CONCEPTS = {
    "a cache": "keeps results at hand, so that they need not be computed again",
    "a queue": "hands things out in the order in which they came",
    "a stack": "hands out first what came last",
    "a hash map": "finds a value by its key without a search",
    "a linked list": "is a chain in which each item knows the next one",
    "a binary tree": "splits items in two halves at every step",
    "recursion": "means that a function calls itself on a smaller problem",
    "a closure": "is a function that remembers the variables around it",
    "an iterator": "gives one item after another when it is asked",
    "a mutex": "lets one thread at a time into a piece of code",
    "a deadlock": "means that two threads wait for each other forever",
    "a race condition": "means that the result depends on who is faster",
    "a unit test": "checks one small piece of code by itself",
    "a mock": "stands in for a part that a test does not want to run",
    "a linter": "finds suspicious code without running it",
    "a compiler": "turns source code into code for the machine",
    "a merge conflict": "arises when two branches change the same lines",
    "a rebase": "puts commits on top of another branch",
    "a foreign key": "points from one table to a row of another",
    "a transaction": "is done as a whole or not at all",
    "a webhook": "is a request that a service sends when something happens",
    "an enum": "is a type with a fixed list of values",
    "an interface": "says what a type can do, not how",
    "technical debt": "is work that was put off and costs more later",
    "latency": "is the time from a request to its answer",
    "a memory leak": "is memory that is never given back",
    "a regular expression": "describes which texts match",
}
"""A word -> what follows it in a definition."""

HOW_TO = (
    ("run only test_{function} with pytest", "pytest -k test_{function}"),
    ("run only test_{function} with cargo", "cargo test test_{function}"),
    ("undo my changes in {path}", "git restore {path}"),
    ("see who wrote {path}", "git blame {path}"),
    ("delete the branch {branch}", "git branch -d {branch}"),
    ("follow {other}-{topic}.log", "tail -f {other}-{topic}.log"),
    ("make {script} executable", "chmod +x {script}"),
    ("see the first {few} lines of {path}", "head -n {few} {path}"),
    ("see what listens on port {port}", "lsof -i :{port}"),
    ("pack the folder {folder}", "tar -czf {other}.tar.gz {folder}"),
    ("stop the container {other}-{topic}", "docker stop {other}-{topic}"),
    ("save my changes as {branch} for later", "git stash push -m {branch}"),
)
"""What somebody wants to do by hand, and the command for it."""

_GREETING = Talk(
    asks=(
        "Hi! Today I work on the {topic} {other}.",
        "Hello, are you there? It is about the {topic} {other}.",
        "Good morning! I will clean up the {topic} {other} with you.",
        "Hey, I am new here and look after the {topic} {other}.",
        "Hi, I am back. The {topic} {other} is still open.",
    ),
    says=(
        "Hello! What should I do with the {topic} {other}?",
        "Hi! Tell me what the {topic} {other} needs.",
        "Hello! Where do we start with the {topic} {other}?",
        "Hello! Name a file of the {topic} {other} and I will read it.",
        "Hi! I can read, search and change files of the {topic} {other}.",
        "Hello! What is first for the {topic} {other}?",
    ),
)
_CONCEPT = Talk(
    asks=(
        "What is {concept}? {path} has a comment about it.",
        "Can you explain {concept} in one sentence? I met it in {path}.",
        "I read about {concept} in {path}. What does that mean?",
        "What do people mean by {concept}? The author of {path} likes it.",
    ),
    says=(
        "{Concept} {meaning}. I can look at `{path}` too.",
        "In short: {concept} {meaning}. Shall I read `{path}`?",
        "{Concept} {meaning}. If you like, I check how `{path}` does it.",
        "{Concept} {meaning}. `{path}` may show an example.",
    ),
)
_VAGUE = Talk(
    asks=(
        "Fix the bug in the {topic} {other}.",
        "There is a typo in the {topic} {other}, correct it.",
        "Make the {topic} {other} faster.",
        "The {topic} {other} is broken. Repair it.",
        "Change the number in the {topic} {other}.",
    ),
    says=(
        "Which file of the {topic} {other} is it? I will not guess.",
        "I need to know the file: the {topic} {other} may be in several.",
        "I need a path first. Where is the {topic} {other}?",
        "Tell me which file you mean, and what the {topic} {other} should do.",
        "What exactly is wrong with the {topic} {other}, and in which file?",
    ),
)
_HOW_TO = Talk(
    asks=(
        "How do I {wish}?",
        "Which command do I type to {wish}? I will run it myself.",
        "I want to {wish} by hand. How?",
        "Remind me how to {wish}.",
        "What would I type to {wish}?",
    ),
    says=(
        "Type `{by_hand}`.",
        "Use `{by_hand}` to {wish}.",
        "The command is `{by_hand}`.",
        "To {wish}, type `{by_hand}`.",
        "`{by_hand}` does that.",
    ),
)
_NOTE = Talk(
    asks=(
        "Note: {path} belongs to the {other} team.",
        "For later: do not touch {path}, the {other} team owns it.",
        "Keep in mind that the {other} team looks after {path}.",
        "You should know that {path} is the work of the {other} team.",
    ),
    says=(
        "I will remember that `{path}` belongs to the {other} team.",
        "I will ask the {other} team before I touch `{path}`.",
        "`{path}` is the {other} team's, I will not touch it.",
        "I keep in mind that the {other} team owns `{path}`.",
    ),
)
_NAMING = Talk(
    asks=(
        "What is a good {language} name for a function that can {verb} one {topic}?",
        "How would you name a {language} function whose job is to {verb} the {topic}?",
        "I need a {language} name for a function, it should {verb} the {topic}.",
        "Suggest a {language} function name for: {verb} a {topic}.",
    ),
    says=(
        "I would call it `{function}`.",
        "`{function}` says what it does.",
        "A good {language} name is `{function}`.",
        "In {language}, `{function}` is the usual form.",
    ),
)
_GUESS = Talk(
    asks=(
        "Without looking, what does {path} do?",
        "Just guess: how many lines has {path}?",
        "Do not open it, but is {path} correct?",
        "From memory, which functions are in {path}?",
    ),
    says=(
        "I have not read `{path}`, so I cannot say. Shall I open it?",
        "I would have to guess. Let me read `{path}` first.",
        "I do not know before I read `{path}`.",
        "That would be a guess; `{path}` has to be opened for that.",
    ),
)
_MESSAGE = Talk(
    asks=(
        "Suggest a commit message: {setting} in {path} went from {old} to {new}.",
        "I changed {setting} from {old} to {new} in {path}. What should the commit say?",
        "Word a commit message for me. In {path}, {setting} is {new} now, it was {old}.",
        "How would you call a commit that takes {setting} in {path} from {old} to {new}?",
    ),
    says=(
        '"Set {setting} to {new} in {path}".',
        "I would write: Change {setting} from {old} to {new}.",
        '"{setting}: {new} instead of {old}" says it all.',
        "A short one: {setting} is {new} now, not {old}.",
    ),
)
TALKS = (_GREETING, _CONCEPT, _VAGUE, _HOW_TO, _NOTE, _NAMING, _GUESS, _MESSAGE)
"""What may open a session."""

_THANKS = Talk(
    asks=("Thanks!", "Thank you, that helps.", "Great, thanks.", "Perfect.", "Good, that is all for now."),
    says=(
        "You are welcome. Tell me if I should {again}.",
        "You are welcome. I can {again} whenever you like.",
        "I am glad. If you want, I {again}.",
        "I am glad to help. Say so if I should {again}.",
    ),
)
_RECAP = Talk(
    asks=(
        "What did you just do?",
        "Sum up what you did.",
        "Remind me what you did just now.",
        "Which steps did you take?",
        "What have you done so far?",
    ),
    says=("I {did}.", "The steps were: I {did}.", "I {did}, in this order.", "I {did}, and that was all."),
)
AFTER = (_THANKS, _RECAP)
"""What may follow an answer."""

DID = {
    "Bash": "ran `{command}`",
    "Read": "read `{file_path}`",
    "Edit": "edited `{file_path}`",
    "Write": "wrote `{file_path}`",
    "Glob": "looked for `{pattern}`",
    "Grep": "searched for `{pattern}`",
}
AGAIN = {
    "Bash": "run `{command}` again",
    "Read": "read `{file_path}` again",
    "Edit": "change `{file_path}` back",
    "Write": "change `{file_path}` again",
    "Glob": "look for `{pattern}` again",
    "Grep": "search for `{pattern}` again",
}
