"""What a fit of the command line costs before it fits: what it imports, and what it compiles again."""

import subprocess
import sys

import numpy as np

from gptjax.laws.published import BESIROGLU_2024
from gptjax.laws.simulate import ladder
from helpers import environment

HEAVY = ("matplotlib", "pandas", "scipy.stats", "pyarrow.compute", "pyarrow.parquet")


def test_a_fit_imports_no_figures_and_keeps_what_it_compiled(tmp_path):
    n, d = ladder(BESIROGLU_2024, np.geomspace(6e18, 3e21, 5), sizes=5)
    rows = np.transpose([n, d, BESIROGLU_2024.loss(n, d) * np.exp(0.005 * np.sin(np.arange(25.0) ** 2))])
    np.savetxt(tmp_path / "runs.csv", rows, delimiter=",", header="params,tokens,loss", comments="")
    code = (
        "import sys; from gptjax.cli import main; main(['fit', 'runs.csv', '--bootstrap', '50']);"
        f"heavy = set({HEAVY}) & set(sys.modules); assert not heavy, heavy"
    )
    ours = {"JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "GPTJAX_SETTLE"}
    env = {name: value for name, value in environment().items() if name not in ours}
    kept = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=tmp_path, capture_output=True)
        kept.append({path.name for path in (tmp_path / ".cache/gptjax/xla").glob("*_descend-*-cache")})
    assert kept[0] and kept[1] == kept[0]
