"""Peers on the same rows of the same Kafka: joules per GPU and 10 s window, each by its own idiom.

The programs here run in environments of their own under .cache/bench and import nothing of Idlewatt. Each prints
`warm` when it has seen a third of the rows and `done` when it has seen all.
"""
