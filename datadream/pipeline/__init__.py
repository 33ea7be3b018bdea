"""What every method shares: adapt, generate, train, evaluate."""
