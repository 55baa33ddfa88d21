"""Images, labels and text targets, as batches that depend on (seed, epoch, sample) and (seed, step) alone."""
