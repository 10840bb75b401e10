"""Forwards of whole models on the card, held to their own without kernels. Shared by the tests of
the models.
"""

import jitd
import torch

from .cases import answered_by_kernels


def by_references(task):
    """What the task gives in mode off; afterwards the mode is replay."""
    jitd.configure(mode="off")
    try:
        return task()
    finally:
        jitd.configure(mode="replay")


def widened(given):
    """Arguments with all floating-point tensors in float64."""
    if isinstance(given, dict):
        return {name: widened(value) for name, value in given.items()}
    if isinstance(given, list):
        return [widened(value) for value in given]
    return given.double() if torch.is_tensor(given) and given.is_floating_point() else given


def hold(outs, eagers, truths):
    """Hold results to eager's own error against float64, and to eager's strides."""
    for out, eager, truth in zip(outs, eagers, truths, strict=True):
        assert out.stride() == eager.stride()
        error, eagers_own = (out.double() - truth).norm(), (eager.double() - truth).norm()
        assert error <= 1.5 * eagers_own + 1e-6 * truth.norm(), (error, eagers_own)


def near(outs, wanted, share=1e-2):
    """Hold the difference of results to a share of their length, and print what it is."""
    for out, want in zip(outs, wanted, strict=True):
        off = ((out.float() - want.float()).norm() / want.float().norm()).item()
        print(f"{off:.1e} of its length")
        assert off <= share


def all_answered(report):
    """Whether every site of a patched model answered, by kernels, and none was left, not even after
    its first call.
    """
    assert report.left == ()
    assert not report.declined
    return all(site.calls for site in report.sites) and answered_by_kernels()
