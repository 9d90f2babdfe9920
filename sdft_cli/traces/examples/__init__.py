"""The project's own example sessions: short coding tasks, written as genuine Claude Code JSONL by a seeded generator.
Tests, `sdft demo` and the benchmarks need nobody's real sessions. What they teach is a rule, not a text: the tool and
its arguments follow from the request, the final answer from the results, and talk needs no tool. Among them: failures
told as such, reasoning blocks, parallel calls, rewound prompts (a fork), meta lines and echoes of local commands.

lines       writes the lines of one session
vocabulary  the names that sessions speak of: functions, paths, settings, packages, commands
errands     requests that one tool call settles, and what each result means
commands    the same, settled by one shell command
chains      requests that need a call after another
talk        requests that need no tool: greetings, questions, thanks
sessions    which requests a session has, and a folder of sessions
"""

from sdft_cli.traces.examples.sessions import Subset, example_session, write_examples

__all__ = ["Subset", "example_session", "write_examples"]
