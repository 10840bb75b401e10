"""The benchmark of ops over tokens without a GPU: its rows, bytes, contenders and report."""

import json
from functools import partial

import pytest
import torch
from jitd.jit.device import stand_in
from jitd.jit.op import OPS
from jitd.tools.bench import cli, contest, tokens
from jitd.tools.bench.calls import Got, Refused, call_of, hold_to
from jitd.tools.bench.contest import bytes_of
from jitd.tools.bench.goals import TOKENS, Limit, OpTarget, judge
from jitd.tools.bench.peers import BadPeer, resolve_op_peers
from typer.testing import CliRunner

from .test_bench import FakeStopwatch, on_a_card

RUNNER = CliRunner()
BY_NAME = {target.what: target for target in TOKENS}
SHARED = {"k_cos": "q_cos", "k_sin": "q_sin"}

# One small row of each op, in the forms that the table has.
TINY = [
    OpTarget("rotary", "rotary", "split_rotary[bf16](1x6x32, cos=fp32 1x2x6x8:perm0213)"),
    OpTarget("rotary", "qk", "qk_norm_rotary[bf16](2x6x32, q_cos=fp32 1x2x6x8:perm0213)",
             (Limit(2.0, "floor"),), shared=SHARED),
    OpTarget("norm", "rms", "rms_norm[fp32](6x32, weight=fp32 32, rounding=once)"),
    OpTarget("norm", "rms mod", "rms_norm_modulate[bf16](2x6x32, scale=2x32, index=i32 2x6)"),
    OpTarget("layer_norm", "ln", "layer_norm_modulate[bf16](1x6x32, scale=fp32 2x32, "
             "index=i32 1x6, rounding=once)"),
    OpTarget("gates", "gate", "gate_residual[bf16](2x6x32)"),
    OpTarget("gates", "fused", "gate_residual_rms_norm_modulate[bf16](2x6x32)"),
    OpTarget("gates", "dual", "gate_residual_rms_norm_dual_modulate[bf16](2x6x32)"),
    OpTarget("gates", "heads", "head_gate[bf16](2x6x32, logits=2x6x4)"),
]  # fmt: skip
TINY_ONES = pytest.mark.parametrize("target", TINY, ids=lambda target: target.what)


def made(targets, peers=None):
    return tokens.cases_of(targets, peers or {}, device="cpu")


# Microseconds of the floor at 4.22 TB/s, by the facts that the goals come from.
FLOORS = {
    "split_rotary 1x126x2048": 0.4,
    "split_rotary 1x1536x4096": 8.9,
    "split_rotary 1x6144x4096": 35.8,
    "split_rotary 1x24576x4096": 143,
    "split_rotary 1x32640x4096": 190,
    "qk_norm_rotary 1x6144x4096": 59.6,
    "qk_norm_rotary 1x6144x4096, fp32 tables": 71.6,
    "rms_norm_modulate 1x6144x4096": 23.9,
    "rms_norm_modulate 1x24576x4096": 95.4,
    "rms_norm 122880x128": 14.9,
    "rms_norm 4128x3840": 15.0,
    "rms_norm 24576x4096": 95.4,
    "rms_norm 32x2560 fp32": 0.2,
    "layer_norm_modulate 11040x5120, fp32 of each token": 160.7,
    "layer_norm_modulate 11040x5120, two fp32 rows and index": 53.6,
    "layer_norm_modulate 11040x5120, fp32": 53.6,
    "layer_norm_modulate 8640x5120, fp32": 41.9,
    "layer_norm_modulate 4608x3840, fp32": 16.8,
}


@pytest.mark.parametrize("name", FLOORS)
def test_rows_move_the_bytes_that_the_goals_assume(name):
    """The floors of the facts follow from what a row reads and writes, shared tables once."""
    target = BY_NAME[name]
    call = tokens.call_of(target)
    moved = tokens.function_of(target.signature.partition("[")[0]).op.cost(call).bytes
    moved -= sum(call[name].nbytes for name in target.shared)
    assert moved / 4.22e6 == pytest.approx(FLOORS[name], rel=0.01, abs=0.06)


def test_rows_with_a_figure_to_reach_have_a_limit():
    """All of them but the form that models expand by themselves, which is there to be replaced."""
    without = {name for name in FLOORS if not BY_NAME[name].limits}
    assert without == {"layer_norm_modulate 11040x5120, fp32 of each token"}
    assert str(BY_NAME["rms_norm 32x2560 fp32"].limits[0]) == "<= 1x compile"
    (verdict,) = judge([Limit(1.0, "compile")], 5.0, 0.2, {"compile": 4.0, "torch": 3.0})
    assert (verdict.ratio, verdict.met) == (1.25, False)


def test_every_op_is_measured_at_the_shapes_of_both_stages():
    """Each op of LTX-2's block has a row of stage 1, of stage 2 and of audio; names are unique and
    every row belongs to a part that can be asked for."""
    assert len(BY_NAME) == len(TOKENS)
    assert {target.part for target in TOKENS} == {part.value for part in cli.TokenPart}
    for op in ("gate_residual", "gate_residual_rms_norm_modulate", "head_gate", "qk_norm_rotary",
               "gate_residual_rms_norm_dual_modulate"):  # fmt: skip
        own = [t.signature for t in TOKENS if t.signature.startswith(f"{op}[bf16]")]
        for shape in ("(2x6144x4096", "(1x24576x4096", "(2x126x2048"):
            assert any(shape in signature for signature in own), (op, shape)


@pytest.mark.parametrize("target", TOKENS, ids=lambda target: target.what)
def test_every_signature_is_one_that_its_op_accepts(target):
    """It reads, passes the op's own check, and prints as a signature of that op."""
    call = tokens.call_of(target)
    op = OPS[target.signature.partition("[")[0]]
    op.check(call)
    assert op.parse(str(op.sign(call))).call == call
    assert len(target.what) <= tokens._NAME_WIDTH


@TINY_ONES
def test_arguments_are_those_of_the_signature(target):
    """Called with what the case makes, the op sees the call that the row names."""
    (case,) = made([target])
    args = case.make()
    op = case.function.op
    want = tokens.call_of(target)
    assert call_of(op, args, case.named) == want
    expected = op.reference(*args, **case.named)
    hold_to("again", case.function(*args, **case.named), expected)


@TINY_ONES
def test_references_compile_in_one_graph(target):
    """torch.compile takes each reference without a graph break: what is timed is one function."""
    (case,) = made([target])
    torch.compiler.reset()
    compiled = torch.compile(case.function.op.reference, fullgraph=True, backend="eager")
    args = case.make()
    hold_to("compiled", compiled(*args, **case.named), case.function(*args, **case.named))


def test_shared_tables_are_one_tensor():
    """Self-attention turns q and k by the same tables, which move once."""
    (case,) = made([TINY[1]])
    q, k, _, _, q_cos, q_sin, k_cos, k_sin = args = case.make()
    assert k_cos is q_cos and k_sin is q_sin and k is not q
    assert bytes_of(args) == 2 * 2 * q.numel() + 2 * 2 * 32 + 2 * 4 * q_cos.numel()


def test_bytes_of_what_is_expanded_count_once():
    """A row seen by every token is read once, and results of several tensors are summed."""
    row = torch.zeros(1, 1, 32, dtype=torch.bfloat16)
    assert bytes_of([row.expand(2, 6, 32), 1e-6, None]) == 64
    assert bytes_of((row, torch.zeros(2, 3))) == 64 + 24


def test_torchs_own_kernel_is_a_contender_where_there_is_one():
    """Of nn.RMSNorm's form: the reference's chain is not what eager users run."""
    cases = {case.name: case for case in made(TINY, {"gate_residual": {"peer": sum}})}
    assert {name for name, case in cases.items() if "torch" in case.others} == {"rms", "qk"}
    assert set(cases["gate"].others) == {"peer"}
    for name in ("rms", "qk"):
        case = cases[name]
        args = case.make()
        hold_to("torch", case.others["torch"](*args), case.function(*args, **case.named))


def test_a_run_prints_and_stores_every_row(monkeypatch, tmp_path, capsys):
    """With fake clocks: ratios, limits, differing elements, and a row that failed."""
    got = [Got(0.5, 1, 7, "rows(BLOCK=8)", 1) for _ in TINY]
    got[0] = Refused("no kernel answered")
    on_a_card(monkeypatch, got, jitd=10.0, eager=40.0, peer=20.0)
    monkeypatch.setattr(tokens, "TOKENS", TINY)
    monkeypatch.setattr(tokens, "cases_of", partial(tokens.cases_of, device="cpu"))
    path = tmp_path / "tokens.json"
    peers = {"qk_norm_rotary": {"peer": OPS["qk_norm_rotary"].reference}}
    parts = [part.value for part in cli.TokenPart]
    assert not tokens.run(parts=parts, peers=peers, with_compile=False, quick=True, json=path)
    report = json.loads(path.read_text())
    assert [row["name"] for row in report["rows"]] == [target.what for target in TINY]
    failed, qk, *others = report["rows"]
    assert failed["failed"] == "Refused: no kernel answered"
    assert qk["speedup"] == {"eager": 4.0, "torch": 5.0, "peer": 2.0}
    (limit,) = qk["limits"]
    assert (limit["limit"], limit["met"]) == ("<= 2x floor", False)
    assert limit["ratio"] == pytest.approx(10 / qk["floor_us"])
    assert all(row["differing"] == 0 for row in others)
    assert (qk["config"], qk["part"], qk["signature"]) == (
        "rows(BLOCK=8)", "rotary", TINY[1].signature
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "failed: Refused: no kernel answered" in printed
    assert "goal: 0 of 1 met" in printed


def test_parts_choose_the_rows(monkeypatch, tmp_path):
    """Nothing else is tuned, nothing else is timed."""
    on_a_card(monkeypatch, [Got(0.5, 1, 7, "x()", 1)], jitd=10.0)
    monkeypatch.setattr(tokens, "TOKENS", TINY)
    monkeypatch.setattr(tokens, "cases_of", partial(tokens.cases_of, device="cpu"))
    path = tmp_path / "tokens.json"
    assert tokens.run(parts=["layer_norm"], peers={}, with_compile=False, quick=False, json=path)
    assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["ln"]


def test_differing_elements_are_counted():
    """Of a kernel within the tolerance, in which some bits are not eager's."""
    (case,) = made([TINY[2]])

    def nearly(x, weight):
        out = case.function(x, weight)
        out[0, :3] *= 1 + 1e-5
        return out

    reference = case.function.op.reference
    contenders = {"jitd": nearly, "eager": lambda *args: reference(*args, **case.named)}
    row = contest.measure(case, case.make(), contenders, FakeStopwatch(), bandwidth=1e12)
    assert row.differing == 3


# -- peers ------------------------------------------------------------------------------------


def test_peers_are_given_by_op():
    """`op=module:function`; the op's other peers and other ops are apart."""
    found = resolve_op_peers(
        ["split_rotary=operator:mul", "head_gate=operator:add", "split_rotary=math:gcd"],
        ["split_rotary", "head_gate"],
    )
    assert {op: list(peers) for op, peers in found.items()} == {
        "split_rotary": ["operator", "math"], "head_gate": ["operator"]
    }  # fmt: skip


@pytest.mark.parametrize("text", ["operator:mul", "no_op=operator:mul", "=operator:mul"])
def test_a_peer_of_no_op_says_which_there_are(text):
    """One line that names the ops."""
    with pytest.raises(BadPeer, match="op is one of head_gate, split_rotary"):
        resolve_op_peers([text], ["split_rotary", "head_gate"])


def test_options_reach_the_benchmark(monkeypatch, tmp_path):
    """What is typed is what `run` is called with; all parts if none is named."""
    seen = {}
    monkeypatch.setattr(cli, "gpu", lambda: stand_in("sm_90"))
    monkeypatch.setattr(cli, "need_torch_with_cuda", lambda: None)
    monkeypatch.setattr(tokens, "run", lambda **options: seen.update(options) or True)
    typed = ["tokens", "--part", "norm", "--part", "gates", "--quick", "--no-compile"]
    typed += ["--peer", "split_rotary=operator:mul", "--json", str(tmp_path / "out.json")]
    assert RUNNER.invoke(cli.app, typed).exit_code == 0
    assert list(seen.pop("peers")["split_rotary"]) == ["operator"]
    assert seen == {
        "parts": ["norm", "gates"], "with_compile": False, "quick": True,
        "json": tmp_path / "out.json",
    }  # fmt: skip
    assert RUNNER.invoke(cli.app, ["tokens"]).exit_code == 0
    assert seen["parts"] == [part.value for part in cli.TokenPart]


def test_a_peer_that_is_not_there_is_bad_usage():
    """Exit code 2, before anything is measured."""
    result = RUNNER.invoke(cli.app, ["tokens", "--peer", "split_rotary=nothing"])
    assert result.exit_code == 2
    assert "module:function" in result.stderr
