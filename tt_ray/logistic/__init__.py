"""Multinomial logistic regression on frozen features: the solver, without what chooses its penalty."""
