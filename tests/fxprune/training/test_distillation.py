"""Distillation needs no labels, and takes outputs of any structure."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fxprune.errors import InputError
from fxprune.training.distillation import distil, output_loss


class Structured(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.body, self.head = form, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.body(x).tanh()
        y = self.head(h)
        return {"tensor": y, "tuple": (y, h), "dict": OrderedDict(logits=y, hidden=(h,), n=3), "list": [y]}[self.form]


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "list"])
@pytest.mark.parametrize("shape", [(16, 4), (8, 5, 4)])
def test_a_student_comes_nearer_to_its_teacher_without_labels(form, shape):
    torch.manual_seed(0)
    teacher, student = Structured(form), Structured(form)
    x = torch.randn(*shape)
    before = float(output_loss(student(x), teacher(x)).detach())
    weights = [p.clone() for p in teacher.parameters()]
    made = distil(student, teacher, [x], 40, lr=0.05)
    assert made is student and student.training
    assert float(output_loss(student(x), teacher(x)).detach()) < 0.7 * before
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher.parameters(), strict=True))
    assert float(output_loss(teacher(x), teacher(x)).detach()) == 0


def test_the_same_seed_trains_the_same_and_labels_count_where_a_loss_is_given():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    made = []
    for loss in (None, None, nn.functional.cross_entropy):
        torch.manual_seed(1)
        student = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
        made.append(distil(student, teacher, [(x, y)], 5, loss=loss, seed=3)[0].weight.detach())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_nothing_to_learn_from_is_said():
    net = nn.Linear(4, 3)
    with pytest.raises(InputError, match="can be passed once"):
        distil(net, nn.Linear(4, 3), [], 3)
    with pytest.raises(InputError, match="floating-point tensors"):
        output_loss(torch.zeros(2, 3), (torch.zeros(2, 3), torch.zeros(2, 3)))
    with pytest.raises(InputError, match=r"shapes \[\[5, 4\]\] and the student \[\[3, 4\]\]"):
        output_loss({"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(5, 4)})
    with pytest.raises(InputError, match="steps"):
        distil(net, nn.Linear(4, 3), [torch.zeros(1, 4)], -1)
