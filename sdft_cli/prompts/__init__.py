"""Chat rendering and tokenisation, the teacher's prompt, and tool calls parsed back out of text."""
