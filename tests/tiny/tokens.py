"""Networks over tokens and time: mixers, recurrence, embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny.table import of, tiny, words

tokens = of(2, 5, 12)


@tiny("embed 8 mixed, gate 10, both 7", tokens)
class SwiGlu(nn.Module):
    """The feed-forward part of Llama, with its RMS norm by hand; and a fused one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.weight = nn.Linear(12, 8), nn.Parameter(torch.randn(8))
        self.gate, self.up, self.down = nn.Linear(8, 10), nn.Linear(8, 10), nn.Linear(10, 8)
        self.both, self.back, self.head = nn.Linear(8, 14), nn.Linear(7, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        value, gate = self.both(x).chunk(2, dim=-1)
        return self.head(x + self.back(value * F.gelu(gate)))


@tiny("embed 8 mixed, up 6, wide 10", tokens)
class MlpMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 8), nn.Linear(8, 4)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(5, 6), nn.Linear(6, 5)
        self.wide, self.back = nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return self.head((x + self.back(F.gelu(self.wide(x)))).mean(dim=1))


@tiny("up 8", tokens)
class Experts(nn.Module):
    """A soft mixture of experts, all of them run by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(12, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 12, 8)), nn.Parameter(torch.randn(3, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(torch.einsum("bld,edf->belf", x, self.up))
        return torch.einsum("ble,belf,efo->blo", self.router(x).softmax(-1), hidden, self.down)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int, output: int, **settings: object) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Linear(12, 8), kind(8, width, **settings)  # type: ignore[arg-type]
        self.head = nn.Linear(output, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.embed(x)))[0])


@tiny("embed 8, rnn 6", of(5, 2, 12))
def Lstm() -> nn.Module:
    return Recurrent(nn.LSTM, 6, 6)


@tiny("embed 8, rnn 6", tokens)
def LstmDeep() -> nn.Module:
    return Recurrent(nn.LSTM, 6, 6, num_layers=2, batch_first=True, dropout=0.1)


@tiny("embed 8, rnn 6", tokens)
def LstmBothWays() -> nn.Module:
    return Recurrent(nn.LSTM, 6, 12, bidirectional=True, batch_first=True)


@tiny("", tokens)
def LstmProjected() -> nn.Module:
    return Recurrent(nn.LSTM, 6, 4, proj_size=4, batch_first=True)


@tiny("embed 8, rnn 6", tokens)
def Gru() -> nn.Module:
    return Recurrent(nn.GRU, 6, 12, bidirectional=True, num_layers=2, batch_first=True, bias=False)


@tiny("embed 8, rnn 6", tokens)
def Rnn() -> nn.Module:
    return Recurrent(nn.RNN, 6, 6, nonlinearity="relu", batch_first=True)


@tiny("rnn 6", tokens)
class LstmLastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(12, 6, batch_first=True), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out, (hidden, cell) = self.rnn(x)
        return self.head(torch.cat([hidden[-1], cell[-1]], -1)) + self.head(torch.cat([out[:, -1], out.mean(1)], -1))


@tiny("rnn 6", tokens)
class LstmFromState(nn.Module):
    """The first state is made in forward from literal sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(12, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(1, x.size(0), 6, dtype=x.dtype, device=x.device)
        return self.head(self.rnn(x, start)[0])


@tiny("lstm 6, gru 7, rnn 4", tokens)
class Cells(nn.Module):
    """Two steps of an LSTM, a GRU and a plain cell."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(12, 6), nn.GRUCell(6, 7), nn.RNNCell(7, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.lstm(x[:, 0])
        h, c = self.lstm(x[:, 1], (h, c))
        y = self.gru(h, self.gru(c))
        return self.head(self.rnn(y, self.rnn(torch.tanh(y))))


@tiny("embed 8, hidden 6", words(11, 2, 5))
class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(11, 8, padding_idx=0), nn.Embedding(5, 8)
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place(torch.arange(x.shape[1], device=x.device))
        return self.head(torch.relu(self.hidden(x)))


@tiny("embed 8", words(11, 2, 5))
class TiedDecoder(nn.Module):
    """A language model whose decoder is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hidden, self.decode = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.hidden(self.embed(x))))


@tiny("bag 8", words(11, 2, 5))
class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(11, 8, mode="mean"), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.bag(x)))
