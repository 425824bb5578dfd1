"""Judges score rollouts, and agree or not."""
