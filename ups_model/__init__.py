"""UPS: one auto-regressive transformer for four pose tasks (Foo et al., CVPR 2023).

This package is the science: configuration, data, model, training and evaluation. It imports torch, numpy and
transformers, and never the packages that schedule or record its runs.
"""

RECIPE = 2
"""Raised whenever training semantics change, so that results of different recipes are never mistaken for each other."""

__version__ = "0.1.0"
