"""The masked original: the dense network with removed units at zero, which a cut network is compared with."""
