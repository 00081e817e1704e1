"""The proof: a cut network and its masked original compared on many inputs, sizes and modes."""
