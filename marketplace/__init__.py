"""The market: who takes part, what is on offer, and the faces people and programs see."""
