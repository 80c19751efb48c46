"""The table of model families: which config class a tag stands for. A family of your own is one more row.

A file that defines one adds it before its configs are read: `FAMILIES["mine"] = MyConfig`.
"""

from gptjax.models.gpt import GPTConfig
from gptjax.models.model import ModelConfig

FAMILIES: dict[str, type[ModelConfig]] = {"gpt": GPTConfig}
DEFAULT = "gpt"  # of a config without a tag, as all were before there were tags
