"""How the processes of one job reach each other: all that gptjax uses of jax's insides, and an alternative without it.

`KeyValue` is the key-value store of jax's coordination service, which has no public name (jax 0.10, 0.11). Over it a
process hears within seconds that another has died. `Public` uses public functions of jax alone: there, a process that
dies leaves the others to wait until jax gives them up. GPTJAX_JOBS=public in the environment chooses it.
"""

import ctypes
import itertools
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed

_turns = itertools.count()
_handler: Any = None  # a reference: C holds the handler too, and the garbage collector does not know of that


class KeyValue:
    """Jax's own store, watched (hosts.py): a key is written once and read by all."""

    watched = True

    def __init__(self) -> None:
        self.notices: Any = None  # jax's manager of preemption notices

    @property
    def count(self) -> int:
        """Processes of the job; 1 where this one is alone."""
        state = distributed.global_state
        return (state.num_processes or 1) if state.client is not None else 1

    @property
    def rank(self) -> int:
        return distributed.global_state.process_id or 0

    def joined(self) -> None:
        """Take the notices away from Orbax, which would count calls otherwise than we do, so that some were lost."""
        state = distributed.global_state
        self.notices, state.preemption_sync_manager = state.preemption_sync_manager, None

    def leaving(self) -> None:
        distributed.global_state.preemption_sync_manager = self.notices

    def put(self, key: str, value: str, *, again: bool = False) -> None:
        self._client.key_value_set(key, value, allow_overwrite=again)

    def all_under(self, prefix: str) -> list[tuple[str, str]]:
        return self._client.key_value_dir_get(prefix)

    def wait(self, key: str, seconds: float) -> str:
        """Read a key that a process will write; a JaxRuntimeError with DEADLINE_EXCEEDED if none does in time."""
        return self._client.blocking_key_value_get(key, int(1000 * seconds))

    def agree(self, decide: Callable[[], Any]) -> Any:
        key = f"gptjax/agree/{next(_turns)}"
        if self.rank == 0:
            self.put(key, json.dumps(decide()))
        return json.loads(self._wait_for(key))

    def gather(self, value: Any) -> list[Any]:
        key = f"gptjax/gather/{next(_turns)}"
        self.put(f"{key}/{self.rank}", json.dumps(value))
        return self.agree(lambda: [json.loads(self._wait_for(f"{key}/{i}")) for i in range(self.count)])

    def preempted(self, call: int) -> bool:
        return self.notices.reached_sync_point(call)

    def on_abort(self, gone: Callable[[str, int], None]) -> None:
        """When the coordinator's death makes jax abort this process, call `gone` with its host and port first.

        Jax aborts from a thread of its own and takes no callback from Python; the signal is all that is left.
        """
        global _handler
        host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
        _handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: gone(host, int(port)))
        if self.rank:
            ctypes.CDLL(None).signal(signal.SIGABRT, _handler)

    @property
    def _client(self) -> Any:
        return distributed.global_state.client

    def _wait_for(self, key: str) -> str:
        """Read a key that another process will write; if that one dies, the watch ends this process too."""
        while True:
            try:
                return self.wait(key, 60)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


class Public:
    """Public functions of jax, which exchange arrays over the devices."""

    watched = False

    @property
    def count(self) -> int:
        return jax.process_count() if jax.distributed.is_initialized() else 1

    @property
    def rank(self) -> int:
        return jax.process_index()

    def joined(self) -> None:
        """Nothing is to be prepared."""

    def agree(self, decide: Callable[[], Any]) -> Any:
        return self.gather(decide() if self.rank == 0 else None)[0]

    def gather(self, value: Any) -> list[Any]:
        from jax.experimental import multihost_utils

        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = multihost_utils.process_allgather(np.array([len(text)]))[:, 0]
        padded = np.pad(text, (0, int(lengths.max()) - len(text)))
        every = multihost_utils.process_allgather(padded)
        return [json.loads(bytes(row[:n])) for row, n in zip(every, lengths, strict=True)]

    def preempted(self, call: int) -> bool:
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(call)


def chosen() -> KeyValue | Public:
    """Return the service that the environment asks for."""
    return Public() if os.environ.get("GPTJAX_JOBS", "") == "public" else KeyValue()
