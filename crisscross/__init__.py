"""CrissCross: self-supervised audio-visual learning with relaxed cross-modal synchronicity.

This package learns and evaluates. It knows nothing of Slurm, of studies or of tables; see ``launch`` and
``analysis`` for those.
"""
