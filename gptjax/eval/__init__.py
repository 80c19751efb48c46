"""What a trained model knows: perplexity by position, tasks by log-likelihood, and the same through lm-eval."""
