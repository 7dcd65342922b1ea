"""The built-in cells on tiles in registers; a state, a step's inputs and the weights are tuples.

nonlinear.py   σ and tanh
tanh.py        one gate
gru.py         three gates
lstm.py        three gates, two numbers a state
cell.py        the one that a compile-time name names
"""
