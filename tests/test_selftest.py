"""What `gptjax selftest` trains: no model beats the entropy of its source."""

OPTIMIZED = True


def test_no_model_beats_a_markov_source():
    from gptjax.selftest import describe, markov

    found = markov(160)
    assert found["sound"] and 0 < found["excess"] < 0.5 and found["least"] >= found["entropy"] - 4 * found["loss_se"]
    assert "no loss below it" in describe({"laws": {}, "markov": found})
    leaking = {**found, "sound": False}
    assert "BELOW" in describe({"laws": {}, "markov": leaking})
