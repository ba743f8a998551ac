"""`python -m evaluate export`: a rewritten model for `transformers`, or for llama.cpp."""

import shlex
from collections.abc import Sequence

from normlab.commands import compile_cache
from normlab.commands.help import print_help
from normlab.commands.launch import imports, told
from normlab.evaluation.export import ExportConfig, write
from normlab.progress import console
from normlab.runs import user_files

EXAMPLES = """
python -m evaluate export pretrained=smollm2-135m transform=rescale:auto+fold out=exported/smollm2
python -m evaluate export run=runs/rmsnorm-pre-HASH dtype=bfloat16 out=exported/mine
python -m evaluate export pretrained=smollm2-135m format=gguf dtype=float16 out=exported/gguf
python -m evaluate export pretrained=smollm2-135m rule=random_tokens.pow2 out=exported/scaled
"""


def main(arguments: Sequence[str]) -> None:
    """Write, and say what was given up and measured."""
    if {"-h", "--help"} & set(arguments):
        print_help("export", ExportConfig, EXAMPLES)
        return
    compile_cache.use()
    user_files.load(imports(arguments))
    config = told(ExportConfig, arguments)
    out, card = write(config, shlex.join(["python", "-m", "evaluate", "export", *arguments]))
    for note in card.notes:
        console.print(note, highlight=False)
    print(f"{card.table()}\n\nwritten to {out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
