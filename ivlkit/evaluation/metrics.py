"""Scores of one reply, from 0 to 1. Standard library only."""


def exact_match(reply, truth):
    """1 if both are equal after collapsing whitespace, else 0. Upper and lower case differ."""
    return float(" ".join(reply.split()) == " ".join(truth.split()))


METRICS = {"exact_match": exact_match}
