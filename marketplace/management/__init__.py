"""What brings the market up on a bare machine.

Standard library only: most of it runs before anything is installed.
"""
