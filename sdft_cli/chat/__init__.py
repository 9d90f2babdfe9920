"""What is said in a chat with a model, apart from the model itself. No torch.

conversation  messages, tools, calls that wait for a result: what the model is shown
answer        what a model answered: its text, taken apart, and how it is shown
stream        tokens -> text while they come, and text that cannot break a terminal
screen        where it is shown: text or JSON lines
loop          what is typed -> commands, messages, results of calls
serving       the commands that serve a checkpoint, and how clients are pointed at it
"""
