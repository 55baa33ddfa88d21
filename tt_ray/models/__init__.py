"""Backbones, teachers, export."""
