"""What a model does on records; for evaluation, for held-out records while training, and for the gate before it.

scoring       its answers, its divergence from the teacher, the likelihood of the expert's turn
gate          the teacher-lift gate: the base model under three prompts
gate_records  which records the gate scores, and whose reference each is shown as a control
verdict       the gate's criteria, in plain arithmetic
alignment     where an objective's gradient points before any step: to the expert's turns, or elsewhere
ranking       wordings and divergences by what the gate and the alignment say
"""
