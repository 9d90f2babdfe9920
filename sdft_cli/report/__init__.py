"""Tables, cards and pages: what a person reads."""
