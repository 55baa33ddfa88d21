"""Evaluation of a trained model's features on other tasks. May import `tt_ray`; never the other way round."""
