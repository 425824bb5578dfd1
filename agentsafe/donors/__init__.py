"""Labelled rollouts that a run did not make, for its preference sets.

`config` has the settings, `earlier_run` finds and reads the tables of an earlier run, and
`importer` compares a donor's cases with the run's and names its checkpoints apart.
"""
