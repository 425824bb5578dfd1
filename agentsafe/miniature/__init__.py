"""A small rule-based world and the tiny checkpoints that act in it.

The miniature runs the whole experiment in minutes without a download: toolkits and cases
(`toolkits`, `cases`), a rule-based emulator (`world`) and judge (`judge`), scripted demonstrators
(`policies`), and source checkpoints trained on their demonstrations (`tokenizer`, `pretraining`,
`sources`). Everything else is the code that real models use.
"""
