"""Kernels without a GPU: their results in Triton's interpreter, and that Triton can compile them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtobal.ops import kernels

CHECKS = Path(__file__).with_name("test_kernels.py")
with_triton = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="Triton is not made for this system"
)


@with_triton
@pytest.mark.slow
def test_the_interpreter_computes_what_it_should() -> None:
    """In a process of its own: Triton reads the variable when it is imported, and for good."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
        env={**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@with_triton
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compile_for_a_gpu(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes what the compiler refuses. Loads and stores are of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from mtobal.ops.kernels import combine, gramian, sign_drop, trimmed_mean

    pointers = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
    compiled: list[str] = []

    def compile_only(kernel: Any, *, grid: Any, warmup: bool, **given: Any) -> None:
        signature, constants, attributes = {}, {}, {}
        for parameter in kernel.params:
            value = given[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = pointers[value.dtype]
                attributes[(parameter.num,)] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "i32"
        source = ASTSource(kernel, signature, constants, attributes)
        options = {"num_warps": given.get("num_warps", 4)}
        assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm
        assert assembly["cubin"]
        compiled.append(assembly["ptx"])

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_only)
    for tasks, loads in ((3, "cp.async.cg"), (10, "cp.async.cg"), (40, "cp.async.cg"), (64, "cp.async.cg")):
        column = torch.zeros(tasks, 64, dtype=dtype).unbind()
        gramian.gramian([column], tasks)
        assert loads in compiled[-1]
    assert "wgmma" in compiled[-1]  # the tensor cores of a Hopper
    block = torch.zeros(5, 64, dtype=dtype)
    combine.combine([block.unbind()], [1.0] * 5)
    sign_drop.sign_drop(block, torch.zeros(64), torch.zeros(5))
    sign_drop.random_sign_drop([block], torch.Generator(), None)
    trimmed_mean.trimmed_mean([block], 1)
    for assembly in compiled[-4:]:
        assert "ld.global.v4" in assembly
        assert "st.global.v4" in assembly


def test_only_gradients_on_a_device_load_triton() -> None:
    code = """
import sys, torch, mtobal
rows = [[torch.ones(3)], [torch.ones(3)]]
mtobal.ops.gramian(rows), mtobal.ops.combine(rows, [1.0, 2.0])
mtobal.ops.trimmed_mean(torch.ones(3, 4), 1), mtobal.ops.sign_drop(torch.ones(3, 4), torch.zeros(4))
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_triton_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    monkeypatch.setattr(kernels, "_compiles_for", lambda device: True)
    assert kernels.use_kernels([on_device])
    assert not kernels.use_kernels([on_device, torch.ones(1)])
    assert not kernels.use_kernels([SimpleNamespace(device=on_device.device, dtype=torch.float64)])  # type: ignore[list-item]
    assert not kernels.use_kernels([])
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    kernels._compiles_for.cache_clear()
    assert not kernels.use_kernels([on_device])
    kernels._compiles_for.cache_clear()
