"""The training run: a step, the loop around it, and all that watches it.

sdft_step     the algorithm: sample, score with teacher and student, loss, backward, update
scores        what a step finds at its tokens, and how several processes join theirs
step_metrics  the numbers of a step
autopsy       what student and teacher thought of the tokens of a sample
rollouts      which weights sample, and whether sampler and trainer agree
vllm_sampler  rollouts from unsloth's vLLM engine
run           a configuration and a dataset -> a finished run folder
opening       everything before the first step: model, tokenizer, trainer, checked and agreed on
loop          steps, held-out evaluations, checkpoints and reasons to stop
rehearsal     the longest step once before step 1
heldout       the evaluation on fixed records while training
stop_rules    rules that notice a run that goes wrong
checkpoints   states on disk: written whole, verified before they are used
resume_state  what a step depends on, captured and put back bit for bit
trackers      tensorboard, trackio and wandb
profile       where the time of N steps went
"""
