"""A form of law that a user's file makes, by name."""

from gptjax.lab.places import load


def form_of(text: str) -> str:
    """Give the name of a form; a form that a Python file makes gets its row in the table of forms."""
    if ":" not in text and not text.endswith(".py"):
        return text
    from gptjax.laws.forms import FORMS, Form

    form = load(text, Form, "form")
    FORMS[form.name] = form
    return form.name
