"""Labels into preference pairs, and pairs into training sets."""
