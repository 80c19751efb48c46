"""What the verbs do, as functions: the door of Python. `import gptjax` offers them, and `commands/` calls them."""
