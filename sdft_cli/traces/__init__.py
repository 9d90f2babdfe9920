"""Where sessions come from, and how each agent writes them down: source -> files -> `Session`.

source             a file, a folder or a Hub dataset, read file by file
stores             where agents keep sessions on a machine, and a quick look at what is there
readers            every trace format, and which reader a file needs
rows               the rows of a JSON Lines, JSON, Parquet or Arrow file: objects, and broken ones counted
packed             `.gz` and `.zst` files as streams
fields             fields of foreign objects, whatever stands in them
types              what every reader returns
claude_code/       native Claude Code JSONL -> sessions, one per context that the model saw
messages           `messages` and `tools`, OpenAI-style or with Anthropic's content blocks
agents/            one module per agent and exchange format that is read without teich, and what teich needs
other_agents       Codex, Cursor, Droid, Hermes, OpenClaw and Pi, through teich
golden             the SDFT paper's data
tools              tool schemas of a session: given, declared or inferred
data_cards         what is known about source datasets
examples/          the project's own example sessions, made up by a seeded generator
"""
