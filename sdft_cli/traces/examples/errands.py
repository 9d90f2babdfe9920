"""Requests that one tool call settles: how the user asks, the call that follows, its results and what they mean.

An order is an imperative that frames and joins turn into a request; an ask is a whole sentence. All are templates over
`vocabulary`. Arguments take their values from the request, answers from the result; things are counted in words.
"""

from __future__ import annotations

from dataclasses import dataclass

Step = tuple[str, dict[str, str]]
"""A tool and its arguments."""


@dataclass(frozen=True)
class Ending:
    """How it goes: what each call returned (fewer outputs than calls: the work ends early), and how to say so."""

    outputs: tuple[str, ...]
    says: tuple[str, ...]


@dataclass(frozen=True)
class Errand:
    """Something to do with tools. The first ending is the usual one."""

    orders: tuple[str, ...]
    asks: tuple[str, ...]
    steps: tuple[Step, ...]
    endings: tuple[Ending, ...]


def errand(
    tool: str, arguments: dict[str, str], orders: tuple[str, ...], asks: tuple[str, ...], **endings: tuple[str, ...]
) -> Errand:
    """Make an errand of one call; each ending is its output, then ways to say what it means."""
    found = tuple(Ending((output,), tuple(says)) for output, *says in endings.values())
    return Errand(orders, asks, ((tool, arguments),), found)


_NO_FILE = "File does not exist."
_NO_MATCH = "No matches found"

SEARCHES = (
    errand(
        "Grep",
        {"pattern": "{define}"},
        (
            "find the {language} function {function}",
            "look up where the {language} function {function} is defined",
            "locate the definition of {function} in the {language} code",
        ),
        ("Where is the {language} function {function} defined?", "Which {language} file defines {function}?"),
        found=(
            "{path}:{line}:{define}(x)",
            "`{function}` is defined in `{path}`, line {line}.",
            "You find `{function}` at line {line} of `{path}`.",
            "The definition of `{function}` is in `{path}` at line {line}.",
            "`{path}` defines `{function}` in line {line}.",
        ),
        none=(
            _NO_MATCH,
            "The function `{function}` is not defined.",
            "`{function}` is defined nowhere.",
            "I found no function called `{function}`.",
        ),
    ),
    errand(
        "Grep",
        {"pattern": "{function}", "path": "{folder}"},
        (
            "find the callers of {function} in {folder}",
            "search {folder} for uses of {function}",
            "show me who calls {function} in {folder}",
        ),
        ("Who uses {function} in {folder}?", "Which files of {folder} call {function}?"),
        two=(
            "{inside}:{line}: {function}(a)\n{inside2}:{line2}: {function}(b)",
            "`{function}` is used in line {line} of `{inside}` and in line {line2} of `{inside2}`.",
            "`{function}` is called in `{inside}` and in `{inside2}`.",
            "The callers of `{function}` are `{inside}` and `{inside2}`.",
        ),
        one=(
            "{inside2}:{line}: {function}(a)",
            "`{inside2}` alone calls `{function}`, in line {line}.",
            "The only use of `{function}` is in line {line} of `{inside2}`.",
        ),
        none=(_NO_MATCH, "I found no use of `{function}` in `{folder}`.", "`{function}` has no caller in `{folder}`."),
    ),
    errand(
        "Grep",
        {"pattern": "{marker}", "path": "{folder}"},
        (
            "look for {marker} comments in {folder}",
            "search {folder} for {marker}",
            "find what is marked {marker} in {folder}",
        ),
        ("Are there any {marker} comments in {folder}?", "Is something in {folder} marked {marker}?"),
        one=(
            "{inside}:{line}: {marker}: {chore}",
            "`{inside}` has a {marker} in line {line}: {chore}.",
            "I found a {marker} in line {line} of `{inside}`: {chore}.",
            "The only {marker} is in `{inside}`: {chore}.",
        ),
        none=(_NO_MATCH, "`{folder}` has no {marker} comment.", "I found no {marker} in `{folder}`."),
    ),
    errand(
        "Grep",
        {"pattern": "{setting}", "path": "{path}"},
        ("look up {setting} in {path}", "find the value of {setting} in {path}", "check {setting} in {path}"),
        ("What is {setting} set to in {path}?", "Which value has {setting} in {path}?"),
        found=(
            "{line}:{line_was}",
            "`{setting}` is {old} in `{path}`.",
            "`{path}` sets `{setting}` to {old}.",
            "It is {old}: line {line} of `{path}` sets `{setting}`.",
            "The value of `{setting}` is {old}.",
        ),
        none=(_NO_MATCH, "`{path}` does not mention `{setting}`.", "I do not see `{setting}` in `{path}`."),
    ),
    errand(
        "Glob",
        {"pattern": "{glob}"},
        (
            "find the {language} files in {folder}",
            "look for {language} files in {folder}",
            "tell me which {language} files {folder} has",
        ),
        ("Which {language} files are in {folder}?", "Does {folder} hold any {language} files?"),
        two=(
            "{inside}\n{inside2}",
            "The files are `{inside}` and `{inside2}`.",
            "`{folder}` has two {language} files, `{inside}` and `{inside2}`.",
            "I found `{inside}` and `{inside2}`.",
        ),
        one=("{inside2}", "It has only `{inside2}`.", "The only {language} file there is `{inside2}`."),
        none=("No files found", "`{folder}` has no {language} file.", "I found no {language} file in `{folder}`."),
    ),
    errand(
        "Glob",
        {"pattern": "**/{config}"},
        ("find the file {config}", "find out where {config} is", "look for a file called {config}"),
        ("Where is {config}?", "Is there a file called {config}?", "Do we have a {config} somewhere?"),
        found=(
            "{folder}/{config}",
            "It is `{folder}/{config}`.",
            "`{config}` is in `{folder}`.",
            "The file is in `{folder}`: `{folder}/{config}`.",
        ),
        none=("No files found", "`{config}` does not exist.", "I found no `{config}` anywhere."),
    ),
)

READINGS = (
    errand(
        "Read",
        {"file_path": "{path}"},
        ("show me {path}", "read {path}", "open {path} and tell me what it does", "explain {path}"),
        ("What does {path} do?", "What is in {path}?", "Which functions does {path} have?"),
        two=(
            "{source}\n\n{source2}",
            "`{path}` has two functions, `{function}` and `{function2}`.",
            "It defines `{function}` and `{function2}`.",
            "The functions in `{path}` are `{function}` and `{function2}`.",
        ),
        one=(
            "{source}",
            "`{path}` has one function, `{function}`: it computes x {operator} {factor}.",
            "It defines `{function}`, which returns x {operator} {factor}.",
        ),
        missing=(_NO_FILE, "`{path}` does not exist.", "I could not read `{path}`: there is no such file."),
    ),
    errand(
        "Read",
        {"file_path": "{doc}"},
        ("read {doc}", "sum up {doc}", "tell me what {doc} is about"),
        ("What does {doc} say?", "What is {doc} about?"),
        found=(
            "# The {other}\n\nRun {script} to {verb} the {topic}.",
            "It says to run `{script}` to {verb} the {topic}.",
            "`{doc}` tells how to {verb} the {topic}: run `{script}`.",
            "The page is about the {other}: `{script}` is there to {verb} the {topic}.",
        ),
        empty=("The file is empty.", "`{doc}` is empty.", "The file `{doc}` is empty."),
        missing=(_NO_FILE, "`{doc}` does not exist.", "I cannot say: `{doc}` does not exist."),
    ),
    errand(
        "Read",
        {"file_path": "{config}"},
        ("look up the port in {config}", "read the port from {config}", "check which port {config} sets"),
        ("Which port does {config} set?", "What port is in {config}?"),
        found=(
            '[{topic}]\nhost = "{other}"\nport = {port}',
            "The port is {port}.",
            "`{config}` sets port {port}.",
            "`{config}` has port {port}, for the host `{other}`.",
        ),
        none=(
            '[{topic}]\nhost = "{other}"',
            "`{config}` sets no port, only the host `{other}`.",
            "The file has no port; `{config}` names the host `{other}` and nothing else.",
        ),
    ),
)

WRITINGS = (
    errand(
        "Write",
        {"file_path": "{path}", "content": "{stub}"},
        (
            "create {path} with a {language} function {function} that returns {new}",
            "write {path}: one {language} function, {function}, that returns {new}",
            "make a file {path} whose {language} function {function} returns {new}",
        ),
        ("I need {path} with a {language} function {function} that returns {new}.",),
        done=(
            "File created successfully at: {path}",
            "I created `{path}`; `{function}` returns {new}.",
            "`{path}` is there, with `{function}`.",
            "The file `{path}` now has `{function}`, which returns {new}.",
        ),
        refused=(
            "Error: permission denied: {path}",
            "I could not write `{path}`: permission denied.",
            "`{path}` was not created, the permission was denied.",
        ),
    ),
    errand(
        "Write",
        {"file_path": "{config}", "content": "port = {port}\n"},
        (
            "write port = {port} into a new file {config}",
            "create {config} with the line port = {port}",
            "make a file {config} that sets port = {port}",
        ),
        ("I need a file {config} with port = {port}.",),
        done=(
            "File created successfully at: {config}",
            "I created `{config}` with port {port}.",
            "`{config}` now sets port {port}.",
            "The file `{config}` has the line `port = {port}`.",
        ),
    ),
)
