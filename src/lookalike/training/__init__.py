"""Fine-tune a backbone as a classifier and keep the weights that retrieve best on validation."""
