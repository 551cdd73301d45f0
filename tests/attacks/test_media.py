import pytest

from tests.attacks.media_mutations import CODECS, attack, files

QUICK = 40


@pytest.fixture(scope="module")
def sound_files():
    return files()


@pytest.mark.parametrize("kind", [*CODECS, "png", "jpeg", "webp", "wav"])
def test_mutated_files_are_clips_or_skipped(sound_files, kind):
    """141 of 8,190 mutated files ended the run with an error that is no ``SampleError``."""
    assert attack(kind, sound_files[kind], 1) <= 1
    refused = attack(kind, sound_files[kind], QUICK)
    assert 0 < refused <= QUICK


@pytest.mark.attack
def test_thousands_of_mutations_of_every_container(run_python):
    """In a process of its own: a decoder that crashes takes its process along."""
    done = run_python(["-m", "tests.attacks.media_mutations", "2000"], devices=1, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == len(CODECS) + 4
