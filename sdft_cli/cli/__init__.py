"""One thin file per command: parse, build a configuration, call one function, render. No torch at import time."""
