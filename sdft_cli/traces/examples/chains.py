"""Requests that need a call after another: the second one takes its arguments from the request or the first result."""

from __future__ import annotations

from sdft_cli.traces.examples.errands import Ending, Errand

_EDITED = "The file {path} has been updated."

CHAINS = (
    Errand(
        orders=(
            "change {setting} in {path} from {old} to {new}",
            "set {setting} to {new} instead of {old} in {path}",
            "replace {old} by {new} for {setting} in {path}",
        ),
        asks=("{setting} in {path} is {old}, it should be {new}.",),
        steps=(
            ("Read", {"file_path": "{path}"}),
            ("Edit", {"file_path": "{path}", "old_string": "{was}", "new_string": "{becomes}"}),
        ),
        endings=(
            Ending(
                ("{line_was}", _EDITED),
                (
                    "`{setting}` in `{path}` is now {new}.",
                    "I changed `{setting}` from {old} to {new}.",
                    "`{path}` now sets `{setting}` to {new}.",
                    "The value of `{setting}` was {old} and is {new} now.",
                ),
            ),
            Ending(
                ("{line_differs}",),
                (
                    "I changed nothing: `{setting}` is {elsewhere}, not {old}.",
                    "`{path}` has {elsewhere} for `{setting}`, not {old}, so I left it.",
                ),
            ),
            Ending(("File does not exist.",), ("`{path}` does not exist, so I changed nothing.",)),
        ),
    ),
    Errand(
        orders=(
            "set {setting} to {new}, wherever it is",
            "find {setting} and set it to {new}",
            "look for {setting} and make it {new}",
        ),
        asks=("Somewhere we set {setting}, it should be {new}.",),
        steps=(
            ("Grep", {"pattern": "{setting}"}),
            ("Edit", {"file_path": "{path}", "old_string": "{was}", "new_string": "{becomes}"}),
        ),
        endings=(
            Ending(
                ("{path}:{line}:{line_was}", _EDITED),
                (
                    "`{setting}` is in `{path}`; it was {old} and is now {new}.",
                    "I set `{setting}` to {new} in `{path}`.",
                    "`{path}` now sets `{setting}` to {new}, in line {line}.",
                ),
            ),
            Ending(
                ("No matches found",),
                ("I found no `{setting}`, so I changed nothing.", "`{setting}` is set nowhere; nothing was changed."),
            ),
        ),
    ),
    Errand(
        orders=(
            "rename {function} to {function2} in {path}",
            "give {function} in {path} the name {function2}",
            "call {function} in {path} {function2} from now on",
        ),
        asks=("The function {function} in {path} should be called {function2}.",),
        steps=(
            ("Read", {"file_path": "{path}"}),
            ("Edit", {"file_path": "{path}", "old_string": "{define}(", "new_string": "{define2}("}),
        ),
        endings=(
            Ending(
                ("{source}", _EDITED),
                (
                    "`{function}` is now `{function2}` in `{path}`.",
                    "I renamed `{function}` to `{function2}`.",
                    "The function is called `{function2}` now.",
                ),
            ),
            Ending(
                ("{source2}",),
                (
                    "`{path}` has no `{function}`; it already has `{function2}`.",
                    "I renamed nothing: the function in `{path}` is `{function2}` already.",
                ),
            ),
        ),
    ),
    Errand(
        orders=(
            "find the {language} function {function} and tell me what it returns",
            "look up what the {language} function {function} returns",
            "find out what {function} computes in the {language} code",
        ),
        asks=("What does the {language} function {function} return?",),
        steps=(("Grep", {"pattern": "{define}"}), ("Read", {"file_path": "{path}"})),
        endings=(
            Ending(
                ("{path}:{line}:{define}(x)", "{source}"),
                (
                    "`{function}` in `{path}` returns x {operator} {factor}.",
                    "It returns x {operator} {factor}; it is defined in `{path}`.",
                    "The result of `{function}` is x {operator} {factor}.",
                ),
            ),
            Ending(
                ("No matches found",),
                ("The function `{function}` does not exist.", "I cannot say: nothing defines `{function}`."),
            ),
        ),
    ),
    Errand(
        orders=(
            "find {config} and tell me its port",
            "look for {config} and read the port from it",
            "find out where {config} is and which port it sets",
        ),
        asks=("There is a {config} somewhere, which port is in it?",),
        steps=(("Glob", {"pattern": "**/{config}"}), ("Read", {"file_path": "{folder}/{config}"})),
        endings=(
            Ending(
                ("{folder}/{config}", 'host = "{other}"\nport = {port}'),
                (
                    "`{folder}/{config}` sets port {port}.",
                    "The port is {port}, from `{folder}/{config}`.",
                    "It is in `{folder}` and its port is {port}.",
                ),
            ),
            Ending(
                ("No files found",),
                ("`{config}` does not exist.", "I found no file called `{config}`, so I have no port."),
            ),
        ),
    ),
    Errand(
        orders=(
            "make the folder {folder} and write port = {port} into {folder}/{config}",
            "create {folder}, with a file {folder}/{config} that sets port = {port}",
            "add a folder {folder} and in it {folder}/{config} with port = {port}",
        ),
        asks=("I need a new folder {folder} and in it {folder}/{config} with port = {port}.",),
        steps=(
            ("Bash", {"command": "mkdir -p {folder}"}),
            ("Write", {"file_path": "{folder}/{config}", "content": "port = {port}\n"}),
        ),
        endings=(
            Ending(
                ("", "File created successfully at: {folder}/{config}"),
                (
                    "`{folder}/{config}` is written, with port {port}.",
                    "I made `{folder}` and put `{config}` with port {port} into it.",
                    "The folder `{folder}` is there, and `{config}` in it.",
                ),
            ),
            Ending(
                ("mkdir: cannot create directory '{folder}': Permission denied",),
                ("I could not make `{folder}`: permission denied. Nothing was written.",),
            ),
        ),
    ),
    Errand(
        orders=(
            "run {script} and read the file that it complains about",
            "start {script}, and if it fails read the file it names",
            "run {script}; should it name a broken file, look into it",
        ),
        asks=("{script} fails, which file is to blame and what is in it?",),
        steps=(("Bash", {"command": "sh {script}"}), ("Read", {"file_path": "{config}"})),
        endings=(
            Ending(
                ("error in {config}", "port = {topic}"),
                (
                    "It fails because of `{config}`: the port is `{topic}`, which is no number.",
                    "`{config}` is to blame: it sets the port to `{topic}`.",
                    "`{script}` stops at `{config}`, where the port is `{topic}`.",
                ),
            ),
            Ending(
                ("done: {count} rows",),
                ("`{script}` did not fail: {count} rows are done.", "It worked this time, {count} rows are done."),
            ),
        ),
    ),
    Errand(
        orders=(
            'commit {path} as "{change}"',
            'add {path} to git and commit it as "{change}"',
            'make a commit of {path} with the message "{change}"',
        ),
        asks=('{path} is ready, the commit should say "{change}".',),
        steps=(
            ("Bash", {"command": "git add {path}"}),
            ("Bash", {"command": 'git commit -m "{change}"'}),
        ),
        endings=(
            Ending(
                ("", "[main {hash}] {change}"),
                (
                    "`{path}` is committed as `{hash}`.",
                    "The commit is `{hash}`: {change}.",
                    "I committed it: `{hash}`, {change}.",
                ),
            ),
            Ending(
                ("fatal: pathspec '{path}' did not match any files",),
                ("I committed nothing: git knows no `{path}`.", "`{path}` does not exist, so I committed nothing."),
            ),
        ),
    ),
)
