"""Distortions: operations on each cropped image in [0, 1] before normalisation.

>>> chain = parse(["scramble:4+noise:0.1"])
>>> chain.specs
['scramble:4', 'noise:0.1']
"""

from actstats.distort.attack import pgd_l2
from actstats.distort.chain import KINDS, Chain, Distorter, parse
from actstats.distort.steps import Place

__all__ = ["KINDS", "Chain", "Distorter", "Place", "parse", "pgd_l2"]
