"""What the ``dstee`` command does: trainings with checkpoints, their pictures, the proof that they resume.

The rest of dstee never imports this package.
"""
