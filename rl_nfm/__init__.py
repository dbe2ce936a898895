"""Networks and their maths: encoders, NFM, RIMs, arithmetic and modular nets, heads and losses.

Knows torch. Knows no environment, no replay and no training of agents.
"""
