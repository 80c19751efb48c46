"""A saved model as EleutherAI's lm-evaluation-harness knows models; importing this file registers it as `gptjax`.

    import gptjax.eval.harness
    lm_eval.simple_evaluate("gptjax", "dir=runs/tiny", tasks=[...])

Texts are tokenized, cut off and scored as lm-eval's HFLM with add_bos_token=True does on the exported model.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptjax.errors import BadInput
from gptjax.eval.score import Request, score
from gptjax.generate import Sampling, generate
from gptjax.run.weights import SavedModel, saved_model

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise BadInput(f"the harness needs lm-eval ({error}); make install EXTRAS=test,eval") from error

NEW_TOKENS = 256  # where a task does not say: HFLM's number
SAMPLING = {"temperature", "top_k", "top_p", "repetition_penalty"}
KNOWN = {"do_sample", "until", "max_gen_toks", *SAMPLING}


@register_model("gptjax")
class GptJax(TemplateLM):
    """A model on disk, for lm-eval; it lies on the devices as its run did."""

    def __init__(self, dir: str | Path | SavedModel, step: int | None = None, seed: int = 0, **other: Any) -> None:
        """Read the weights; of what lm-eval gives besides, batch sizes and devices are chosen here."""
        super().__init__()
        if unknown := set(other) - {"batch_size", "max_batch_size", "device"}:
            raise BadInput(f"model argument {sorted(unknown)[0]!r} is unknown; those of gptjax are dir, step and seed")
        self.saved = dir if isinstance(dir, SavedModel) else saved_model(Path(dir), step)
        self.config, self.ids, self.seed = self.saved.config, self.saved.tokenizer, seed
        self.layout = self.saved.layout()
        self.params = self.saved.read(self.layout)
        self.truncated = 0  # requests so far whose context was cut off

    @property
    def eot_token_id(self) -> int:
        return self.ids.bos  # a document ends where another begins

    @property
    def max_length(self) -> int:
        return self.config.context

    @property
    def max_gen_toks(self) -> int:
        return NEW_TOKENS

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return ids, led by bos unless that is refused."""
        ids = self.ids.encode(string.encode("utf-8", "surrogatepass")).tolist()
        return ids if add_special_tokens is False else [self.ids.bos, *ids]

    def tok_decode(self, tokens: Iterable[int]) -> str:
        return self.ids.decode(tokens).decode("utf-8", "replace")

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Request(np.array(context, np.int32), np.array(rest, np.int32)) for _, context, rest in requests]
        title = "" if disable_tqdm else "log-likelihoods"
        scores = score(self.params, self.saved.model, pairs, self.layout, progress=title)
        self.truncated += int(scores.truncated.sum())
        answers = list(zip(scores.log_p.tolist(), scores.greedy.tolist(), strict=True))
        for (text, *_), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return log p of whole texts, in windows of the context; no token is scored twice.

        As HFLM with add_bos_token, which leads a text by bos twice, so that log p(bos | bos) is a part of the sum.
        """
        windows, owner = [], []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(window)))
                owner.append(i)
        sums = np.zeros(len(requests))
        found = self._loglikelihood_tokens(windows, disable_tqdm)
        np.add.at(sums, owner, [log_p for log_p, _ in found])
        return sums.tolist()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until a stop text, a document's end or so many tokens; its left is cut off, to fit."""
        answers = []
        for request in requests:
            context, given = request.args
            kwargs = normalize_gen_kwargs(given, self.max_gen_toks)
            if unknown := set(kwargs) - KNOWN:
                raise BadInput(f"generation argument {sorted(unknown)[0]!r} is none of {', '.join(sorted(KNOWN))}")
            new = kwargs["max_gen_toks"]
            if new >= self.max_length:
                raise BadInput(
                    f"{new} new tokens do not fit the context of {self.max_length} after a prompt; lower max_gen_toks "
                    "in the task's generation_kwargs"
                )
            sampling = Sampling(**{name: kwargs[name] for name in SAMPLING & set(kwargs)})
            prompt = np.array(self.tok_encode(context)[-(self.max_length - new) :], np.int32)
            speaker, stop = self.saved.speaker, self.saved.stops
            (ids,) = generate(
                self.params, speaker, [prompt], new, sampling, stop=stop, seed=self.seed, layout=self.layout
            )
            text = self.tok_decode(ids)
            for end in handle_stop_sequences(kwargs.get("until"), eos=None):
                text = text.split(end)[0] if end else text
            self.cache_hook.add_partial("generate_until", request.args, text)
            answers.append(text)
        return answers
