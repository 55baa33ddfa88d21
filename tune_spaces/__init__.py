"""Search spaces: one small file each, from dotted configuration paths to `ray.tune` domains."""
