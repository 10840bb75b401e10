"""Patched models under the hooks of accelerate and diffusers: offloading, casting, caches.

Offloaded weights are on the meta device, or on disk, until a module is called: whoever reads them
without calling it fails.
"""

import jitd
import pytest
import torch
from jitd.models.patch.hooks import is_ours, place_of_forward
from jitd.models.patch.site import site_of
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from .live import MODELS, build, pipeline, run, same

pytestmark = pytest.mark.diffusers

ORDERS = ("hooks first", "patch first")


def _model_offload(model, folder):
    pipeline(model=model).enable_model_cpu_offload(device="cpu")


def _sequential_offload(model, folder):
    import accelerate  # noqa: PLC0415

    offload = accelerate.cpu_offload
    with pytest.MonkeyPatch.context() as patched:  # diffusers says cpu:0, of which accelerate trips
        patched.setattr(accelerate, "cpu_offload", lambda m, _, **more: offload(m, "cpu", **more))
        pipeline(model=model).enable_sequential_cpu_offload(device="cpu")


def _accelerate_offload(model, folder):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=True)


def _blocks_offload(model, folder):
    _group_offload(model, folder, offload_type="block_level", num_blocks_per_group=1)


def _leaves_offload(model, folder):
    _group_offload(model, folder, offload_type="leaf_level")


def _group_offload(model, folder, **how):
    from diffusers.hooks import apply_group_offloading  # noqa: PLC0415

    cpu = torch.device("cpu")
    try:
        apply_group_offloading(model, cpu, cpu, offload_to_disk_path=str(folder), **how)
    except AttributeError:
        if torch.accelerator.is_available():
            raise
        pytest.skip("this diffusers offloads groups only where there is an accelerator")


def _own_forward(model, folder):
    """A hook with a forward of its own, as FirstBlockCache's, around every site."""
    from diffusers.hooks import HookRegistry, ModelHook  # noqa: PLC0415

    class Hook(ModelHook):
        def new_forward(self, module, *args, **kwargs):
            return self.fn_ref.original_forward(*args, **kwargs)

    for module in list(model.modules()):
        if any(name in type(module).__name__ for name in ("Block", "Attention")):
            HookRegistry.check_if_exists_or_initialize(module).register_hook(Hook(), "test")


OFFLOADS = (
    _model_offload, _sequential_offload, _accelerate_offload, _blocks_offload, _leaves_offload,
    _own_forward,
)  # fmt: skip


def _sites_in(model):
    return [m for m in model.modules() if site_of(m) is not None]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("offload", OFFLOADS)
@pytest.mark.parametrize("name", MODELS)
def test_offloading(name, offload, order, tmp_path):
    """Under each offloading, installed before or after patching, a model has the bits of a stock
    one under it, every call is answered by a site or declined for a hook and counted, and
    `unpatch` finds its way."""
    (model, call), (stock, _) = build(name), build(name)
    offload(stock, tmp_path / "stock")  # from disk weights are aligned in another way: other bits
    expected = run(stock, call)
    if order == "hooks first":
        offload(model, tmp_path)
        report = jitd.patch(model)
    else:
        report = jitd.patch(model)
        offload(model, tmp_path)
    assert report.patched and not report.left
    for _ in range(2):
        assert same(run(model, call), expected)
    assert report.declined.keys() <= {"hook"}
    assert all(site.calls or site.declined for site in report.sites), str(report)
    if offload in (
        _model_offload,
        _blocks_offload,
        _own_forward,
    ):  # nothing between a block's norms
        assert all(site.calls for site in report.sites), str(report)
    patched = len(report.patched)
    assert jitd.unpatch(model) == patched
    assert not any(is_ours(getattr(*place_of_forward(m))) for m in model.modules())
    calls = report.calls
    assert same(run(model, call), expected)
    assert report.calls == calls


@pytest.mark.parametrize("order", ORDERS)
def test_hooks_go_away(order):
    """A pipeline that forgets its hooks stays patched, and whole, whichever came first."""
    model, call = build("upsampler")
    pipe = pipeline(model=model)
    expected = run(model, call)
    if order == "patch first":
        report = jitd.patch(pipe)
    _accelerate_offload(model, None)
    if order == "hooks first":
        report = jitd.patch(pipe)
    pipe.remove_all_hooks()
    assert same(run(model, call), expected)
    assert not report.declined and all(site.calls for site in report.sites)
    jitd.unpatch(pipe)
    assert not _sites_in(model)
    assert same(run(model, call), expected)


def test_offloading_ends_and_begins_again():
    """Patched, offloaded, unpatched under the hooks, freed of them, patched again."""
    model, call = build("upsampler")
    pipe = pipeline(model=model)
    expected = run(model, call)
    jitd.patch(pipe)
    _accelerate_offload(model, None)
    jitd.unpatch(pipe)
    pipe.remove_all_hooks()
    assert same(run(model, call), expected)
    report = jitd.patch(pipe)
    assert not report.left
    assert same(run(model, call), expected)
    assert all(site.calls for site in report.sites)


def test_a_users_hook_on_a_norm_is_called():
    """A forward hook of torch on a norm that a recipe would read has the call go to stock; it is
    called once, as the sites above it are not verified."""
    model, call = build("upsampler")
    report = jitd.patch(model)
    seen = []
    handle = model.res_blocks[0].norm1.register_forward_hook(lambda *call: seen.append(call))
    run(model, call)
    assert len(seen) == 1
    assert report.declined == {"hook": 1}
    assert jitd.stats()["patch:hook"] == jitd.stats()["patch:unverified"] == 1
    handle.remove()
    run(model, call)
    assert len(seen) == 1
    assert report.declined == {"hook": 1}


@pytest.mark.parametrize(
    "register", [register_module_forward_pre_hook, register_module_forward_hook]
)
@pytest.mark.parametrize("name", MODELS)
def test_hooks_of_all_modules_are_called(name, register):
    """A hook of torch on all modules sees those of the stock model in its order, and tensors where
    it sees some there; sites decline, none is verified or lost, and all answer when it is gone."""
    (model, call), (stock, _) = build(name), build(name)
    expected = run(stock, call)
    report = jitd.patch(model)
    seen = [_seen(m, call, register) for m in (model, stock)]
    assert seen[0] == seen[1] and seen[0]
    assert report.calls == 0 and report.declined == {"hook": len(report.sites)}
    assert jitd.stats() == {"patch:hook": len(report.sites)} and not report.left
    assert same(run(model, call), expected)
    assert report.declined == {"hook": len(report.sites)}
    assert all(site.calls and site.verified for site in report.sites if site.recipe.ops)


def _seen(model, call, register):
    """Classes of modules, and shapes of tensors, that a hook on all modules is given."""
    seen = []

    def hook(module, args, *_):
        seen.append((type(module), [getattr(value, "shape", type(value)) for value in args]))

    handle = register(hook)
    try:
        run(model, call)
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", MODELS)
def test_layerwise_casting(name, order):
    """With weights stored in fp8 and cast for each call, patched and stock agree in every bit."""
    (model, call), (stock, _) = build(name), build(name)
    stock.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    if order == "patch first":
        report = jitd.patch(model)
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    if order == "hooks first":
        report = jitd.patch(model)
    assert any(p.dtype == torch.float8_e4m3fn for p in model.parameters())
    expected = run(stock, call)
    assert same(run(model, call), expected)
    assert same(run(model, call), expected)
    assert report.calls


@pytest.mark.parametrize("order", ORDERS)
def test_first_block_cache(order, monkeypatch):
    """diffusers' FirstBlockCache, which skips blocks and counts calls, does what it does on stock:
    a site above one of its hooks is not verified, since its blocks would be called twice."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache  # noqa: PLC0415
    from diffusers.hooks._helpers import (  # noqa: PLC0415
        TransformerBlockMetadata,
        TransformerBlockRegistry,
    )

    (model, call), (stock, _) = build("helios"), build("helios")
    block = type(model.blocks[0])  # the only one of these models' that the cache can serve
    known = TransformerBlockMetadata(return_hidden_states_index=0, _cls=block)
    monkeypatch.setitem(TransformerBlockRegistry._registry, block, known)
    config = FirstBlockCacheConfig(threshold=10.0)
    apply_first_block_cache(stock, config)
    if order == "patch first":
        report = jitd.patch(model)
    apply_first_block_cache(model, config)
    if order == "hooks first":
        report = jitd.patch(model)
    calls = []
    for step in range(3):
        later = call | {"timestep": call["timestep"] - step}
        with stock.cache_context("cond"), model.cache_context("cond"):
            assert same(run(model, later), run(stock, later))
        calls.append(report.calls)
    assert calls[0] > calls[1] - calls[0] > 0  # blocks were skipped
    assert not report.declined
