"""Chat rendering and tokenisation, the teacher's prompt, and tool calls parsed back out of text.

chat            the two prompts of a record, through the model's own chat template
template        a chat template: its text, the date that it is told, rendering
forms           how a message is handed to a template, found by rendering a call
unsaid          what a template drops without a word, found by planting words
turn_end        the token that ends a turn, as the template writes it
teacher         the teacher's last message, with the expert's turn in a block
encoding        text -> token ids, each distinct text once
incremental     token counts of every turn of a session, each distinct text once
control_tokens  no text of a session becomes a control token
tool_calls      the calls of a turn against those of a message
syntaxes/       calls in the syntaxes of the models, and which one a model writes
tool_scores     an answer's tool calls against the expert's
token_kinds     what each token of an answer is: prose, a tool's name, an argument, control
leaks           copies of the reference in an answer, and paths out of nowhere
answers         an answer against the expert's turn: calls, prose, copies
"""
