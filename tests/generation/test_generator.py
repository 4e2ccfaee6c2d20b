"""The `Generator` of a finished tiny run."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from vqvae2 import Generator
from vqvae2.codes import CodeStore
from vqvae2.config import ImagesConfig
from vqvae2.errors import UserError
from vqvae2.generation.controls import NO_CLASS, choose_labels
from vqvae2.generation.samples import short_name
from vqvae2.images.sources import open_images


@pytest.fixture(scope="module")
def generator(tiny_run: tuple[Path, Path]) -> Generator:
    return Generator.from_run(tiny_run[1], device="cpu", dtype="float32")


def pixels_apart(one: torch.Tensor, other: torch.Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def test_sample_is_determined_by_the_seed(generator: Generator) -> None:
    """The same seed gives the same images bit for bit; another seed gives different images.

    Images of the same seed differ from one another.
    """
    first = generator.sample(3, seed=1, batch_size=3)
    assert first.dtype == torch.uint8 and first.shape == (3, 3, 16, 32)
    assert torch.equal(first, generator.sample(3, seed=1, batch_size=3))
    assert not torch.equal(first, generator.sample(3, seed=2, batch_size=3))
    assert len(first.flatten(1).unique(dim=0)) == 3


def test_image_does_not_depend_on_the_number_of_images(generator: Generator) -> None:
    """With the same batch size, an image depends only on its index.

    It does not depend on the number of images or on `first_image`.
    """
    many = generator.sample(7, seed=3, batch_size=4)
    for count in (1, 4):
        assert torch.equal(generator.sample(count, seed=3, batch_size=4), many[:count])
    assert torch.equal(generator.sample(2, seed=3, first_image=5, batch_size=4), many[5:])


def test_label_by_name_and_by_index(generator: Generator) -> None:
    """A class can be given by name, index or index as text; other classes and "none" give different images."""
    name = generator.classes[1]
    by_name = generator.sample(2, label=name, batch_size=2)
    for label in (1, "1", [name, 1]):
        assert torch.equal(generator.sample(2, label=label, batch_size=2), by_name)
    for label in (0, "none", [name, "none"]):
        assert not torch.equal(generator.sample(2, label=label, batch_size=2), by_name)
    mixed = generator.sample(2, label=[name, "none"], batch_size=2)
    assert torch.equal(mixed[0], by_name[0])


def test_no_label_draws_classes_by_their_frequency(generator: Generator, tiny_run: tuple[Path, Path]) -> None:
    """Without a label, the class of each image is drawn with the class frequencies of the training set.

    It depends only on the seed and the index of the image.
    """
    frequencies = torch.tensor(json.loads((tiny_run[1] / "stage1" / "model.json").read_text())["class_frequencies"])
    labels = generator.labels(None, range(3000), seed=0)
    assert torch.allclose(torch.bincount(labels, minlength=len(frequencies)) / 3000, frequencies, atol=0.03)
    assert torch.equal(generator.labels(None, range(5, 9), seed=0), labels[5:9])
    assert not torch.equal(generator.labels(None, range(3000), seed=1), labels)
    drawn = generator.classes[labels[0]]
    assert torch.equal(
        generator.sample(1, seed=0, batch_size=1), generator.sample(1, seed=0, label=drawn, batch_size=1)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"label": "no such class"}, "no such class"),
        ({"label": 10_000}, "10000"),
        ({"label": -1}, "-1"),
        ({"label": ["none"]}, "1 labels for 2 images"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"guidance": -1.0}, "guidance"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_argument_that_does_not_fit_is_refused(generator: Generator, arguments: dict, said: str) -> None:
    """An invalid argument raises a UserError that names the argument or quotes its value."""
    with pytest.raises(UserError, match=said):
        generator.sample(2, **arguments)


def test_controls_change_what_is_drawn(generator: Generator) -> None:
    """Temperature, top_k, top_p (without top_k) and guidance each change the samples; neutral values do not."""
    plain = generator.sample(4, seed=0, label=0, batch_size=4)
    for controls in (
        {"temperature": 0.2},
        {"top_k": 1},
        {"top_p": 0.2},
        {"guidance": 20.0},
        {"top_p": {"bottom": 0.1}},
    ):
        assert not torch.equal(generator.sample(4, seed=0, label=0, batch_size=4, **controls), plain), controls
    neutral = {"temperature": {"top": 1.0}, "top_k": 300, "top_p": 1.0, "guidance": 1.0}
    assert torch.equal(generator.sample(4, seed=0, label=0, batch_size=4, **neutral), plain)


def some_images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


def test_complete_keeps_the_region_and_draws_the_rest(generator: Generator) -> None:
    """With the whole image kept, `complete` returns the reconstruction.

    With the upper half kept, the rest depends on the seed, and the images differ from those of `sample`.
    """
    images = some_images(3)
    whole = generator.complete(images, "0,0,32,16", batch_size=2)
    assert torch.equal(whole, generator.decode(generator.encode(images)))
    halves = [generator.complete(images, "top", seed=seed, batch_size=2) for seed in (0, 0, 1)]
    assert torch.equal(halves[0], halves[1]) and not torch.equal(halves[0], halves[2])
    assert len(halves[0].flatten(1).unique(dim=0)) == 3
    assert not torch.equal(halves[0], generator.sample(3, batch_size=2))


def test_mask_keeps_any_form_and_particles_change_the_rest(generator: Generator) -> None:
    """A mask keeps the codes outside a hole, whose former content has no effect.

    With several particles, the result depends on their number, but not on the images beside it in the batch.
    """
    images, mask = some_images(3), torch.ones(16, 32, dtype=torch.bool)
    mask[4:12, 8:24] = False
    other = torch.where(mask, images, 255)
    one = generator.complete(images, mask, batch_size=2)
    assert torch.equal(one, generator.complete(other, mask, batch_size=2))
    shares: list[torch.Tensor] = []
    many = generator.complete(images, mask, particles=4, batch_size=8, survival=shares.append)
    assert torch.equal(many, generator.complete(images, mask, particles=4, batch_size=8)) and not torch.equal(many, one)
    assert torch.equal(many[:2], generator.complete(images[:2], mask, particles=4, batch_size=8))
    assert len(torch.cat(shares)) == 3 and all(1 / 4 <= share <= 1 for share in torch.cat(shares).tolist())
    assert torch.equal(one, generator.complete(images, mask, particles=1, batch_size=2))


def test_images_so_far_become_the_samples(generator: Generator) -> None:
    """Watching does not change the samples; the last images so far are the samples, the first ones are not."""
    seen: list[torch.Tensor] = []
    options = {"seed": 1, "label": 0, "batch_size": 3}
    images = generator.sample(3, **options, watch=lambda images_so_far: seen.append(images_so_far()))
    assert torch.equal(images, generator.sample(3, **options))
    assert torch.equal(seen[-1], images) and not torch.equal(seen[0], images)
    assert {x.shape for x in seen} == {images.shape}


def test_images_so_far_of_several_particles_are_of_the_first_one(generator: Generator) -> None:
    """There is one for each image, not for each particle; the first ones show the kept codes of the coarsest level."""
    seen: list[torch.Tensor] = []
    images = some_images(2)
    begun = {"top": generator.kept_region(images, "left")["top"].codes.clone()}  # the right half was filled
    begun["top"][:, :, 2:] = -1
    generator.complete(images, "left", particles=3, batch_size=6, watch=lambda so_far: seen.append(so_far()))
    assert {x.shape for x in seen} == {images.shape}
    with torch.no_grad():
        assert torch.equal(seen[0], generator.autoencoder.decode(begun)) and not torch.equal(seen[0], seen[-1])


def test_likelihood_of_images_is_that_of_the_evaluation(evaluated_run: Path, tiny_run: tuple[Path, Path]) -> None:
    """The means over the held-out images equal the figures of evaluation.json.

    Without labels the unconditional model is used, which gives other figures.
    """
    generator = Generator.from_run(evaluated_run, device="cpu", dtype="float32")  # as the run's stage 2 encoded
    config = yaml.safe_load(tiny_run[0].read_text())
    images = open_images(ImagesConfig(**config["images"]), seed=0).validation
    pixels = torch.stack([images.load(i) for i in range(len(images))])
    found = generator.log_likelihood(pixels, torch.tensor(images.labels))
    expected = json.loads((evaluated_run / "evaluation.json").read_text())["likelihood"]
    for name, positions in (("top", 2 * 4), ("bottom", 4 * 8)):
        assert found.nats[name].mean() / positions == pytest.approx(expected[name]["nats_per_code"], rel=1e-3)
    assert found.bits_per_dimension.mean() == pytest.approx(expected["bits_per_dimension"], rel=1e-3)
    assert found.bits_per_dimension.shape == (len(images),) and found.reason is None
    unconditional = generator.log_likelihood(pixels)
    assert not torch.allclose(unconditional.nats["top"], found.nats["top"])
    names = [generator.classes[i] for i in images.labels]
    assert torch.equal(generator.log_likelihood(pixels, names).nats["top"], found.nats["top"])


def test_likelihood_of_a_run_of_an_earlier_version(evaluated_run: Path, tmp_path: Path) -> None:
    """Its stage 1 has no pixel variance: evaluation.json has it, else that part is None with the reason."""
    run = tmp_path / "run"
    shutil.copytree(evaluated_run, run)
    path = run / "stage1" / "model.json"
    description = json.loads(path.read_text())
    variance = description.pop("pixel_variance")
    assert variance == json.loads((run / "evaluation.json").read_text())["likelihood"]["pixel_variance"] > 0
    whole = Generator.from_run(run, device="cpu").log_likelihood(some_images(2))
    path.write_text(json.dumps(description))
    assert torch.equal(
        Generator.from_run(run, device="cpu").log_likelihood(some_images(2)).bits_per_dimension,
        whole.bits_per_dimension,
    )
    (run / "evaluation.json").unlink()
    partial = Generator.from_run(run, device="cpu").log_likelihood(some_images(2))
    assert partial.bits_per_dimension is None and "evaluate.py" in partial.reason
    assert torch.equal(partial.nats["bottom"], whole.nats["bottom"])


def test_reconstructions_have_the_image_of_the_coarsest_codes_and_the_likelihood(
    generator: Generator, tiny_run: tuple[Path, Path], tmp_path: Path
) -> None:
    """Without the prior of a level, the likelihood and the size are None, and the reason names the missing stage."""
    images, labels = some_images(3), [0, 1, "none"]
    made, codes = generator.reconstruct(images, labels), generator.encode(images)
    assert torch.equal(made.images, generator.decode(codes))
    with torch.no_grad():
        assert torch.equal(made.coarsest, generator.autoencoder.decode({"top": codes["top"]}))
    assert not torch.equal(made.coarsest, made.images)
    expected = generator.log_likelihood(images, labels)
    assert made.reason is None and made.likelihood is not None and made.bytes is not None
    assert torch.equal(made.likelihood.bits_per_dimension, expected.bits_per_dimension)
    nats = expected.nats["top"] + expected.nats["bottom"]
    torch.testing.assert_close(made.bytes, nats / (8 * math.log(2)), check_dtype=False)
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run, ignore=shutil.ignore_patterns("stage4", "codes"))
    unfinished = Generator.from_run(run, device="cpu", dtype="float32").reconstruct(images)
    assert unfinished.likelihood is None and unfinished.bytes is None and "stage4.py" in str(unfinished.reason)
    assert torch.equal(unfinished.coarsest, made.coarsest) and torch.equal(unfinished.mse, made.mse)


def test_resample_keeps_the_coarser_codes(generator: Generator) -> None:
    """From the coarsest level, `resample` equals `sample`; from the bottom level, it depends on the seed and image."""
    images = some_images(2)
    assert torch.equal(generator.resample(images, "top", batch_size=2), generator.sample(2, batch_size=2))
    first = generator.resample(images, batch_size=2)
    assert not torch.equal(first, generator.resample(images, seed=1, batch_size=2))
    assert not torch.equal(first, generator.resample(images.flip(0), batch_size=2))


def test_codes_are_those_that_stage_2_wrote(generator: Generator, tiny_run: tuple[Path, Path]) -> None:
    """`encode` of the validation images gives the codes that stage 2 stored."""
    config = yaml.safe_load(tiny_run[0].read_text())
    images = open_images(ImagesConfig(**config["images"]), seed=0).validation
    store = CodeStore(tiny_run[1] / "codes" / "validation.lmdb")
    assert len(store) == len(images) > 0
    codes = generator.encode(torch.stack([images.load(i) for i in range(len(images))]))
    for i, record in enumerate(store):
        assert all(torch.equal(codes[name][i], record.codes[name]) for name in ("top", "bottom"))


def test_encode_and_decode_are_the_autoencoders_reconstruction(generator: Generator) -> None:
    """`encode` returns int64 codes of each level's grid; `decode` gives the images of the autoencoder's forward pass.

    The number of images is larger than a batch.
    """
    images = torch.randint(256, (19, 3, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes = generator.encode(images)
    assert {name: (tuple(x.shape), x.dtype) for name, x in codes.items()} == {
        "top": ((19, 2, 4), torch.int64),
        "bottom": ((19, 4, 8), torch.int64),
    }
    with torch.no_grad():
        expected = generator.autoencoder(images).images
    decoded = (generator.decode(codes).float() / 127.5 - 1) - expected.clamp(-1, 1)
    assert decoded.abs().max() <= 1.5 / 127.5


def test_what_it_returns_can_be_trained_on(generator: Generator) -> None:
    """Returned codes and images are ordinary tensors: they can be used with autograd and modified in place."""
    codes = generator.encode(generator.sample(1, batch_size=1).add_(0))
    torch.nn.Embedding(300, 2)(codes["bottom"]).sum().backward()


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 32, 16, dtype=torch.uint8),
        torch.zeros(2, 1, 16, 32, dtype=torch.uint8),
        torch.zeros(3, 16, 32, dtype=torch.uint8),
        torch.zeros(2, 3, 16, 32),
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.dtype}",
)
def test_images_of_another_kind_are_refused(generator: Generator, images: torch.Tensor) -> None:
    """Images of wrong size, channels, dimensions or dtype raise a UserError that states the expected shape."""
    with pytest.raises(UserError, match=r"\(B, 3, 16, 32\)"):
        generator.encode(images)


def test_missing_level_is_refused(generator: Generator) -> None:
    """Decoding without the codes of a level raises a UserError that names the level."""
    with pytest.raises(UserError, match="bottom"):
        generator.decode({"top": torch.zeros(1, 2, 4, dtype=torch.long)})


def test_priors_run_in_double(tiny_run: tuple[Path, Path]) -> None:
    """In float64, the NLL of sampled codes is finite and close to that in float32."""
    generator = Generator.from_run(tiny_run[1], device="cpu", dtype="float32")
    codes = generator.encode(generator.sample(4, seed=0, batch_size=4))
    labels = torch.tensor([0, 1, 2, -1])

    def nll(name: str) -> torch.Tensor:
        coarser = {"top": codes["top"]} if name == "bottom" else None
        return torch.nn.functional.cross_entropy(generator.priors[name](codes[name], coarser, labels), codes[name])

    for name in ("top", "bottom"):
        single = nll(name)
        generator.priors[name].double()
        double = nll(name)
        assert double.dtype == torch.float64 and 0 < double < torch.inf
        assert torch.allclose(single.double(), double, rtol=1e-4)


def test_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A missing run directory raises a UserError that names the directory and stage 1."""
    with pytest.raises(UserError, match=r"nowhere.*stage1"):
        Generator.from_run(tmp_path / "nowhere")


def test_unfinished_prior_is_named(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Without stage 4, `encode` works and `sample` raises a UserError that names the command to run."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run, ignore=shutil.ignore_patterns("stage4"))
    generator = Generator.from_run(run, device="cpu")
    assert generator.encode(torch.zeros(1, 3, 16, 32, dtype=torch.uint8))["top"].shape == (1, 2, 4)
    with pytest.raises(UserError, match=r"stage4\.py --level bottom"):
        generator.sample(1)


def test_prior_of_another_autoencoder_is_refused(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """A prior trained on the codes of another autoencoder raises a UserError that names both files."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    path = run / "stage3" / "model.json"
    description = json.loads(path.read_text())
    path.write_text(json.dumps({**description, "autoencoder_sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"stage3.*stage1"):
        Generator.from_run(run, device="cpu").sample(1)


def test_damaged_weights_are_refused(tiny_run: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights that do not match the hash in model.json raise a UserError that names the file."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run[1], run)
    path = run / "stage1" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"stage1.model\.safetensors"):
        Generator.from_run(run)


def test_bfloat16_decodes_nearly_the_same(generator: Generator, tiny_run: tuple[Path, Path]) -> None:
    """In bfloat16, images can be sampled, and decoded images differ from float32 by at most 8 of 255.

    float16 is refused.
    """
    rough = Generator.from_run(tiny_run[1], device="cpu", dtype="bfloat16")
    codes = generator.encode(generator.sample(2, batch_size=2))
    assert 0 <= pixels_apart(rough.decode(codes), generator.decode(codes)) <= 8
    assert rough.sample(1, batch_size=1).shape == (1, 3, 16, 32)
    with pytest.raises(UserError, match="float16"):
        Generator.from_run(tiny_run[1], dtype="float16")


def test_a_class_named_none_is_not_the_unconditional_model() -> None:
    """NO_CLASS is the unconditional model even if a class has the name of its label."""
    arguments = {"seed": 0, "guidance": 1.0, "classes": ["scratch", "none"], "frequencies": [0.5, 0.5]}
    labels = choose_labels(["none", NO_CLASS, "scratch"], range(3), **arguments, can_be_hidden=True)
    assert labels is not None and labels.tolist() == [1, -1, 0]
    named = choose_labels("none", range(1), **arguments, can_be_hidden=False)
    assert named is not None and named.tolist() == [1]
    with pytest.raises(UserError, match="label_dropout 0"):
        choose_labels(NO_CLASS, range(1), **arguments, can_be_hidden=False)


def test_names_of_classes_in_file_names_are_short_and_distinct() -> None:
    """A short name is unchanged; a long one and one with a slash end with a hash of their own."""
    assert short_name("star") == "star"
    names = ["a/b", "a-b", "a/b/c", "é" * 100, "é" * 101]
    short = [short_name(name) for name in names]
    assert len(set(short)) == len(names) and all(len(x.encode()) < 60 and "/" not in x for x in short)
