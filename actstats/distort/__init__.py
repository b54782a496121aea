"""Distorted inputs: what is done to each cropped image in [0, 1] before it is normalised.

>>> chain = parse(["scramble:4+noise:0.1"])
>>> chain.specs
['scramble:4', 'noise:0.1']
"""

from actstats.distort.chain import Chain, Distorter
from actstats.distort.parsing import KINDS, parse
from actstats.distort.pgd import pgd_l2
from actstats.distort.step import Place

__all__ = ["KINDS", "Chain", "Distorter", "Place", "parse", "pgd_l2"]
