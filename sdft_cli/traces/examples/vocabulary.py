"""The names that sessions speak of. They are composed, so that two sessions seldom share one.

Every name is drawn for one request; what depends on the programming language (how a function is written, how its tests
run) is in `LANGUAGES`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

Names = dict[str, str]
"""Slot of a template -> the name that goes there."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "account address alert archive asset audit backup badge banner batch bucket budget cache calendar cart catalog "
    "channel chart client comment contact coupon cursor customer device digest discount document draft event export "
    "feed filter form gallery graph image import index inventory invoice job label layout ledger license loader mailer "
    "map menu message meter metric notice order page parser patch payment permission photo player plan policy price "
    "product profile proxy queue quota rating receipt refund region report request review role router rule sample "
    "schedule schema score search sensor server session signal snapshot stock storage stream survey table task team "
    "theme ticket timer token trace transfer tree upload user vendor video voucher wallet widget window worker"
)
VERBS = _words(
    "add apply build cancel check clear close collect copy count create delete encode export fetch filter find flush "
    "format group join limit list load lock mark merge move open parse print read remove render reset resolve restore "
    "round save scan send sort split start stop store sync trim update validate write"
)
BASES = ("src", "app", "lib", "pkg", "core", "server", "client", "tools", "services", "web", "cmd", "internal")
LIMITS = ("limit", "size", "timeout", "retries", "delay", "depth", "age", "width")
MARKERS = ("TODO", "FIXME", "HACK", "XXX")
CHANGES = ("Fix", "Add", "Simplify", "Speed up", "Document", "Test", "Rename", "Remove")


@dataclass(frozen=True)
class Language:
    """A programming language, as templates over the other names.

    `define` is how a definition begins, `source` a whole function, `stub` one that returns `{new}`; `declare` is the
    line that sets a variable. `test` runs the tests of `{topic}`; `passed` and `failed` are what it prints.
    """

    name: str
    extension: str
    style: str
    define: str
    source: str
    stub: str
    declare: str
    test: str
    runner: str
    passed: str
    failed: str
    install: str
    installer: str
    packages: tuple[str, ...]


LANGUAGES = (
    Language(
        name="Python",
        extension="py",
        style="snake",
        define="def {function}",
        source="def {function}(x):\n    return x {operator} {factor}",
        stub="def {function}():\n    return {new}\n",
        declare="{set}",
        test="pytest -k {topic}",
        runner="pytest",
        passed="{count} passed in 0.{line}s",
        failed="FAILED test_{topic}.py::test_{function}\n1 failed, {count} passed",
        install="pip install {package}=={version}",
        installer="pip",
        packages=("requests", "numpy", "pandas", "flask", "click", "rich", "httpx", "redis", "celery", "pillow"),
    ),
    Language(
        name="TypeScript",
        extension="ts",
        style="camel",
        define="function {function}",
        source="function {function}(x: number) {{\n  return x {operator} {factor};\n}}",
        stub="function {function}() {{\n  return {new};\n}}\n",
        declare="const {set};",
        test="npm test -- {topic}",
        runner="npm",
        passed="Tests: {count} passed, {count} total",
        failed="FAIL {topic}.test.ts\n  ✕ test_{function}\nTests: 1 failed, {count} passed",
        install="npm install {package}@{version}",
        installer="npm",
        packages=("zod", "axios", "lodash", "express", "vite", "dayjs", "chalk", "uuid", "react", "jest"),
    ),
    Language(
        name="Go",
        extension="go",
        style="pascal",
        define="func {function}",
        source="func {function}(x int) int {{\n\treturn x {operator} {factor}\n}}",
        stub="func {function}() int {{\n\treturn {new}\n}}\n",
        declare="var {set}",
        test="gotestsum -- -run {topic}",
        runner="gotestsum",
        passed="DONE {count} tests in 0.{line}s",
        failed="=== FAIL: test_{function}\nDONE {count} tests, 1 failure",
        install="go get {package}@v{version}",
        installer="go",
        packages=("cobra", "viper", "zap", "chi", "gin", "echo", "pgx", "ent", "fx", "logrus"),
    ),
    Language(
        name="Rust",
        extension="rs",
        style="snake",
        define="fn {function}",
        source="fn {function}(x: u32) -> u32 {{\n    x {operator} {factor}\n}}",
        stub="fn {function}() -> u32 {{\n    {new}\n}}\n",
        declare="let {set};",
        test="cargo test {topic}",
        runner="cargo",
        passed="test result: ok. {count} passed; 0 failed",
        failed="test test_{function} ... FAILED\ntest result: FAILED. {count} passed; 1 failed",
        install="cargo add {package}@{version}",
        installer="cargo",
        packages=("serde", "tokio", "clap", "rand", "regex", "rayon", "axum", "log", "anyhow", "bytes"),
    ),
)


def written(verb: str, noun: str, style: str) -> str:
    """Return a name of two words as a language writes it: `load_user`, `loadUser` or `LoadUser`."""
    if style == "snake":
        return f"{verb}_{noun}"
    return (verb if style == "camel" else verb.capitalize()) + noun.capitalize()


def fill(template: str, names: Names) -> str:
    """Put names into the slots of a template."""
    return template.format_map(names)


def sentence(text: str) -> str:
    """Return a text with a capital letter at its beginning."""
    return text[0].upper() + text[1:]


def draw_names(rng: random.Random) -> Names:
    """Draw everything that one request may speak of."""
    language = rng.choice(LANGUAGES)
    topic, other, third = rng.sample(NOUNS, 3)
    verb, verb2 = rng.sample(VERBS, 2)
    names = {
        "language": language.name,
        "runner": language.runner,
        "installer": language.installer,
        "package": rng.choice(language.packages),
        "topic": topic,
        "other": other,
        "verb": verb,
        "function": written(verb, topic, language.style),
        "function2": written(verb2, topic, language.style),
        "setting": written(topic, rng.choice(LIMITS), language.style),
        "marker": rng.choice(MARKERS),
        "chore": f"{verb2} the {other}",
        "change": f"{rng.choice(CHANGES)} the {topic} {other}",
        "operator": rng.choice("+-*"),
    }
    names |= _places(names, rng.choice(BASES), third, language.extension) | _numbers(rng)
    return names | _code(names, language)


def _places(names: Names, base: str, third: str, extension: str) -> Names:
    """Return files, folders and what else has a name in a project."""
    verb, topic, other = names["verb"], names["topic"], names["other"]
    file, file2, folder = f"{topic}.{extension}", f"{other}.{extension}", f"{base}/{third}"
    return {
        "file": file,
        "file2": file2,
        "file3": f"{other}_{file}",
        "path": f"{base}/{file}",
        "path2": f"{base}/{file2}",
        "folder": folder,
        "inside": f"{folder}/{file}",
        "inside2": f"{folder}/{file2}",
        "glob": f"{folder}/*.{extension}",
        "doc": f"docs/{verb}-{topic}.md",
        "config": f"{other}-{topic}.toml",
        "script": f"scripts/{verb}_{other}.sh",
        "target": f"{verb}-{topic}",
        "branch": f"{verb}-{topic}-{other}",
    }


def _numbers(rng: random.Random) -> Names:
    old, new, elsewhere = rng.sample(range(2, 99), 3)
    return {
        "old": str(old),
        "new": str(new),
        "elsewhere": str(elsewhere),
        "port": str(rng.randrange(3000, 9999)),
        "line": str(rng.randrange(11, 99)),
        "line2": str(rng.randrange(100, 300)),
        "count": str(rng.randrange(3, 60)),
        "factor": str(rng.randrange(2, 30)),
        "few": str(rng.randrange(2, 20)),
        "hash": f"{rng.getrandbits(28):07x}",
        "version": f"{rng.randrange(5)}.{rng.randrange(20)}.{rng.randrange(20)}",
    }


def _code(names: Names, language: Language) -> Names:
    """Return what depends on the language: functions, commands and what they print, lines to change."""
    slots = ("define", "source", "stub", "test", "passed", "failed", "install")
    code = {slot: fill(getattr(language, slot), names) for slot in slots}
    second = names | {"function": names["function2"], "factor": names["few"]}
    code["source2"], code["define2"] = fill(language.source, second), fill(language.define, second)
    for slot, value in (("was", "old"), ("becomes", "new"), ("differs", "elsewhere")):
        code[slot] = f"{names['setting']} = {names[value]}"
        code[f"line_{slot}"] = fill(language.declare, {"set": code[slot]})
    return code
