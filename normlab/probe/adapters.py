"""Kernels of other libraries by name, called as f(x, weight, eps) on NumPy rows."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from normlab.config import require
from normlab.probe.kernel import Function
from normlab.registry import unknown

KERNELS = {
    "MODULE:FUNCTION": "f(x, weight, eps) on arrays; MODULE may be a file NAME.py",
    "torch.nn.functional:rms_norm": "PyTorch's, and layer_norm: f(x, (d,), weight=…, eps=…)",
    "MODULE:CLASS": "torch.nn.Module's, CLASS(d, eps=…), or flax.nnx.Module's, CLASS(d, epsilon=…)",
    "onnxruntime:OPERATOR": "a graph of one operator: SimplifiedLayerNormalization, …",
}
"""How a kernel is named, and how it is called then."""
ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
"""Numbers of the types in ONNX's TensorProto."""


def load(name: str, compiled: bool = False) -> Function:
    """The kernel `MODULE:NAME`.

    A function of (x, weight, eps) on arrays; PyTorch's, whose second argument is the normalized
    shape; a class of torch.nn.Module or of flax.nnx.Module; or `onnxruntime:OPERATOR`.

    Args:
        name: of a module, or of a file `NAME.py`, and of what is in it.
        compiled: by torch.compile or jax.jit first.

    Raises:
        ValueError: naming what is not there, and the nearest that is.
    """
    module, colon, attribute = name.rpartition(":")
    require(
        bool(module and attribute and colon),
        f"kernel {name!r}: expected MODULE:NAME, such as torch.nn.functional:rms_norm",
    )
    if module == "onnxruntime":
        return _onnx(attribute)
    found: Any = _module(module, name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise unknown(f"name in {module}", part, [n for n in dir(found) if n[0] != "_"])
        found = getattr(found, part)
    bases = [f"{base.__module__}.{base.__name__}" for base in getattr(found, "__mro__", ())]
    if "torch.nn.modules.module.Module" in bases:
        return _torch_module(found, compiled)
    if any(base.startswith("flax.nnx.") for base in bases):
        return _flax_module(found)
    if module.split(".")[0] == "torch":
        return _torch(found, compiled)
    require(callable(found), f"kernel {name!r}: expected a function, got {type(found).__name__}")
    return _jitted(found) if compiled else found


def _module(module: str, name: str) -> Any:
    if module.endswith(".py"):
        path = Path(module)
        require(path.is_file(), f"kernel {name!r}: no such file; expected NAME.py:FUNCTION")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return made
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"kernel {name!r}: {error}; is it installed?") from None


def to_torch(x: np.ndarray) -> Any:
    """An array as a tensor of the same dtype, bfloat16 included."""
    import torch

    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(x))


def from_torch(y: Any) -> np.ndarray:
    """A tensor in float32, which holds what it held."""
    return y.detach().float().numpy()


def _torch(function: Any, compiled: bool) -> Function:
    import torch

    function = _compiled(function) if compiled else function

    def run(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        with torch.no_grad():
            rows = _any_number(to_torch(x)) if compiled else to_torch(x)
            made = function(rows, (x.shape[-1],), weight=to_torch(weight), eps=eps)
        return from_torch(made)

    return run


def _compiled(function: Any) -> Any:
    """By torch.compile, once for each ε: past a limit it falls back to eager without a word."""
    import torch

    torch._dynamo.config.recompile_limit = 10_000
    torch._dynamo.config.accumulated_recompile_limit = 10_000
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(function)


def _any_number(x: Any) -> Any:
    """The rows, of which one program takes any number."""
    import torch

    torch._dynamo.maybe_mark_dynamic(x, 0)
    return x


def _torch_module(kind: Any, compiled: bool) -> Function:
    import torch

    @cache
    def module(d: int, eps: float) -> Any:
        made = kind(d, eps=eps)
        return made, _compiled(made) if compiled else made

    def run(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        made, call = module(x.shape[-1], eps)
        with torch.no_grad():
            made.weight = torch.nn.Parameter(to_torch(weight), requires_grad=False)
            if getattr(made, "bias", None) is not None:
                made.bias = torch.nn.Parameter(torch.zeros_like(made.weight), requires_grad=False)
            return from_torch(call(_any_number(to_torch(x)) if compiled else to_torch(x)))

    return run


def _flax_module(kind: Any) -> Function:
    """Its own `dtype` is that of the rows; flax computes statistics in float32."""
    import jax
    from flax import nnx

    @cache
    def module(d: int, eps: float, dtype: Any) -> Any:
        made = kind(d, epsilon=eps, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
        graph, state = nnx.split(made)
        return state, jax.jit(lambda state, x: nnx.merge(graph, state)(x))

    def run(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        state, call = module(x.shape[-1], eps, x.dtype)
        state["scale"][...] = weight
        return np.asarray(call(state, x))

    return run


def _jitted(function: Any) -> Function:
    import jax

    return lambda x, weight, eps: jax.jit(function)(x, weight, eps)


def _onnx(operator: str) -> Function:
    """A graph of one operator, of (x, weight) with `epsilon`, on the CPU."""

    @cache
    def session(d: int, eps: float, kind: str) -> Any:
        import onnxruntime
        from onnx import helper

        form = ONNX_TYPES[kind]
        said = {"epsilon": eps, "axis": -1}
        rows = ["n", d]
        node = helper.make_node(operator, ["x", "weight"], ["y"], **said)
        graph = helper.make_graph(
            [node],
            operator,
            [
                helper.make_tensor_value_info("x", form, rows),
                helper.make_tensor_value_info("weight", form, [d]),
            ],
            [helper.make_tensor_value_info("y", form, rows)],
        )
        opset = 23 if operator == "RMSNormalization" else 17
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 10
        return onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def run(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
        made = session(x.shape[-1], eps, str(x.dtype))
        return made.run(None, {"x": x, "weight": weight})[0]

    return run
