"""Where sessions come from, and how each agent writes them down: source -> files -> `Session`.

source             a file, a folder or a Hub dataset, read file by file
readers            every trace format, and which reader a file needs
rows               the rows of a JSON Lines, JSON, Parquet or Arrow file: objects, and broken ones counted
types              what every reader returns
claude_code        native Claude Code JSONL -> sessions, one per context that the model saw
claude_code_lines  the kind of each Claude Code line (`kind_of_line`), and whether it repeats another
claude_code_facts  what Claude Code lines say beside the conversation: its version, the tokens of a prompt
claude_code_graph  Claude Code lines -> messages -> contexts
messages           OpenAI-style `messages` and `tools`
other_agents       Codex, Cursor, Droid, Hermes, OpenClaw and Pi, through teich
agent_lines        which of such an agent's lines the model saw
agent_texts        their texts, kept as they are while teich arranges them
golden             the SDFT paper's data
tools              tool schemas of a session: given, declared or inferred
data_cards         what is known about source datasets
examples           the project's own example sessions
"""
