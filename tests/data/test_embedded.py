from normlab.data import embedded

TEXTS = {split: embedded.read(split) for split in ("train", "valid", "test")}


def test_shares_are_about_90_5_5_percent():
    total = sum(map(len, TEXTS.values()))
    assert total > 300_000
    assert 0.87 < len(TEXTS["train"]) / total < 0.93
    assert all(0.02 < len(TEXTS[s]) / total < 0.08 for s in ("valid", "test"))


def test_splits_do_not_repeat_the_training_text():
    train = set(TEXTS["train"].split("\n"))
    for split in ("valid", "test"):
        lines = [line for line in TEXTS[split].split("\n") if len(line) > 30]
        seen = sum(line in train for line in lines)
        assert seen < 0.05 * len(lines), split


def test_each_split_begins_at_a_topic():
    for text in TEXTS.values():
        title, underline = text.split("\n")[:2]
        assert title
        assert set(underline) in ({"*"}, {"="})
