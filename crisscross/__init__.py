"""CrissCross: self-supervised audio-visual learning with relaxed cross-modal synchronicity.

This package trains and evaluates. It does not depend on Slurm, studies or tables, which are in ``launch`` and
``analysis``.
"""
