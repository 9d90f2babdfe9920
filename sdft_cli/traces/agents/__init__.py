"""One module per agent or exchange format that `sdft` reads itself; `docs/other-agents.md` says what each one knows.

calls           what all agents' messages need: each result gets its call, and system prompts become one
log             what the readers of logs share: lines with fates, and contexts of messages
parts           the `parts` of Gemini's API, which Gemini CLI and Qwen Code record
gemini_cli      Gemini CLI's session files
qwen_code       Qwen Code's session files
copilot_cli     Copilot CLI's `events.jsonl`
opencode        what `opencode export` writes
opencode_parts  its parts: prompts, and the steps of a turn
atif            ATIF trajectories (Harbor)
sts             the Hub's Session Trace Simple Format
trace_rows      tables that hold a whole session of some agent in each row
blocks          Anthropic's content blocks, as OpenAI-style messages
unread          agents that are recognised and not read
teich_lines     for the agents that teich reads: which of their lines the model saw
teich_texts     their texts, kept as they are while teich arranges them
"""
