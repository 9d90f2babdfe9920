"""Native Claude Code sessions: the lines of a file -> the contexts that the model saw, each a `Session`.

lines        the kind of each line (`kind_of_line`), and a file as lines
attachments  the text that an attachment showed the model
seen         which lines other files of the source hold
queue        prompts that were typed while a turn was running
graph        lines -> messages -> contexts
calls        a tool call as the model sent it
facts        what lines say beside the conversation: the version, the tokens of a prompt
prompts      the recorded system prompt and tools
writer       a context -> messages
reader       a file -> sessions, and the fate of each line
"""
