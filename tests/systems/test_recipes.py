"""The published settings are those of the papers and their public code: a number each that was wrong once."""

import pytest

from videogen.configs import larp, magvit, magvit2, nbp, omnitokenizer, phenaki, tokenbridge


def test_magvit2():
    config = magvit2.get_config("stage=tokenizer,size=paper")
    adversarial = config.losses.adversarial
    # The step halves R1; the public reproduction does not, and takes it every 20 steps.
    assert 0.5 * adversarial.r1 == 10 and adversarial.r1_every == 20 and adversarial.lecam == 0.001
    assert (adversarial.weight, adversarial.start, config.losses.l2.weight) == (0.1, 0, 5.0)
    entropy = config.losses.entropy.to_dict()
    assert entropy == {"name": "quantizer", "loss": "entropy", "weight": {"start": 3.0, "final": 1.0, "steps": 2000}}
    # 9.3 million clips once.
    assert config.data.batch_size * config.steps == pytest.approx(9.3e6, rel=0.01)
    assert config.optimizer.tokenizer.clip == config.optimizer.discriminator.clip == 0
    assert config.optimizer.discriminator.learning_rate == pytest.approx(0.8 * config.optimizer.tokenizer.learning_rate)
    image = magvit2.get_config("stage=image,size=paper")
    assert image.data.batch_size * image.steps == pytest.approx(9e7, rel=0.01)  # nine million images ten times
    assert "entropy" not in magvit2.get_config("stage=tokenizer,size=paper,quantizer=fsq").losses


def test_magvit():
    config = magvit.get_config("stage=tokenizer,size=paper")
    # Pixels of width 2 in the place of 1: errors are 4 times as large when squared, squared gradients a quarter.
    assert 4 * config.losses.l2.weight == 1.0 and 0.5 * config.losses.adversarial.r1 / 4 == 10
    assert config.losses.adversarial.lecam == 0 and config.optimizer.tokenizer.clip == 0
    assert config.steps * config.data.batch_size == pytest.approx(400 * 168_913, rel=0.01)


def test_phenaki():
    config = phenaki.get_config("stage=tokenizer,size=paper")
    from flax import nnx

    from videogen import quantizers

    quantizer = nnx.eval_shape(lambda: quantizers.build(config.model.quantizer, rngs=nnx.Rngs(0)))
    # The codebook is a parameter with a loss of its own, not a moving average.
    assert isinstance(quantizer.codebook, nnx.Param) and quantizer.commitment_weight == 0.25
    assert (config.losses.adversarial.weight, config.losses.adversarial.start) == (0.1, 0)


def test_tokenbridge_takes_over_what_was_mended():
    config = tokenbridge.get_config("stage=tokenizer,size=paper")
    assert 0.5 * config.losses.adversarial.r1 == 10 and "entropy" not in config.losses


def test_omnitokenizer():
    config = omnitokenizer.get_config("stage=tokenizer,size=paper")
    assert (config.losses.l1.weight, config.losses.adversarial.weight) == (4.0, 0.01)
    assert config.losses.adversarial.pause_below == 0.001
    for words in ("feature matching (weight 4)", "one discriminator judges images and clips"):
        assert words in omnitokenizer.__doc__


def test_larp():
    assert larp.get_config("stage=generator,size=paper").model.token_drop == 0.1
    tokenizer = larp.get_config("stage=tokenizer,size=paper")
    assert (tokenizer.losses.prior.weight, tokenizer.losses.adversarial.every) == (0.06, 5)


def test_nbp():
    generator = nbp.get_config("stage=generator,size=paper")
    assert generator.steps * generator.data.batch_size == pytest.approx(77 * 390_000, rel=0.01)
    tokenizer = nbp.get_config("stage=tokenizer,size=paper")
    assert tokenizer.steps * tokenizer.data.batch_size == pytest.approx(100 * 390_000, rel=0.01)
    assert tokenizer.model.padding == generator.parts.tokenizer.model.padding == "replicate"
    rate = tokenizer.optimizer.tokenizer
    assert (rate.learning_rate, rate.schedule, rate.warmup) == (1e-4, "linear", round(0.01 * tokenizer.steps))
