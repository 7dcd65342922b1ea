"""Evaluation tasks: what is read, and what is measured at its last tokens.

task.py has the interface: samples, and the figures of one sample from its logits. perplexity.py is
the loss on the same last tokens of documents while their context grows, passkey.py a number hidden
in filler. A task exists by its entry in registry.py.
"""
