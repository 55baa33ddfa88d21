"""What the features of a trained model are worth elsewhere. May import `tt_ray`; never the other way round."""
