"""The catalogue of models: sizes without torch, workloads from the real modules."""

import subprocess
import sys

import pytest
from jitd.models import catalog


def test_catalog_needs_no_torch():
    """Models, their presets and their rules can be asked without importing torch."""
    code = (
        "import sys; from jitd.models.catalog import MODELS; "
        "[m.parse_size(n) for m in MODELS.values() for n in m.sizes]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("version", catalog.MODELS["ltx2"].versions)
def test_workload_of_ltx2(version):
    """One run of the upsampler at each size asks for 9 and 8 fused calls, and for no other op."""
    model = catalog.model("ltx2")
    sizes = list(model.sizes.values())[:2]
    workload = model.workload(sizes, "bf16", version)
    calls = {name: 0 for name in model.ops}
    for text, number in workload.counts.items():
        calls[text.partition("[")[0]] += number
    assert calls == {"group_norm_silu": 9 * len(sizes), "group_norm_add_silu": 8 * len(sizes)}


@pytest.mark.parametrize(("dtype", "version"), [("int4", "2.3"), ("bf16", "1.0")])
def test_unknown_options(dtype, version):
    """An unknown dtype or version is a ValueError that names what there is."""
    with pytest.raises(ValueError, match="there are"):
        catalog.model("ltx2").workload([], dtype, version)
