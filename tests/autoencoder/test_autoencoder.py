"""Tests of the hierarchical autoencoder with one to four levels: what each part depends on, losses, initialization."""

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import ROOT
from vqvae2.autoencoder.artefact import build_autoencoder
from vqvae2.autoencoder.autoencoder import Autoencoder
from vqvae2.autoencoder.blocks import ResidualBlock, inputs_per_output
from vqvae2.config import AutoencoderConfig, LevelConfig
from vqvae2.images.convert import to_float, to_uint8
from vqvae2.run.command_line import parse_config

STRIDES = {1: [4], 2: [8, 2], 3: [8, 4, 2], 4: [16, 8, 4, 2]}
NAMES = ["top", "upper", "lower", "bottom"]


def tiny(levels: int, channels: int = 3, dtype: torch.dtype = torch.float32, **options) -> Autoencoder:
    """An autoencoder with the strides above and normalized features, so that many codes are used."""
    config = AutoencoderConfig(
        [
            LevelConfig(NAMES[i], stride, codebook_size=7 + i, code_dim=3 + i)
            for i, stride in enumerate(STRIDES[levels])
        ],
        hidden_channels=12,
        residual_channels=6,
        residual_layers=1,
        **options,
    )
    autoencoder = build_autoencoder(config, channels, seed=0)
    for i, layer in enumerate(autoencoder.to_codes):
        flat = features_of(autoencoder, some_images(channels))[i].transpose(0, 1).flatten(1)
        layer.weight.data.div_(flat.std(1).view(-1, 1, 1, 1))
        layer.bias.data.sub_(flat.mean(1)).div_(flat.std(1))
    return autoencoder.to(dtype)


def some_images(channels: int = 3, count: int = 2) -> torch.Tensor:
    return torch.randint(256, (count, channels, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def features_of(autoencoder: Autoencoder, images: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [x.features for x in autoencoder(images).quantised]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_decoding_the_codes_gives_the_reconstruction(levels: int, channels: int) -> None:
    """`encode` returns the codes of the forward pass, and `decode` returns its images from these codes."""
    autoencoder = tiny(levels, channels, torch.float64)
    images = some_images(channels)
    with torch.no_grad():
        reconstruction = autoencoder(images)
    codes = autoencoder.encode(images)
    assert list(codes) == NAMES[:levels]
    for level, result in zip(autoencoder.config.levels, reconstruction.quantised, strict=True):
        assert codes[level.name].shape == (2, 32 // level.stride, 48 // level.stride)
        assert torch.equal(codes[level.name], result.codes)
        assert len(result.codes.unique()) > 1
    assert reconstruction.images.dtype == torch.float64
    decoded = autoencoder.decode(codes)
    assert decoded.shape == images.shape
    assert decoded.float().std() > 1
    assert torch.equal(decoded, to_uint8(reconstruction.images))


def test_images_may_come_as_floats() -> None:
    """uint8 images and the same images as floats in [-1, 1] have the same reconstruction."""
    autoencoder = tiny(2)
    images = some_images()
    assert torch.equal(autoencoder(images).images, autoencoder(to_float(images)).images)


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_finer_levels_are_quantised_knowing_all_coarser_ones(levels: int) -> None:
    """Changing the code vectors of a level changes the features of all finer levels and of no coarser level.

    This holds even if the levels in between carry no information.
    """
    for changed in range(levels - 1):
        autoencoder = tiny(levels)
        for silent in autoencoder.quantisers[changed + 1 :]:
            # without information in its codes, finer levels depend on `changed` only through the decoder outputs
            silent.codebook.data.zero_()
        before = features_of(autoencoder, some_images())
        autoencoder.quantisers[changed].codebook.data.neg_()
        after = features_of(autoencoder, some_images())
        for i in range(levels):
            assert torch.equal(before[i], after[i]) == (i <= changed), (changed, i)


def test_an_encoder_knows_nothing_of_the_codes() -> None:
    """The features of the coarsest level depend on the encoders only; its encoder reads the output of the finer one."""
    autoencoder = tiny(2)
    images = some_images()
    fine = autoencoder.encoders[1](to_float(images))
    coarse = autoencoder.to_codes[0](autoencoder.encoders[0](fine))
    assert torch.allclose(features_of(autoencoder, images)[0], coarse, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_every_level_shows_in_the_image(levels: int) -> None:
    """Changing the codes of any level changes the decoded image."""
    autoencoder = tiny(levels)
    codes = autoencoder.encode(some_images())
    image = autoencoder.decode(codes)
    for level in autoencoder.config.levels:
        other = {**codes, level.name: (codes[level.name] + 1) % level.codebook_size}
        assert not torch.equal(autoencoder.decode(other), image), level.name


@pytest.mark.parametrize("kept", [1, 2])
def test_left_out_levels_show_their_mean_code_vector(kept: int) -> None:
    """Decoding without the finer levels equals decoding with each of their code vectors set to the codebook's mean."""
    autoencoder = tiny(3)
    codes = autoencoder.encode(some_images())
    coarse_only = autoencoder.decode({name: codes[name] for name in NAMES[:kept]})
    for quantiser in autoencoder.quantisers[kept:]:
        quantiser.codebook.data.copy_(quantiser.codebook.mean(0).expand_as(quantiser.codebook))
    expected = autoencoder.decode(codes).int()
    assert (coarse_only.int() - expected).abs().max() <= 1
    assert expected.float().std() > 1


def test_double_agrees_with_float32() -> None:
    """The float64 and float32 models give the same codes, and the same reconstruction up to rounding."""
    images = some_images()
    with torch.no_grad():
        single, double = tiny(3)(images), tiny(3, dtype=torch.float64)(images)
    for a, b in zip(single.quantised, double.quantised, strict=True):
        assert torch.equal(a.codes, b.codes)
    assert torch.allclose(single.images.double(), double.images, atol=1e-4)


@pytest.mark.parametrize("update", ["ema", "loss"])
@pytest.mark.parametrize(("loss", "distance"), [("mse", F.mse_loss), ("l1", F.l1_loss)])
def test_losses_are_the_papers(loss: str, distance, update: str) -> None:
    """The loss is reconstruction + beta x commitment, plus the codebook loss if the codebooks are trained by it."""
    autoencoder = tiny(2, reconstruction_loss=loss, codebook_update=update, commitment_weight=0.4)
    images = some_images()
    reconstruction = autoencoder(images)
    losses = autoencoder.losses(images, reconstruction)
    apart = sum(F.mse_loss(x.vectors, x.features) for x in reconstruction.quantised)
    pixels = distance(reconstruction.images, images / 127.5 - 1)
    expected = pixels + 0.4 * apart + (apart if update == "loss" else 0)
    assert torch.allclose(losses.total, expected)
    assert torch.allclose(losses.reconstruction, pixels)
    losses.total.backward()
    assert all((x.codebook.grad is not None) == (update == "loss") for x in autoencoder.quantisers)


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_unquantised_pass_is_a_plain_autoencoder(update: str) -> None:
    """Without quantization, features are decoded directly and the loss is the reconstruction loss only."""
    autoencoder = tiny(2, codebook_update=update)
    images = some_images()
    reconstruction = autoencoder(images, quantises=False)
    for quantiser, result in zip(autoencoder.quantisers, reconstruction.quantised, strict=True):
        assert torch.equal(result.vectors, result.features)
        quantiser.codebook.data.neg_()
    assert torch.equal(autoencoder(images, quantises=False).images, reconstruction.images)
    assert not torch.equal(autoencoder(images).images, reconstruction.images)
    losses = autoencoder.losses(images, reconstruction)
    assert torch.equal(losses.total, losses.reconstruction)
    losses.total.backward()
    assert all(x.weight.grad.abs().sum() > 0 for x in autoencoder.to_codes)


@pytest.mark.parametrize("quantises", [True, False])
def test_hidden_levels_do_not_reach_the_decoders(quantises: bool) -> None:
    """An image decoded from the coarsest one or two of three levels does not depend on the finer levels."""
    autoencoder, images = tiny(3), some_images(count=3)
    shown = torch.tensor([1, 2, 3])

    def moved(level: int) -> list[bool]:
        before = autoencoder(images, shown, quantises=quantises).images
        bias = autoencoder.to_codes[level].bias
        bias.data += 5
        after = autoencoder(images, shown, quantises=quantises).images
        bias.data -= 5
        return [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]

    assert [moved(level) for level in range(3)] == [[True, True, True], [False, True, True], [False, False, True]]


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_new_features_are_of_one_size_at_every_level(levels: int) -> None:
    """Initial features are small but do not vanish at any depth, and the initial image has a small scale."""
    config = AutoencoderConfig([LevelConfig(NAMES[i], stride) for i, stride in enumerate(STRIDES[levels])])
    autoencoder = build_autoencoder(config, 3, seed=0)
    for features in features_of(autoencoder, some_images()):
        assert 0.05 < features.std() < 1
    with torch.no_grad():
        assert autoencoder(some_images(), quantises=False).images.std() < 0.5


def test_layers_with_fewer_inputs_learn_at_a_higher_rate() -> None:
    """Each convolution's weights have a rate factor inversely proportional to the inputs per output, up to a limit."""
    config = AutoencoderConfig([LevelConfig("top", 8), LevelConfig("bottom", 4)], residual_channels=32)
    autoencoder = Autoencoder(config, channels=3)
    factors = autoencoder.rate_factors()
    names = {p: name for name, p in autoencoder.named_parameters()}
    assert {names[p] for p in factors} == {name for name, p in autoencoder.named_parameters() if p.dim() == 4}
    assert factors[autoencoder.decoders[0][0].weight] == pytest.approx(4096 / (9 * 64))  # 3x3 from 64 channels
    wide = autoencoder.encoders[0][0]  # 4x4 from 128 channels
    assert factors[wide.weight] == pytest.approx(4096 / (16 * 128))
    assert inputs_per_output(autoencoder.decoders[0][-1]) == 4 * 128  # 4x4 with stride 2: each output uses 2x2 of it
    assert factors[autoencoder.decoders[-1][-1].weight] == max(factors.values()) == 8


@pytest.mark.parametrize(
    ("name", "weights"),
    [("imagenet256", 1_716_739), ("ffhq1024", 3_098_563), ("vqvae", 4_471_875), ("benchmark", 1_388_803)],
)
def test_number_of_weights(name: str, weights: int) -> None:
    """The published configurations have the recorded number of parameters; a change would break trained models."""
    config, _ = parse_config(["--config", str(ROOT / "configs" / f"{name}.yaml")])
    with torch.device("meta"):
        autoencoder = Autoencoder(config.autoencoder, config.images.channels)
    assert sum(p.numel() for p in autoencoder.parameters()) == weights


def test_weights_follow_from_the_seed_alone() -> None:
    """Initial weights depend on the seed only, and the global random state is not changed."""
    config = tiny(2).config
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_autoencoder(config, 3, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second, other = (build_autoencoder(config, 3, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["to_codes.0.weight"], other["to_codes.0.weight"])


def test_units_go_on_learning_with_gelu() -> None:
    """A hidden unit that is below zero everywhere has a gradient with gelu, the default, and none with relu."""
    learns = {}
    for activation, options in (("gelu", {}), ("relu", {"activation": "relu"})):
        autoencoder = tiny(1, **options)
        assert autoencoder.config.activation == activation
        block = autoencoder.encoders[0][-2]
        assert isinstance(block, ResidualBlock)
        with torch.no_grad():
            block.merge.weight.fill_(1.0)
            block.spread.bias.copy_(torch.tensor([-2.0, 1.0, 1.0, 1.0, 1.0, 1.0]))
            block.spread.weight.mul_(0.01)
        block(torch.randn(2, 12, 8, 12, generator=torch.Generator().manual_seed(0))).sum().backward()
        assert block.spread.weight.grad is not None
        learns[activation] = (block.spread.weight.grad.flatten(1) != 0).any(1).tolist()
    assert learns == {"gelu": [True] * 6, "relu": [False] + [True] * 5}
