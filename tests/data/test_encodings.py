"""Long texts as tokens on disk: made once, replaced where damaged."""

import numpy as np

from normlab.data.encodings import LEAST, encoded
from normlab.data.tokenizer import ByteTokenizer

TEXT = "A text of – some – length. " * (1 + LEAST // 20)


def test_a_long_text_is_tokenized_once_and_a_damaged_file_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "cache"))
    tokenizer, made = ByteTokenizer(), []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: made.append(text) or encode(text))

    def read(text):
        for found, expected in zip(encoded(text, tokenizer), encode(text), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)

    read(TEXT)
    read(TEXT)
    assert len(made) == 1
    for _ in range(2):
        read("short")
    assert len(made) == 3
    (kept,) = (tmp_path / "cache").rglob("ids.npy")
    kept.write_bytes(kept.read_bytes()[:-4])
    read(TEXT)
    read(TEXT[1:])
    assert len(made) == 5
    (tmp_path / "file").touch()
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file" / "below"))
    read(TEXT)
    assert len(made) == 6
