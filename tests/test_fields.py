"""Every field of every config can be found: its type, its default, and a comment that says what it is."""

from dataclasses import MISSING, replace

import pytest

from gptjax.cli import main
from gptjax.commands.listing import listed
from gptjax.config import RunConfig
from gptjax.sweep.plan import SweepConfig
from helpers import ROOT


@pytest.mark.parametrize("kind", [RunConfig, SweepConfig])
def test_every_field_is_explained(kind):
    fields = listed(kind, None)
    assert len(fields) > 15 and len({f.path for f in fields}) == len(fields)
    assert not [f.path for f in fields if len(f.text) < 6 or "\n" in f.text or not f.kind]


def test_a_field_is_told_with_its_place_default_and_whether_it_is_how():
    config = RunConfig(steps=700, save=replace(RunConfig().save, every=3))
    found = {f.path: f for f in listed(config, RunConfig())}
    assert (found["steps"].value, found["steps"].default, found["steps"].how) == (700, 1000, False)
    assert found["save.every"].value == 3 and found["save.every"].how  # the whole of `save` is how
    assert {f.path: f.default for f in listed(SweepConfig, None)}["sizes"] is MISSING


def test_the_page_of_fields_is_of_today(capsys):
    main(["config", "--markdown"])
    assert capsys.readouterr().out == (ROOT / "docs" / "config.md").read_text(), "gptjax config --markdown writes it"


def test_config_shows_a_file_with_what_differs_marked(capsys):
    main(["config", str(ROOT / "experiments" / "tiny.py"), "--set", "optim.lr=0.01"])
    shown = capsys.readouterr().out
    assert "* optim.lr = 0.01\n      peak learning rate (a number; default 0.0003)" in shown
    assert "\n  optim.muon_momentum = 0.95\n" in shown
    main(["config", str(ROOT / "experiments" / "chinchilla" / "quick.py")])
    assert "budgets = [" in capsys.readouterr().out
