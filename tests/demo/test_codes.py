"""Maps of codes as colors, and what single codes decode to."""

import pytest
import torch

from vqvae2 import Generator
from vqvae2.demo.codes import code_colors, code_map, code_maps, view_code
from vqvae2.errors import UserError


@pytest.fixture(scope="module")
def codes(generator: Generator) -> dict[str, torch.Tensor]:
    return generator.encode(generator.sample(1, label=3, seed=4))


def test_similar_vectors_have_similar_colors() -> None:
    """Colors follow the first three principal components: those of two clusters differ more than those within one."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.zeros(2, 8)
    centers[1, 5] = 10
    vectors = torch.cat([center + torch.randn(20, 8, generator=generator) for center in centers])
    colors = code_colors(vectors).float()
    assert colors.shape == (40, 3) and colors.min() >= 40 and colors.max() <= 235
    assert (colors[:20, 0].mean() - colors[20:, 0].mean()).abs() > 150
    assert max(colors[:20, 0].std(), colors[20:, 0].std()) < 25


@pytest.mark.parametrize("dimensions", [1, 2])
def test_vectors_of_few_dimensions_have_colors(dimensions: int) -> None:
    """Channels without a component are constant."""
    colors = code_colors(torch.randn(9, dimensions, generator=torch.Generator().manual_seed(0)))
    assert len(colors[:, 0].unique()) > 5
    assert all(len(colors[:, i].unique()) == 1 for i in range(dimensions, 3))


def test_each_code_is_a_square_of_its_color() -> None:
    colors = torch.tensor([[10, 20, 30], [40, 50, 60], [200, 210, 220]], dtype=torch.uint8)
    codes = torch.tensor([[0, 1, 2], [2, 2, 0]])
    image = code_map(codes, colors, 4)
    assert image.shape == (3, 8, 12)
    for i, row in enumerate(codes.tolist()):
        for j, code in enumerate(row):
            square = image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].flatten(1)
            assert (square == colors[code][:, None]).all()


def test_other_codes_than_the_marked_one_fade() -> None:
    """The squares of the marked code keep their color; those of the others come nearer to gray."""
    colors = torch.tensor([[10, 20, 30], [200, 210, 220]], dtype=torch.uint8)
    image = code_map(torch.tensor([[0, 1]]), colors, 1, marked=1)
    assert image[:, 0, 1].tolist() == [200, 210, 220]
    assert ((image[:, 0, 0].float() - 128).abs() < (colors[0].float() - 128).abs() / 2).all()


def test_maps_are_as_large_as_the_enlarged_picture(generator: Generator, codes: dict[str, torch.Tensor]) -> None:
    """Of 28x28 pixels, enlarged 10 times."""
    assert {name: tuple(x.shape) for name, x in code_maps(generator, codes).items()} == {
        "top": (3, 280, 280),
        "bottom": (3, 280, 280),
    }


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_a_code_is_decoded_alone_and_everywhere(
    generator: Generator, codes: dict[str, torch.Tensor], level: str
) -> None:
    """Its vector replaces the mean vector at one position, or at all of its level; other levels have mean vectors."""
    view = view_code(generator, codes, level, 3, 2)
    code = codes[level][0, 3, 2]
    assert view.code == code and view.positions == (codes[level] == code).sum()
    means = {name: q.mean_vector() for name, q in zip(codes, generator.autoencoder.quantisers, strict=True)}
    vector = generator.autoencoder.codebooks()[level][code]

    def decoded(place: tuple) -> torch.Tensor:
        context = None
        for (name, own), decode in zip(codes.items(), generator.autoencoder.decoders, strict=True):
            vectors = means[name].expand(1, -1, *own.shape[1:]).clone()
            if name == level:
                vectors[(0, slice(None), *place)] = vector.view(-1, *[1] * (2 - sum(isinstance(x, int) for x in place)))
            context = decode(vectors if context is None else torch.cat([vectors, context], 1))
        return ((context[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

    with torch.no_grad():
        assert (view.here.int() - decoded((3, 2)).int()).abs().max() <= 1
        assert (view.everywhere.int() - decoded((slice(None), slice(None))).int()).abs().max() <= 1
    assert not torch.equal(view.here, view.everywhere)


def test_a_code_outside_the_map_is_refused(generator: Generator, codes: dict[str, torch.Tensor]) -> None:
    for row, column in ((7, 0), (0, 7), (-1, 0)):
        with pytest.raises(UserError, match="use rows 1 to 7 and columns 1 to 7"):
            view_code(generator, codes, "top", row, column)
