"""Detectors take a list of images: another number of them is another batch, and their channels are none."""

import pytest
import torch
from torch import nn

from passes import EquivalenceError, apply_plan, couple, verify
from passes.equality.draws import another_image, draws
from passes.stream.other_sizes import other_sizes


class Listed(nn.Module):
    """Gives for each image the values above the mean. With more than one image it uses `several` as well."""

    def __init__(self, apart=False):
        super().__init__()
        self.first, self.second, self.apart = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1), apart
        self.factor = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, images):
        found = []
        for image in images:
            x = self.first(image[None]).relu()
            if self.apart and len(images) > 1:
                x = x * self.factor[: x.shape[1]].flip(0)[None, :, None, None]
            y = self.second(x)[0]
            found.append({"values": y[y > y.mean()]})
        return found


def half(net):
    example = ([torch.rand(3, 10, 12)],)
    plan = couple(net, example).plan({"first": (0, 3, 5)})
    return example, plan, apply_plan(net, plan)


def test_a_proof_takes_another_number_of_images_and_other_sizes_of_them():
    torch.manual_seed(0)
    net = Listed().eval()
    example, plan, pruned = half(net)
    certificate = verify(net, pruned, plan, example)
    assert certificate.batch_sizes == (1, 2) and "batch of 2 images instead of 1" in certificate.sizes
    assert any("length" in size for size in certificate.sizes)


def test_what_a_program_does_with_more_images_alone_is_compared():
    torch.manual_seed(0)
    net = Listed(apart=True).eval()
    with torch.no_grad():
        net.factor.copy_(torch.arange(8.0))
    with pytest.raises(EquivalenceError, match="batch of 2 images instead of 1"):
        example, plan, pruned = half(net)
        verify(net, pruned, plan, example)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_of_images_are_no_batch(channels):
    images = [torch.rand(channels, 8, 9), torch.rand(channels, 8, 9)]
    targets = [{"boxes": torch.rand(4, 4)}, {"boxes": torch.rand(2, 4)}]
    drawn = list(draws((images, targets)))
    assert all(image.shape[0] == channels for draw in drawn for image in draw.inputs[0])
    more = another_image((images, targets))
    assert [len(listed) for listed in more.inputs] == [3, 3] and (more.before, more.after) == (2, 3)
    assert not torch.equal(more.inputs[0][1], more.inputs[0][2]) and more.inputs[0][2].dtype == torch.float64
    assert another_image((torch.rand(2, 3, 8, 8), [torch.rand(2, 4)])) is None
    first = next(other_sizes(((images,), {})))[0][0]
    assert len(first) == 3 and all(image.shape == (channels, 32, 36) for image in first)
