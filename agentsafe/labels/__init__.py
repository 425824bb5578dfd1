"""Label rollouts with judges, and measure how far judges agree."""
