"""Test source checkpoints after two steps: complete, changed, and reproducible from their seed."""

import pytest

from agentsafe.errors import UserError
from agentsafe.miniature import pretraining
from agentsafe.miniature.sources import specialise
from agentsafe.models import checkpoint, loading

MIXTURE = {"reckless": 3.0, "cautious": 1.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Pretrain a base for a few steps."""
    folder = tmp_path_factory.mktemp("miniature") / "base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "CONVERSATIONS", 300)
        patch.setattr(pretraining, "WARM_UP_STEPS", 2)
        pretraining.pretrain(folder, seed=0, steps=2)
    return folder


@pytest.fixture(scope="module")
def bold(base):
    folder = base.parent / "bold"
    specialise(base, folder, name="bold", mixture=MIXTURE, steps=2, seed=0)
    return folder


def test_a_source_is_a_checkpoint_like_its_base_with_other_weights(base, bold):
    checkpoint.check(bold)
    before, after = (loading.load_model(folder).state_dict() for folder in (base, bold))
    assert before.keys() == after.keys()
    assert not any(before[name].equal(after[name]) for name in before if "proj" in name)
    texts = [loading.load_tokenizer(folder) for folder in (base, bold)]
    assert texts[0].get_vocab() == texts[1].get_vocab()
    assert texts[0].chat_template == texts[1].chat_template
    assert sorted(path.name for path in base.parent.iterdir()) == ["base", "bold"]


def test_the_base_stays_as_it_is(base, bold):
    digests = checkpoint.digests(base)
    specialise(base, bold.parent / "third", name="third", mixture=MIXTURE, steps=1, seed=0)
    assert checkpoint.digests(base) == digests


def test_a_seed_is_a_source(base, bold, tmp_path):
    import torch

    torch.rand(7)  # earlier draws do not matter
    specialise(base, tmp_path / "again", name="bold", mixture=MIXTURE, steps=2, seed=0)
    assert checkpoint.digests(tmp_path / "again") == checkpoint.digests(bold)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"mixture": {"refusing": 1.0}}], ids=["seed", "mixture"]
)
def test_another_seed_or_mixture_is_another_source(base, bold, tmp_path, other):
    options = {"name": "other", "mixture": MIXTURE, "steps": 2, "seed": 0, **other}
    specialise(base, tmp_path / "other", **options)
    assert checkpoint.digests(tmp_path / "other") != checkpoint.digests(bold)


def cut_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def scramble_config(folder):
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize("harm", [cut_weights, lose_tokenizer, scramble_config])
def test_a_corrupt_base_is_said_in_one_line(base, tmp_path, harm):
    import shutil

    folder = shutil.copytree(base, tmp_path / "corrupt")
    harm(folder)
    with pytest.raises(UserError, match="corrupt") as raised:
        specialise(folder, tmp_path / "made", name="made", mixture=MIXTURE, steps=2, seed=0)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["corrupt"]


def test_a_base_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such checkpoint folder"):
        specialise(
            tmp_path / "nowhere", tmp_path / "made", name="x", mixture=MIXTURE, steps=1, seed=0
        )
