"""Models as Hugging Face transformers keeps them: a name table for each architecture, out and in."""
