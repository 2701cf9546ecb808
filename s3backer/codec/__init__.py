"""How a block's bytes become an object's body: compression, encryption, checksums."""
