"""Looking at a dataset: its sessions, one session, one record, what was dropped, and where a text stands.

screen        how wide and how coloured lines are
names         from a name, or the beginning of one, to a session or a turn
listing       the sessions as a list
timeline      one session, message by message
prompt_lines  a prompt as lines with its control tokens marked, and how two prompts differ
tokens        token ids and pieces, with their boundaries
record_view   one record: the student's prompt, the teacher's, the expert's turn
rejected      the turns that were dropped, and why
search        where a text stands, literally
"""
