"""The miniature: a small world of its own, and tiny checkpoints that act in it.

It runs the whole experiment for real in minutes, without a download: toolkits and cases
(`toolkits`, `cases`), an emulator (`world`) and a judge (`judge`) that work by rules, scripted
demonstrators (`policies`), and source checkpoints trained on what they do (`tokenizer`,
`pretraining`, `sources`). Everything else is the code that real models go through.
"""
