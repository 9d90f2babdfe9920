"""Requests that one shell command settles."""

from __future__ import annotations

from sdft_cli.traces.examples.errands import Errand, errand


def _command(command: str, orders: tuple[str, ...], asks: tuple[str, ...], **endings: tuple[str, ...]) -> Errand:
    return errand("Bash", {"command": command}, orders, asks, **endings)


COMMANDS = (
    _command(
        "ls {folder}",
        ("list {folder}", "list the files in {folder}", "show me what {folder} holds"),
        ("What is in the folder {folder}?", "Which files does {folder} have?"),
        three=(
            "{file2}\n{file3}\n{file}",
            "`{folder}` holds three files: `{file2}`, `{file3}` and `{file}`.",
            "It has `{file2}`, `{file3}` and `{file}`.",
            "The files are `{file2}`, `{file3}` and `{file}`.",
        ),
        two=(
            "{file3}\n{file2}",
            "It holds `{file3}` and `{file2}`.",
            "The folder has two files, `{file3}` and `{file2}`.",
        ),
        missing=(
            "ls: cannot access '{folder}': No such file or directory",
            "The folder `{folder}` does not exist.",
            "`{folder}` does not exist.",
        ),
    ),
    _command(
        "{test}",
        (
            "run the {topic} tests with {runner}",
            "test the {topic} with {runner}",
            "check the {topic} tests with {runner}",
        ),
        ("Do the {topic} tests pass with {runner}?", "Does {runner} say that the {topic} tests are fine?"),
        passed=(
            "{passed}",
            "The {count} {topic} tests pass.",
            "The {topic} tests pass, all {count}.",
            "I ran {count} {topic} tests and all passed.",
            "`{test}` is green: {count} tests pass.",
        ),
        failed=(
            "{failed}",
            "The test `test_{function}` fails.",
            "I see one {topic} test that fails, `test_{function}`.",
            "`test_{function}` fails, the other {topic} tests pass.",
        ),
    ),
    _command(
        "git status --short {folder}",
        (
            "check for uncommitted changes in {folder}",
            "show me the git status of {folder}",
            "look whether {folder} is committed",
        ),
        ("Are there uncommitted changes in {folder}?", "Is everything in {folder} committed?"),
        one=(
            " M {inside}",
            "`{inside}` has changes that are not committed.",
            "The file `{inside}` is changed and not committed.",
            "I see one change that is not committed, in `{inside}`.",
        ),
        new=("?? {inside2}", "`{inside2}` is new and not tracked.", "The file `{inside2}` is not tracked."),
        clean=("", "`{folder}` is clean.", "I see no change in `{folder}`."),
    ),
    _command(
        "git log --oneline -1 {path}",
        (
            "look up the last commit of {path}",
            "find out what changed {path} last",
            "show me the newest commit of {path}",
        ),
        ("What was the last commit to {path}?", "Which commit changed {path} last?"),
        found=(
            "{hash} {change}",
            "The last commit of `{path}` is `{hash}`: {change}.",
            "`{path}` was changed last by `{hash}`, {change}.",
            "It was `{hash}` ({change}).",
        ),
        none=("", "`{path}` was never committed.", "I see no commit of `{path}`."),
    ),
    _command(
        "git diff --stat {path}",
        (
            "show me how much {path} changed",
            "check how many lines of {path} are changed",
            "run git diff --stat on {path}",
        ),
        ("How much did I change in {path}?", "How many lines of {path} are changed?"),
        some=(
            " {path} | {few} +++---",
            "`{path}` has {few} changed lines.",
            "You changed {few} lines in `{path}`.",
            "The diff of `{path}` has {few} lines.",
        ),
        none=("", "`{path}` is unchanged.", "I see no change in `{path}`."),
    ),
    _command(
        "wc -l {path}",
        ("count the lines of {path}", "tell me how long {path} is", "get the number of lines in {path}"),
        ("How many lines does {path} have?", "How long is {path}?"),
        found=(
            "{line2} {path}",
            "`{path}` has {line2} lines.",
            "It has {line2} lines.",
            "The file `{path}` has {line2} lines.",
            "I count {line2} lines in `{path}`.",
        ),
        missing=(
            "wc: {path}: No such file or directory",
            "I cannot count them: `{path}` does not exist.",
            "`{path}` does not exist.",
        ),
    ),
    _command(
        "mkdir -p {folder}",
        ("make the folder {folder}", "create a folder {folder}", "add an empty folder {folder}"),
        ("I need a folder {folder}.",),
        done=("", "I made the folder `{folder}`.", "`{folder}` is there now.", "The folder `{folder}` exists now."),
        refused=(
            "mkdir: cannot create directory '{folder}': Permission denied",
            "I could not make `{folder}`: permission denied.",
            "`{folder}` was not created, the permission was denied.",
        ),
    ),
    _command(
        "mv {path} {path2}",
        ("move {path} to {path2}", "rename {path} to {path2}", "rename the file {path}, it should be {path2}"),
        ("{path} should be called {path2}.",),
        done=(
            "",
            "`{path}` is now `{path2}`.",
            "I moved `{path}` to `{path2}`.",
            "The file is called `{path2}` now.",
        ),
        missing=(
            "mv: cannot stat '{path}': No such file or directory",
            "`{path}` was not moved, it does not exist.",
            "I could not move it, there is no `{path}`.",
        ),
    ),
    _command(
        "git switch -c {branch}",
        ("make a branch {branch}", "create the git branch {branch}", "start a new branch called {branch}"),
        ("I want to work on a new branch {branch}.",),
        done=(
            "Switched to a new branch '{branch}'",
            "You are on the new branch `{branch}`.",
            "I created the branch `{branch}` and switched to it.",
            "The branch `{branch}` is made.",
        ),
        exists=(
            "fatal: a branch named '{branch}' already exists",
            "The branch `{branch}` exists already, so I made none.",
            "I made no branch: `{branch}` exists already.",
        ),
    ),
    _command(
        "{install}",
        (
            "install {package} {version} with {installer}",
            "use {installer} to get {package} {version}",
            "add {package} {version} with {installer}",
        ),
        ("We need {package} {version}, use {installer}.",),
        done=(
            "added {package} {version}",
            "`{package}` {version} is installed.",
            "I installed `{package}` {version} with {installer}.",
            "The package `{package}` {version} was added by {installer}.",
        ),
        none=(
            "error: no version {version} of {package}",
            "It failed: `{package}` has no version {version}.",
            "{installer} found no version {version} of `{package}`, nothing was installed.",
        ),
    ),
    _command(
        "make {target}",
        ("run make {target}", "make the target {target}", "call make for {target}"),
        ("Does make {target} work?", "What does make {target} print?"),
        done=(
            "{target}: {count} steps done",
            "`make {target}` worked: {count} steps were done.",
            "It ran {count} steps without an error.",
            "The {count} steps of `{target}` are done.",
        ),
        none=(
            "make: *** No rule to make target '{target}'. Stop.",
            "The Makefile has no target `{target}`.",
            "It failed: there is no rule for `{target}`.",
        ),
    ),
    _command(
        "du -sh {folder}",
        ("get the size of {folder}", "check how much space {folder} takes", "measure the folder {folder}"),
        ("How big is {folder}?", "How much space does {folder} take?"),
        found=(
            "{few}M\t{folder}",
            "`{folder}` takes {few} MB.",
            "It takes {few} MB.",
            "The size of `{folder}` is {few} MB.",
        ),
        missing=(
            "du: cannot access '{folder}': No such file or directory",
            "I cannot say: `{folder}` does not exist.",
            "The folder `{folder}` does not exist.",
        ),
    ),
    _command(
        "sh {script}",
        ("run {script}", "start {script}", "execute {script}"),
        ("What happens when you run {script}?", "Does {script} work?"),
        done=(
            "done: {count} rows, {few} skipped",
            "`{script}` handled {count} rows and skipped {few}.",
            "It worked: {count} rows are done, {few} were skipped.",
            "The script did {count} rows and skipped {few}.",
        ),
        failed=(
            "error: {other} not found",
            "`{script}` stopped with an error: {other} not found.",
            "It failed, because the {other} was not found.",
        ),
    ),
)
